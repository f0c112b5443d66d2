"""Commands that take a config and a run directory, run for long, and may be stopped.

Exit codes: 0 finished, 1 a process or the disk failed, 2 bad usage or config, 3 diverged, 75
preempted (SIGTERM or Ctrl-C; the run is saved, give the same command again).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ml_collections import FrozenConfigDict

from vespo_jax import config as config_lib

PREEMPTED = 75  # exit code


def command(
  argv: list[str], runner: str, check: Callable[[FrozenConfigDict], None] = lambda config: None
) -> int:
  """Runs one command line; returns the exit code.

  `runner` is the module whose `train` does it and whose `summary` is printed; `check` raises
  ConfigError for a config that it could not do.
  """
  if {"-h", "--help"} & set(argv[1:]):
    name = Path(argv[0]).stem
    print(
      f"usage: python -m vespo_jax.{name} --config=FILE --workdir=DIR [--config.KEY=VALUE ...]\n"
    )
    print(f"configs/base.py lists every key, what it means and its default.\n{__doc__}")
    return 0
  try:
    config, workdir = config_lib.parse(argv)
    check(config)
  except config_lib.ConfigError as error:
    return _fail(error, 2)
  os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(config.runtime.gpu_memory_fraction))
  from vespo_jax import launch  # heavy, so only once the command line is known to be good

  run = importlib.import_module(runner)
  stop = _stop_on_signals(config.checkpoint.save_within_s)
  try:
    with _joined(config, stop) as several:
      result = run.train(config, workdir, stop, **several)
      speaks = not several or several["hosts"].first
  except config_lib.ConfigError as error:
    return _fail(error, 2)
  except launch.Diverged as error:
    return _fail(error, 3)
  except (
    launch.CheckpointError,
    launch.ChildDied,
    launch.HostsFailed,
    launch.NoSignal,
    launch.SamplersFailed,
    OSError,  # a time limit, a full disk, and what else a run cannot go on with
  ) as error:
    return _fail(error, 1)
  if result["stop_reason"] != "finished":
    where = f" after update {result['updates']}" if "updates" in result else ""
    if speaks:
      print(f"stopped{where}; the same command resumes")
    return PREEMPTED
  if speaks:
    print(run.summary(result, workdir))
  return 0


@contextlib.contextmanager
def _joined(config: FrozenConfigDict, stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
  """What `train` needs to know where this process is one of several of the run.

  Raises ConfigError if something of `distributed` is missing, HostsFailed.
  """
  if not config.distributed.enabled:
    yield {}
    return
  from vespo_jax import hosts as hosts_lib

  settings = config.distributed.to_dict()
  del settings["enabled"]
  try:
    # one process alone waits at most runtime.timeout_s, and then it grades, compiles, writes
    hosts = hosts_lib.join(**settings, timeout_s=2 * config.runtime.timeout_s, stop=stop)
  except ValueError as error:
    raise config_lib.ConfigError(f"distributed: {error}") from error
  with hosts.together():
    yield {"hosts": hosts}
    hosts.close()


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
