"""What sampling beside the learner gains: an asynchronous run against the same work in turns.

Learner and sampler are processes of one core each, as they are on accelerators of their own. In
turns (sync, N = 1) an update takes the time of sampling and of updating; side by side (async,
S = K = 1) it cannot take less than the longer of the two. The sampler's slots are chosen so that
both take the same.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.workload import Workload
from vespo_jax import metrics

UPDATES, WARM_UP = 40, 8
START_TIMEOUT_S, RUN_TIMEOUT_S = 300.0, 900.0
ALIKE = {
  "sampler.slots": 1,  # sequences one after another: then sampling costs what updating does
  "updates": UPDATES,
  "staleness.minibatches": 1,
  "checkpoint.every": 0,
  "evaluation.problems": 4,
  "evaluation.samples_per_problem": 1,
}
MODES = {"turns": {}, "beside": {"runtime.mode": "async"}}


def measure(workload: Workload, repetitions: int) -> dict[str, Any]:
  """Seconds per update of both ways by repetition, and of sampling and updating alone.

  Raises OSError if this machine cannot give two processes a core each.
  """
  if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
    raise OSError("needs two cores, and an operating system that lets processes choose theirs")
  del workload  # it is the quickstart's
  results: dict[str, Any] = {mode: [] for mode in MODES} | {"sample": [], "update": []}
  for _ in range(repetitions):
    for mode, changes in MODES.items():
      with tempfile.TemporaryDirectory() as folder:
        rows = _run(Path(folder) / "run", {**ALIKE, **changes})
      seconds = [row["wall_time_s"] for row in rows[WARM_UP:]]
      results[mode].append((seconds[-1] - seconds[0]) / (len(seconds) - 1))
      if mode == "turns":
        for name in ("sample", "update"):
          times = [row[f"time/{name}_s"] for row in rows[WARM_UP:]]
          results[name].append(statistics.median(times))
  return results


def describe(results: dict[str, Any], workload: Workload) -> str:
  """The medians, how much faster side by side is, and how much faster it could be."""
  del workload
  middle = {name: statistics.median(seconds) for name, seconds in results.items()}
  lines = [
    f"{name}: {middle[name]:.3f} s [{min(results[name]):.3f}, {max(results[name]):.3f}]"
    for name in results
  ]
  gain = middle["turns"] / middle["beside"]
  bound = middle["turns"] / max(middle["sample"], middle["update"])
  return "\n".join([*lines, f"{gain:.2f}x as fast side by side; {bound:.2f}x is the limit"])


def _run(workdir: Path, changes: dict[str, Any]) -> list[dict[str, Any]]:
  """The metrics of a quickstart run whose sampler has a core of its own."""
  mine, other = sorted(os.sched_getaffinity(0))[:2]
  command = [
    *(sys.executable, "-m", "vespo_jax.train", "--config=configs/quickstart.py"),
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in changes.items()),
  ]
  cores = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {mine})  # of all that is started from here on, and so of their threads
  try:
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
  finally:
    os.sched_setaffinity(0, cores)
  try:
    _move(_sampler_of(process), other)
    _, errors = process.communicate(timeout=RUN_TIMEOUT_S)
  finally:
    process.kill()
  if process.returncode:
    raise OSError(f"the run failed: {errors.decode()}")
  return metrics.read(workdir / "metrics.jsonl")


def _sampler_of(process: subprocess.Popen) -> int:
  """The process id of a run's sampler, once it is there."""
  deadline = time.monotonic() + START_TIMEOUT_S
  while time.monotonic() < deadline and process.poll() is None:
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
      if b"sampler_process" in Path(f"/proc/{child}/cmdline").read_bytes():
        return int(child)
    time.sleep(0.05)
  raise OSError("the run started no sampler")


def _move(pid: int, core: int) -> None:
  """Gives all threads of a process one core, also those they start later."""
  for thread in Path(f"/proc/{pid}/task").iterdir():
    os.sched_setaffinity(int(thread.name), {core})
