"""Being asked to stop: by a signal, twice, or in vain. Several hosts: test_hosts.py."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
WAITING = """
import sys, time
from vespo_jax import command
stop = command._stop_on_signals(float(sys.argv[1]))
print(stop(), flush=True)
while not stop():
  time.sleep(0.01)
print("saving", flush=True)
time.sleep(100)
"""


def waiting(seconds):
  process = subprocess.Popen(
    [sys.executable, "-c", WAITING, str(seconds)],
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "False\n"
  return process


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(first):
  process = waiting(100)
  process.send_signal(first)
  assert process.stdout.readline() == "saving\n"
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=20)
  assert process.returncode == -signal.SIGTERM and "again to stop now" in errors


def test_what_cannot_be_saved_in_time_is_given_up():
  process, begun = waiting(0.5), time.monotonic()
  process.terminate()
  _, errors = process.communicate(timeout=20)
  assert process.returncode == 75 and "not saved within checkpoint.save_within_s" in errors
  assert time.monotonic() - begun >= 0.5
