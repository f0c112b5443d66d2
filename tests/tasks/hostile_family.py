"""A task family for tests: verifiers that hang, raise, die, or eat memory on request."""

import gc
import os
import random
import socket
import sqlite3
import subprocess
import sys
import time
from multiprocessing.connection import Connection

from vespo_jax.tasks import Score, families, guard

KEPT = []
BIG = 9  # a name, or the compiler would do the work


@families.register("hostile")
def hostile(dataset, options):
  return Hostile(dataset, options)


class Hostile:
  version = "1"

  def __init__(self, dataset, options):
    self.name, self.options = f"hostile/{dataset}", dict(options)
    if dataset == "unstartable":
      raise ValueError("no such thing")

  def generate(self, seed, limit):
    if "log" in self.options:
      with open(self.options["log"], "a") as log:
        log.write("generates\n")
    if self.options.get("crash"):
      raise RuntimeError("generator bug")
    for i in range(limit):
      time.sleep(self.options.get("pause_s", 0))
      answer = random.random() if self.options.get("random") else i
      yield f"question {seed} {i % self.options.get('distinct', limit)}", str(answer), "{}"

  def prompt(self, example):
    return example.question

  def score(self, example, response):
    if response == "hang":
      time.sleep(1000)
    if response == "raise":
      raise RuntimeError("verifier bug")
    if response == "die":
      os._exit(9)
    if response == "exit":
      sys.exit()
    if response == "busy":
      return Score(float(len(str(BIG**BIG**BIG))), "ok")  # no other thread gets a turn
    if response.startswith("run "):
      subprocess.run(["touch", response.removeprefix("run ")])
    if response.startswith("socket "):
      socket.socket().close()
    if response.startswith("database "):
      sqlite3.connect(response.removeprefix("database ")).execute("create table x (y)")
    if response.startswith("unfence "):
      vars(guard).update(dict.fromkeys(vars(guard)))
      open(response.removeprefix("unfence "), "w")
    if response.startswith("reach "):
      gc.get_objects()
    if response.startswith("speak "):
      Connection(int(sys.argv[1])).send_bytes(response.removeprefix("speak ").encode())
    if response.startswith("write "):
      open(response.removeprefix("write "), "w")
    if response == "slow":
      time.sleep(0.5)
    if response == "grow":
      KEPT.append(b"x" * (600 << 20))
    if response == "memory":
      return Score(float(len(bytearray(8 << 30))), "ok")
    good = response == example.answer
    return Score(float(good), "ok" if good else "wrong", float(good))
