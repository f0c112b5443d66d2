"""Being asked to stop: by a signal, twice, in vain, or by the service that tells all hosts."""

import json
import signal
import socket
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
NOTICE = """
import json, os, signal, sys, time
import jax
from vespo_jax import command
stop = command._stop_on_signals(60.0)
jax.distributed.initialize(sys.argv[1], num_processes=1, process_id=0)
from tests.learner.test_checkpoint import SPEC, Checkpoints, Path
checkpoints = Checkpoints(Path(sys.argv[2]), SPEC)
before = [checkpoints.preempted(step) for step in range(3)]
os.kill(os.getpid(), signal.SIGTERM)
deadline, step = time.monotonic() + 60, 3
while not checkpoints.preempted(step) and time.monotonic() < deadline:
  step += 1
  time.sleep(0.05)
print(json.dumps({"before": before, "reached": time.monotonic() < deadline}))
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


def test_jax_tells_all_hosts_when_one_is_preempted(tmp_path):
  """Its service takes SIGTERM over from the moment it is started."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  done = subprocess.run(
    [sys.executable, "-c", NOTICE, address, str(tmp_path / "checkpoints")],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  expected = {"before": [False] * 3, "reached": True}
  assert json.loads(done.stdout.splitlines()[-1]) == expected
