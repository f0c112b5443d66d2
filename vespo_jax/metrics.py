"""What a run measures: one JSON object per committed update on disk, and live progress on screen.

A row is a flat dict of scalars named `area/what` (`reward/mean`, `kl/behaviour_policy`; a histogram
is a list of counts), plus `step` (committed updates after this one), `weight_version` and
`wall_time_s`.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as LiveBar

from vespo_jax import files
from vespo_jax.tensorboard import TensorBoard

TIMING_PREFIXES = ("time/", "throughput/")
PLAIN_INTERVAL_S = 2.0

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MetricsWriter:
  """Appends rows to a JSON-lines file, each flushed whole, so that a crash loses none.

  Equal values give equal bytes: `step` and `weight_version` first, the other keys sorted,
  `wall_time_s` last. JSON has no NaN or infinity: these are written as "nan", "inf" and "-inf".
  A row counts as written once its newline is; opening a file cuts off a half-written last line.

  Args:
    path: the file; it and its folder are made when missing.
    board: what is given all rows too.
  """

  def __init__(self, path: str | os.PathLike[str], board: TensorBoard | None = None):
    self.path, self._board = Path(path), board
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self.path.touch()
    os.truncate(self.path, sum(map(len, _whole_lines(self.path))))
    self._file = self.path.open("ab")

  def write(self, row: Mapping[str, Any]) -> None:
    """Appends one row. A value is a Python, numpy or jax scalar, or a list of them (a histogram);
    anything else is a TypeError, a row without `step` a ValueError."""
    if "step" not in row:
      raise ValueError(f"a metrics row needs a 'step'; got {sorted(row)}")
    self._file.write(_line(row))
    self._file.flush()
    if self._board is not None:
      self._board.write(int(row["step"]), row)

  def truncate(self, step: int) -> None:
    """Cuts the file back to the rows with `step` at most the given one, whose bytes stay. Raises
    ValueError as `read`."""
    steps = (row["step"] for row in _rows(self.path, enumerate(_whole_lines(self.path), start=1)))
    lines = zip(_whole_lines(self.path), steps, strict=True)
    self._replace(line for line, at in lines if at <= step)

  def amend(self, extra: Mapping[str, Any]) -> None:
    """Adds to the last row, which there must be."""
    (row,) = read(self.path, last=1)
    kept = (line for line, _ in itertools.pairwise(_whole_lines(self.path)))
    self._replace(itertools.chain(kept, [_line({**row, **extra})]))
    if self._board is not None:
      self._board.write(row["step"], extra, amends=True)

  def close(self) -> None:
    """Closes the file, and what is given its rows. Idempotent."""
    self._file.close()
    if self._board is not None:
      self._board.close()

  def _replace(self, lines: Iterable[bytes]) -> None:
    self._file.close()
    files.write(self.path, lines)
    self._file = self.path.open("ab")

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()


def read(path: str | os.PathLike[str], last: int | None = None) -> list[dict[str, Any]]:
  """The rows of a metrics file, "nan", "inf" and "-inf" as floats; a half-written last line is
  left out. Where only the `last` rows are asked for, no other is decoded or kept in memory.
  Raises ValueError naming the line when one of these is not such a row."""
  lines: Iterable[tuple[int, bytes]] = enumerate(_whole_lines(Path(path)), start=1)
  return list(_rows(path, lines if last is None else deque(lines, maxlen=last)))


def _rows(
  path: str | os.PathLike[str], lines: Iterable[tuple[int, bytes]]
) -> Iterator[dict[str, Any]]:
  for number, line in lines:
    try:
      row = json.loads(line)
    except ValueError as error:
      raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(row, dict) or "step" not in row:
      raise ValueError(f"{path}, line {number}: not a JSON object with a 'step'")
    row = {k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in row.items()}
    texts = [key for key, value in row.items() if isinstance(value, str)]
    if texts:
      raise ValueError(f"{path}, line {number}: {texts[0]!r} is no number")
    yield row


def printable(text: str) -> str:
  """A text of somebody else's for a terminal: what it would obey is replaced, orders to change the
  direction of text among it. Lines, tabs and the spaces and joiners of any language are kept."""
  return "".join(c if c.isprintable() or _is_harmless(c) else "\ufffd" for c in text)


def _is_harmless(c: str) -> bool:
  return c in "\n\t\u200c\u200d" or unicodedata.category(c) == "Zs"


def strip_timings(row: Mapping[str, Any]) -> dict[str, Any]:
  """The row without clock readings: what two runs of the same seed must agree on."""
  return {
    key: value
    for key, value in row.items()
    if not key.startswith(TIMING_PREFIXES) and key != "wall_time_s"
  }


class Progress:
  """Live progress of a run, used as a context manager around the training loop.

  On a terminal it is a bar that stays below everything else; otherwise one plain line per update,
  at most one every two seconds, and always the first and the last.

  Args:
    total: the committed updates the run will end with.
    start: the committed updates it starts from.
    stream: where to show it; standard error when None.
    unit: what is counted, where it is not updates.
  """

  def __init__(
    self, total: int, *, start: int = 0, stream: TextIO | None = None, unit: str = "update"
  ):
    self._total, self._unit = total, unit
    self._start = start
    self._stream = stream or sys.stderr
    self._bar: LiveBar | None = None
    self._first: tuple[int, float] | None = None  # (step, seconds): leaves compilation out of ETA
    self._printed_at = -math.inf
    self._unprinted = ""

  def __enter__(self) -> Progress:
    if self._stream.isatty() and os.environ.get("TERM") != "dumb":
      self._bar = LiveBar(
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=Console(file=self._stream, force_terminal=True),
        refresh_per_second=4,
        expand=True,
      )
      self._bar.add_task("", total=self._total, completed=self._start, status="")
      self._bar.start()
    return self

  def __exit__(self, *exc_info: object) -> None:
    if self._bar is not None:
      self._bar.stop()
    elif self._unprinted:
      self._print(self._unprinted)

  def update(self, row: Mapping[str, Any]) -> None:
    """Shows a metrics row; it needs `step`, and what it lacks of the rest is not shown."""
    step, now = int(row["step"]), time.monotonic()
    self._first = self._first or (step, now)
    status = [*_describe(row), f"ETA {self._eta(step, now)}"]
    if self._bar is not None:
      self._bar.update(self._bar.task_ids[0], completed=step, status=" ".join(status))
      return
    self._unprinted = f"{self._unit} {step}/{self._total}  {'  '.join(status)}"
    if step >= self._total or now - self._printed_at >= PLAIN_INTERVAL_S:
      self._print(self._unprinted)
      self._printed_at, self._unprinted = now, ""

  def message(self, text: str) -> None:
    """Prints a line of text above the bar."""
    text = printable(text)
    if self._bar is not None:
      self._bar.console.print(text, markup=False, highlight=False)
    else:
      self._print(text)

  def _eta(self, step: int, now: float) -> str:
    first_step, first_time = self._first or (step, now)
    if step == first_step:
      return "0:00" if step >= self._total else "--:--"
    seconds = round((now - first_time) / (step - first_step) * (self._total - step))
    minutes, seconds = divmod(max(seconds, 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

  def _print(self, text: str) -> None:
    print(text, file=self._stream, flush=True)


def _describe(row: Mapping[str, Any]) -> list[str]:
  """The few numbers of a row worth watching, in a fixed order."""
  shown = {
    "reward/mean": "reward {:.3f}",
    "evaluation/accuracy": "accuracy {:.3f}",
    "data/nll": "nll {:.3f}",
    "entropy/mean": "entropy {:.2f}",
    "staleness/mean": "staleness {:.1f}",
  }
  parts = [text.format(float(row[key])) for key, text in shown.items() if key in row]
  if "throughput/trained_tokens_per_s" in row:
    rate = float(row["throughput/trained_tokens_per_s"])
    parts.append(f"{rate / 1000:.1f}k tok/s" if rate >= 1000 else f"{rate:.0f} tok/s")
  return parts


def _whole_lines(path: Path) -> Iterator[bytes]:
  """The lines of a file that end in a newline, with it, one at a time."""
  with path.open("rb") as file:
    yield from (line for line in file if line.endswith(b"\n"))


def _line(row: Mapping[str, Any]) -> bytes:
  plain = {key: _encode(key, row[key]) for key in sorted(row, key=_rank)}
  return json.dumps(plain, allow_nan=False).encode() + b"\n"


def _rank(key: str) -> tuple[int, str]:
  return {"step": 0, "weight_version": 1, "wall_time_s": 3}.get(key, 2), key


def _encode(key: str, value: Any) -> int | float | str | list:
  """A scalar as JSON: integers and booleans as int, finite floats as float, the rest by name."""
  if isinstance(value, list):
    return [_encode(key, item) for item in value]
  scalar = np.asarray(value)
  if scalar.ndim or scalar.dtype.kind not in "biufV":  # V: bfloat16 and its like
    raise TypeError(f"metric {key!r} must be a scalar number, got {value!r}")
  if scalar.dtype.kind in "biu":
    return int(scalar)
  number = float(scalar)
  return number if math.isfinite(number) else str(number)
