"""A task family for tests: verifiers that hang, raise, die, or eat memory on request."""

import os
import time

from vespo_jax.tasks import Score, families


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
    for i in range(limit):
      yield f"question {seed} {i % self.options.get('distinct', limit)}", str(i), "{}"

  def prompt(self, example):
    return example.question

  def score(self, example, response):
    if response == "hang":
      time.sleep(1000)
    if response == "raise":
      raise RuntimeError("verifier bug")
    if response == "die":
      os._exit(9)
    if response == "memory":
      return Score(float(len(bytearray(8 << 30))), "ok")
    good = response == example.answer
    return Score(float(good), "ok" if good else "wrong", float(good))
