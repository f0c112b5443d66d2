"""A run's metrics for TensorBoard, beside the ones in `metrics.jsonl`, which stay the record."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from tensorboardX.event_file_writer import EventsWriter


class TensorBoard:
  """Writes scalars to an event file, each row whole and on disk before the next.

  The first row says from which step on the directory's earlier files no longer count: a run that is
  resumed from a checkpoint makes some of its updates again.

  Args:
    directory: where the file is; made when missing. TensorBoard calls the run after it.
  """

  def __init__(self, directory: str | os.PathLike[str]):
    self._directory = Path(directory)
    self._file: EventsWriter | None = None

  def write(self, step: int, row: Mapping[str, Any], *, amends: bool = False) -> None:
    """Adds a row's scalars (Python's, numpy's or jax's) at a step, under their names; histograms,
    which are lists, and the run's own clock are left out. With `amends`, what there was of this
    step stays."""
    from tensorboardX.proto import event_pb2

    messages: Any = event_pb2  # whose classes come to be when it is imported
    if self._file is None:
      self._file = self._begin()
      restart = messages.SessionLog(status=messages.SessionLog.START)
      restarted = messages.Event(wall_time=time.time(), step=step + amends, session_log=restart)
      self._file.write_event(restarted)
    event = messages.Event(wall_time=time.time(), step=step)
    for name, value in row.items():
      if name not in ("step", "wall_time_s") and not isinstance(value, list):
        event.summary.value.add(tag=name, simple_value=float(np.asarray(value)))
    self._file.write_event(event)
    self._file.flush()

  def close(self) -> None:
    """Closes the file; a later row begins another one. Idempotent."""
    if self._file is not None:
      self._file.close()
      self._file = None

  def _begin(self) -> EventsWriter:
    from tensorboardX.event_file_writer import EventsWriter  # slow to import, as protobuf is

    # Not its SummaryWriter, which hands rows to a thread of its own that pickles them.
    self._directory.mkdir(parents=True, exist_ok=True)
    return EventsWriter(str(self._directory / "events"), f".{time.time_ns()}")
