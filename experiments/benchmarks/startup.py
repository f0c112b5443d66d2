"""From the start of the training command to its first update."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks import machine
from experiments.benchmarks.workload import Workload

TIMEOUT_S = 300.0
COMMAND = (sys.executable, "-m", "vespo_jax.train", "--config=configs/quickstart.py")
CHANGES = ("--config.updates=1000", "--config.staleness.minibatches=1")


def measure(workload: Workload, repetitions: int) -> dict[str, Any]:
  """Seconds to the first line of metrics.jsonl, with a compilation cache that is empty, then warm.

  Raises OSError if the run ends before.
  """
  del workload  # it is the quickstart's
  results: dict[str, Any] = {"cold_s": [], "warm_s": []}
  for _ in range(repetitions):
    with tempfile.TemporaryDirectory() as folder:
      for name in results:
        results[name].append(_first_update_s(Path(folder) / name, Path(folder) / "cache"))
  return results


def describe(results: dict[str, Any], workload: Workload) -> str:
  """Both."""
  del workload
  return "\n".join(f"{name[:-2]} cache: {machine.spread(x)}" for name, x in results.items())


def _first_update_s(workdir: Path, cache: Path) -> float:
  environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
  started = time.perf_counter()
  process = subprocess.Popen(
    [*COMMAND, *CHANGES, f"--workdir={workdir}"],
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  rows = workdir / "metrics.jsonl"
  try:
    while not (rows.is_file() and rows.stat().st_size):
      if process.poll() is not None or time.perf_counter() - started > TIMEOUT_S:
        process.kill()
        _, errors = process.communicate()
        raise OSError(f"the run made no update: {errors.decode()}")
      time.sleep(0.01)
    return time.perf_counter() - started
  finally:
    process.terminate()
    process.communicate()
