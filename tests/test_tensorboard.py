"""TensorBoard's event files: the rows of metrics.jsonl, also of a run that was stopped."""

import struct

import jax.numpy as jnp
import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog

from vespo_jax import metrics
from vespo_jax.tensorboard import TensorBoard


def events(directory):
  """The events of all files, in the order of their names, as TensorBoard reads them."""
  for path in sorted(directory.iterdir()):
    data = path.read_bytes()
    while data:  # length, its checksum, the event, its checksum
      (length,) = struct.unpack("<Q", data[:8])
      yield Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


def shown(directory):
  """{(name, step): value} as TensorBoard has them: a file's start with a step discards what earlier
  ones have of it and of later steps."""
  found = {}
  for event in events(directory):
    if event.session_log.status == SessionLog.START:
      found = {at: value for at, value in found.items() if at[1] < event.step}
    for value in event.summary.value:
      found[value.tag, event.step] = value.simple_value
  return found


def write(workdir, rows, keep, amended=None):
  """A process of a run: from what was saved at step `keep` on."""
  board = TensorBoard(workdir / "tensorboard")
  with metrics.MetricsWriter(workdir / "metrics.jsonl", board) as writer:
    writer.truncate(keep)
    if amended:
      writer.amend(amended)
    for row in rows:
      writer.write(row)


def test_scalars_are_there_after_every_row_and_histograms_are_not(tmp_path):
  board = TensorBoard(tmp_path / "tensorboard")
  with metrics.MetricsWriter(tmp_path / "metrics.jsonl", board) as writer:
    row = {"step": 1, "weight_version": 0, "reward/mean": np.float32(0.5), "wall_time_s": 9.0}
    writer.write(row | {"entropy/mean": jnp.bfloat16(2.0), "log_w/histogram": [1, 2]})
    found = shown(tmp_path / "tensorboard")
    assert found == {("weight_version", 1): 0, ("reward/mean", 1): 0.5, ("entropy/mean", 1): 2.0}
    writer.amend({"evaluation/accuracy": 0.25})
    assert shown(tmp_path / "tensorboard") == found | {("evaluation/accuracy", 1): 0.25}


def test_updates_that_are_made_again_are_shown_once(tmp_path):
  rows = [{"step": step, "loss": float(step)} for step in range(1, 6)]
  write(tmp_path, rows[:4], keep=0)
  write(tmp_path, [{"step": 3, "loss": 7.0}], keep=2)
  assert shown(tmp_path / "tensorboard") == {("loss", 1): 1, ("loss", 2): 2, ("loss", 3): 7}


def test_a_row_that_is_amended_by_the_next_process_stays(tmp_path):
  rows = [{"step": step, "loss": float(step)} for step in range(1, 4)]
  write(tmp_path, rows[:2], keep=0)
  write(tmp_path, rows[2:], keep=2, amended={"evaluation/accuracy": 0.5})
  expected = {("loss", 1): 1, ("loss", 2): 2, ("evaluation/accuracy", 2): 0.5, ("loss", 3): 3}
  assert shown(tmp_path / "tensorboard") == expected


def test_nothing_is_written_without_a_row_and_closing_twice_is_harmless(tmp_path):
  board = TensorBoard(tmp_path / "tensorboard")
  board.close()
  assert not (tmp_path / "tensorboard").exists()
  board.write(1, {"loss": float("nan")})
  board.close()
  board.close()
  ((at, value),) = shown(tmp_path / "tensorboard").items()
  assert at == ("loss", 1) and value != value
