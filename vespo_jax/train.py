"""Trains a policy: `python -m vespo_jax.train --config=configs/NAME.py --workdir=runs/NAME`.

The same command again resumes. Exit codes: 0 finished, 1 a process or the disk failed, 2 bad usage
or config, 3 diverged, 75 preempted (SIGTERM or Ctrl-C; the run is saved, give the same command
again).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from vespo_jax import config as config_lib

PREEMPTED = 75  # exit code


def main(argv: list[str]) -> int:
  """Runs one command line; returns the exit code."""
  try:
    config, workdir = config_lib.parse(argv)
  except config_lib.ConfigError as error:
    return _fail(error, 2)
  os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(config.runtime.gpu_memory_fraction))
  from vespo_jax import launch  # heavy, so only once the command line is known to be good

  try:
    result = launch.train(config, workdir, _stop_on_signals(config.checkpoint.save_within_s))
  except config_lib.ConfigError as error:
    return _fail(error, 2)
  except launch.Diverged as error:
    return _fail(error, 3)
  except (
    launch.CheckpointError,
    launch.ChildDied,
    launch.NoSignal,
    launch.SamplersFailed,
    OSError,  # a time limit, a full disk, and what else a run cannot go on with
  ) as error:
    return _fail(error, 1)
  if result["stop_reason"] != "finished":
    print(f"stopped after update {result['updates']}; the same command resumes")
    return PREEMPTED
  print(launch.summary(result, workdir))
  return 0


def _fail(error: Exception, code: int) -> int:
  print(f"error: {error}", file=sys.stderr)
  return code


def _stop_on_signals(save_within_s: float) -> Callable[[], bool]:
  """`stop() -> bool`, True after the first SIGTERM or SIGINT; the process ends at a second one, or
  if it is still there `save_within_s` later."""
  received: list[int] = []
  deadline = threading.Timer(save_within_s, _give_up)
  deadline.daemon = True

  def handle(number: int, frame: FrameType | None) -> None:
    if received:
      signal.signal(number, signal.SIG_DFL)
      signal.raise_signal(number)
    received.append(number)
    deadline.start()
    print("saving and stopping; again to stop now", file=sys.stderr)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, handle)
  return lambda: bool(received)


def _give_up() -> None:
  print("error: not saved within checkpoint.save_within_s; ending", file=sys.stderr, flush=True)
  os._exit(PREEMPTED)  # whatever hangs; the children end with this process


if __name__ == "__main__":
  sys.exit(main(sys.argv))
