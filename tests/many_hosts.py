"""Runs of several processes on this machine, as several hosts would make them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
SMALL = {  # of the debug config: a policy and a run as small as shows everything
  "policy.path": "",
  "policy.width": 32,
  "policy.layers": 2,
  "policy.heads": 2,
  "policy.kv_heads": 1,
  "policy.head_width": 16,
  "policy.mlp_width": 64,
  "task.reward": "tests.tasks.my_rewards:odd",  # which a policy of random weights gets at times
  "optimizer.epsilon": 1e-3,  # so that round-off of a gradient near 0 is no whole step
  "updates": 4,
  "batch.micro_batches": 1,
  "evaluation.problems": 4,
  "runtime.transport": "threads",
  "rollouts.save_all": True,
  "sampler.max_new_tokens": 8,
}


def flags(settings):
  return [f"--config.{key}={value}" for key, value in settings.items()]


def start(workdir, data_dir, processes, devices=1, **settings):
  """Starts a run; where there are several processes, each has `devices` devices."""
  settings = {**SMALL, "task.data_dir": data_dir, **settings}
  command = [sys.executable, "-m", "vespo_jax.train", "--config=configs/debug.py"]
  command += [f"--workdir={workdir}", *flags(settings)]
  env = dict(os.environ, JAX_PLATFORMS="cpu")
  env["XLA_FLAGS"] = f"{env['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  several = [[]]
  if processes > 1:
    with socket.socket() as free:
      free.bind(("localhost", 0))
      address = f"localhost:{free.getsockname()[1]}"
    shared = {
      "distributed.enabled": True,
      "distributed.coordinator_address": address,
      "distributed.num_processes": processes,
      "distributed.heartbeat_timeout_s": 20,
    }
    several = [flags({**shared, "distributed.process_id": i}) for i in range(processes)]
  return [
    subprocess.Popen(
      [*command, *own],
      cwd=REPOSITORY,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for own in several
  ]


def finish(children, timeout_s=280):
  """The exit code and the output of every process."""
  deadline = time.monotonic() + timeout_s
  try:
    said = [child.communicate(timeout=max(deadline - time.monotonic(), 1))[0] for child in children]
  finally:
    for child in children:
      child.kill()
  return [child.returncode for child in children], said


def interrupt(children, workdir, rows, victim, number=signal.SIGTERM):
  """Sends a signal to one process once so many updates are written."""
  path, deadline = workdir / "metrics.jsonl", time.monotonic() + 200
  while not (path.is_file() and path.read_bytes().count(b"\n") >= rows):
    assert time.monotonic() < deadline and children[0].poll() is None, children[0].stdout.read()
    time.sleep(0.01)
  children[victim].send_signal(number)
