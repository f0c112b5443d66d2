"""Whose a run directory is: of one process at a time, one command, one config."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from vespo_jax import config as config_lib
from vespo_jax import exports, files, memory
from vespo_jax.config import ConfigError
from vespo_jax.config_file import read_file
from vespo_jax.metrics import MetricsWriter
from vespo_jax.tensorboard import TensorBoard

COMMAND = "command"  # in a run directory: which one made it, and locked while it runs

# keys that may differ when a run is resumed
CHANGEABLE = (
  "updates",
  "mesh.",
  "policy.attention",  # what devices have
  "policy.gathered_mb",
  "sampler.attention",
  "optimizer.offload",
  "checkpoint.",
  "sampler.devices",
  "runtime.compilation_cache",
  "runtime.timeout_s",
  "runtime.hang_timeout_s",
  "runtime.max_failures",
  "runtime.gpu_memory_fraction",
  "metrics.",
  "batch.dynamic.max_rounds",
  "distributed.",
  "task.grade_processes",
)


@contextlib.contextmanager
def claimed(
  config: FrozenConfigDict, workdir: Path, command: str, writes: bool = True
) -> Iterator[None]:
  """Makes this process and the directory those of a run: programs are kept, memory is given back
  after compiling, the config is written by the process that `writes`, and no other one may write
  while it does. A new directory is free again after a ConfigError, since nothing has run under this
  config.

  Raises ConfigError if the directory cannot be written, or holds a run of another config or another
  `command`, or one that is under way.
  """
  keep_programs(config.runtime.compilation_cache)
  memory.return_after_compiling()
  with _alone(workdir, command) if writes else contextlib.nullcontext():
    fresh = writes and _claim(config, workdir)
    try:
      yield
    except ConfigError:
      if fresh:
        (workdir / "config.json").unlink()
        (workdir / COMMAND).unlink()
      raise


def keep_programs(directory: str) -> None:
  """Keeps what is compiled, by this process and those it starts, in `directory` for the next run:
  unless that is "", or the environment's JAX_COMPILATION_CACHE_DIR names another place."""
  if directory:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(directory))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
      value = os.environ[name]  # JAX is imported by now and has read these
      jax.config.update(name.lower(), float(value) if name.endswith("SECS") else value)


def open_metrics(config: FrozenConfigDict, workdir: Path) -> MetricsWriter:
  """The run's `metrics.jsonl` to write, and TensorBoard's files if the config asks for them."""
  board = TensorBoard(workdir / "tensorboard") if config.metrics.tensorboard else None
  return MetricsWriter(workdir / "metrics.jsonl", board)


def finished_result(workdir: Path, made: Mapping[str, int], last: str) -> dict[str, Any] | None:
  """What `result.json` holds, if it is of a run that made that much and ended with `last`. Raises
  OSError if it is damaged."""
  result = files.read_object(workdir / "result.json")
  done = result.get("stop_reason") == "finished" and made.items() <= result.items()
  return result if done and last in result else None


@contextlib.contextmanager
def _alone(workdir: Path, command: str) -> Iterator[None]:
  """Holds the directory for this process; its file says whose runs it is for."""
  path = workdir / COMMAND
  with contextlib.ExitStack() as stack:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
      file = stack.enter_context(os.fdopen(descriptor, "r+"))
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel gives it back
    except BlockingIOError as error:
      raise ConfigError(f"--workdir={workdir} is being written by another process") from error
    except OSError as error:
      raise ConfigError(f"--workdir={workdir} cannot be written: {error}") from error
    holder = file.read(100).strip() or command
    if holder != command:
      raise ConfigError(
        f"--workdir={workdir} holds a run of {holder!r}, not {command!r}; give another directory"
      )
    if not (workdir / "config.json").is_file():  # new
      file.seek(0)
      file.write(f"{command}\n")
      file.flush()
    yield


def _claim(config: FrozenConfigDict, workdir: Path) -> bool:
  """Writes the config into a run directory, new or this run's; returns whether it is new.

  Raises ConfigError if it cannot be written, or holds a run of another config or of more updates.
  """
  path = workdir / "config.json"
  try:
    fresh = not path.is_file()
    if not fresh:
      stored, mine = read_file(path), json.loads(json.dumps(config.to_dict()))
      changed = config_lib.differences(stored, mine)
      fixed = ("updates",) if config.optimizer.decay != "none" else ()  # the rate depends on it
      differing = [key for key in changed if key in fixed or not key.startswith(CHANGEABLE)]
      if differing:
        raise ConfigError(
          f"--workdir={workdir} holds a run with another {', '.join(differing[:5])}; "
          "give another directory, or remove this one"
        )
      newest = max(exports.checkpoint_steps(workdir), default=0)
      if config.updates < min(newest, stored["updates"]):  # by epochs, more may have been made
        raise ConfigError(
          f"updates={config.updates}: --workdir={workdir} holds a run of {newest} updates already; "
          "give another directory"
        )
    config_lib.write(config, path)
  except OSError as error:
    raise ConfigError(f"--workdir={workdir} cannot be written: {error}") from error
  return fresh
