"""Results on disk: one JSON object a line, appended whole under a lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results"

Result = dict[str, Any]
COLLAPSE = 0.5  # a run has collapsed that ends below this share of its best evaluation


def read(path: Path) -> list[Result]:
  """The results in a file, oldest first; a half-written last line is left out."""
  if not path.is_file():
    return []
  lines = path.read_bytes().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith(b"\n")]


def append(path: Path, result: Result) -> None:
  """Adds one result, plain finite values; several processes may do so at once."""
  path.parent.mkdir(parents=True, exist_ok=True)
  line = json.dumps(result, sort_keys=True, allow_nan=False).encode() + b"\n"
  with path.open("ab+") as file, locked(file.fileno()):
    file.seek(0, os.SEEK_END)
    if file.tell() and not _ends_whole(file):
      line = b"\n" + line
    file.write(line)
    file.flush()
    os.fsync(file.fileno())


def best(result: Result) -> float:
  """The highest accuracy of a run's evaluations."""
  return max(accuracy for _, accuracy in result["evaluations"])


def second_half(result: Result) -> float:
  """The mean accuracy of the evaluations after more than half of the updates that a run was to
  make: of the same stretch, however often it evaluates; 0 if it diverged before."""
  asked = result.get("asked", result["updates"])  # older runs have all made what they were to
  late = [a for step, a in result["evaluations"] if 2 * step > asked]
  return statistics.fmean(late or [0.0])


def training_seconds(result: Result) -> float:
  """Of the loop, from its first point on the curves to its last: what is before training and the
  first update, which compiles, are not in it. NaN for a run that made fewer updates than asked."""
  if result["updates"] < result.get("asked", result["updates"]):
    return math.nan
  times = result["curves"]["wall_time_s"]
  return times[-1] - times[0]


def collapsed(result: Result) -> bool:
  """Whether a run ended below `COLLAPSE` of its best evaluation, the one before training
  included."""
  return result["after"] < COLLAPSE * max(best(result), result["before"])


@contextlib.contextmanager
def locked(descriptor: int) -> Iterator[None]:
  """Holds the exclusive lock of an open file; the kernel gives it back however the process ends."""
  fcntl.flock(descriptor, fcntl.LOCK_EX)
  try:
    yield
  finally:
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _ends_whole(file: Any) -> bool:
  file.seek(-1, os.SEEK_END)
  return file.read(1) == b"\n"
