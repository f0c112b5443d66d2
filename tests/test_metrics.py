"""Metrics files: equal values give equal bytes, a crash loses nothing; progress on any stream."""

import io
import json
import math
import os
import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax import metrics


def row(step, **values):
  return {"step": step, "weight_version": step, "reward/mean": 0.5 + step / 8, **values}


def test_equal_values_give_equal_bytes_in_a_stable_order(tmp_path):
  values = {"grad/norm": 0.1, "reward/mean": 0.5, "step": 3, "wall_time_s": 9.5, "a/count": 7}
  arrays = {
    "wall_time_s": np.float64(9.5),
    "a/count": np.int64(7),
    "step": jnp.int32(3),
    "reward/mean": jnp.bfloat16(0.5),
    "grad/norm": np.array(0.1),
  }
  for name, written in (("one.jsonl", values), ("two.jsonl", arrays)):
    with metrics.MetricsWriter(tmp_path / name) as writer:
      writer.write(written | {"weight_version": 3})
  data = (tmp_path / "one.jsonl").read_bytes()
  assert data == (tmp_path / "two.jsonl").read_bytes()
  assert data == (
    b'{"step": 3, "weight_version": 3, "a/count": 7, "grad/norm": 0.1, "reward/mean": 0.5, '
    b'"wall_time_s": 9.5}\n'
  )


def test_float32_is_written_exactly(tmp_path):
  value = np.float32(0.1)
  with metrics.MetricsWriter(tmp_path / "m.jsonl") as writer:
    writer.write(row(1, loss=value))
  assert np.float32(metrics.read(tmp_path / "m.jsonl")[0]["loss"]) == value


def test_every_row_is_on_disk_before_the_next(tmp_path):
  writer = metrics.MetricsWriter(tmp_path / "new" / "m.jsonl")
  for step in (1, 2, 3):
    writer.write(row(step))
    assert [r["step"] for r in metrics.read(writer.path)] == list(range(1, step + 1))
  writer.close()


def test_non_finite_values_are_named_and_come_back_as_floats(tmp_path):
  path = tmp_path / "m.jsonl"
  with metrics.MetricsWriter(path) as writer:
    writer.write(row(1, a=float("nan"), b=np.float32("inf"), c=jnp.float32(-jnp.inf)))

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  plain = json.loads(path.read_text(), parse_constant=refuse)
  assert (plain["a"], plain["b"], plain["c"]) == ("nan", "inf", "-inf")
  (back,) = metrics.read(path)
  assert math.isnan(back["a"]) and back["b"] == math.inf and back["c"] == -math.inf


@pytest.mark.parametrize("value", [np.zeros(2), "0.5", None, {"a": 1}])
def test_what_is_not_a_scalar_number_is_refused_by_name(tmp_path, value):
  with metrics.MetricsWriter(tmp_path / "m.jsonl") as writer:
    with pytest.raises(TypeError, match="'objective/loss'"):
      writer.write(row(1, **{"objective/loss": value}))
    with pytest.raises(ValueError, match="step"):
      writer.write({"reward/mean": 0.5})
  assert metrics.read(tmp_path / "m.jsonl") == []


def test_truncate_keeps_the_bytes_of_earlier_rows_and_appends_after_them(tmp_path):
  path = tmp_path / "m.jsonl"
  with metrics.MetricsWriter(path) as writer:
    for step in (1, 2):
      writer.write(row(step))
    kept = path.read_bytes()
    for step in (3, 4):
      writer.write(row(step))
  with metrics.MetricsWriter(path) as writer:
    writer.truncate(2)
    assert path.read_bytes() == kept
    writer.write(row(3))
  assert [r["step"] for r in metrics.read(path)] == [1, 2, 3]
  assert list(tmp_path.iterdir()) == [path]


def test_a_half_written_last_line_is_not_read_and_not_built_upon(tmp_path):
  path = tmp_path / "m.jsonl"
  with metrics.MetricsWriter(path) as writer:
    writer.write(row(1))
    writer.write(row(2))
  whole = path.read_bytes()
  path.write_bytes(whole + b'{"step": 3, "rew')
  assert [r["step"] for r in metrics.read(path)] == [1, 2]
  with metrics.MetricsWriter(path) as writer:
    assert path.read_bytes() == whole
    writer.truncate(5)
    writer.write(row(3))
  assert [r["step"] for r in metrics.read(path)] == [1, 2, 3]


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"reward/mean": 1.0}'])
def test_a_bad_line_is_an_error_that_names_it(tmp_path, line):
  path = tmp_path / "m.jsonl"
  path.write_text('{"step": 1}\n' + line + "\n")
  with pytest.raises(ValueError, match=r"m\.jsonl, line 2"):
    metrics.read(path)


def test_a_text_is_no_value_and_damage_is_not_cut_away(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2, "loss": "low"}\n')
  with pytest.raises(ValueError, match="line 2: 'loss' is no number"):
    metrics.read(path)
  with metrics.MetricsWriter(path) as writer, pytest.raises(ValueError, match="line 2"):
    writer.truncate(1)
  assert path.read_text().endswith('"low"}\n')


def test_of_the_last_rows_alone_anything_is_decoded(tmp_path, monkeypatch):
  path = tmp_path / "m.jsonl"
  path.write_bytes(b"".join(b'{"step": %d}\n' % step for step in range(1, 8)) + b'{"step": 8')
  decoded, loads = [], json.loads
  monkeypatch.setattr(json, "loads", lambda line: decoded.append(line) or loads(line))
  assert [row["step"] for row in metrics.read(path, last=2)] == [6, 7]
  assert len(decoded) == 2
  assert len(metrics.read(path, last=100)) == 7
  with pytest.raises(ValueError, match="line 7"):
    path.write_bytes(path.read_bytes().replace(b'{"step": 7}', b"seven"))
    metrics.read(path, last=1)


def test_the_last_row_is_amended_and_no_other_decoded(tmp_path, monkeypatch):
  path, decoded, loads = tmp_path / "m.jsonl", [], json.loads
  with metrics.MetricsWriter(path) as writer:
    for step in (1, 2, 3):
      writer.write(row(step, loss=math.nan))
    before = path.read_bytes().splitlines(keepends=True)
    monkeypatch.setattr(json, "loads", lambda line: decoded.append(line) or loads(line))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
      patch.setattr(os, "replace", lambda half, path: sys.exit())
      writer.amend({"evaluation/accuracy": 0.5})
    assert path.read_bytes() == b"".join(before)  # whoever is killed meanwhile
    decoded.clear()
    writer.amend({"evaluation/accuracy": 0.25})
    assert decoded == before[-1:]
    writer.write(row(4))
  assert path.read_bytes().splitlines(keepends=True)[:2] == before[:2]
  rows = metrics.read(path)
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert rows[2]["evaluation/accuracy"] == 0.25 and math.isnan(rows[2]["loss"])


def test_strip_timings_leaves_what_a_seed_determines():
  timed = row(4, **{"time/update_s": 0.3, "throughput/sampled_tokens_per_s": 9.0, "wall_time_s": 8})
  assert metrics.strip_timings(timed) == row(4)


def test_text_of_any_language_reaches_a_terminal_and_orders_do_not():
  french, japanese, persian = (
    "10\u202f000\u00a0\u20ac\t",
    "\u6f22\u3000\u5b57\n",
    "\u0645\u06cc\u200c\u062e",
  )
  family, orders = "\U0001f468\u200d\U0001f469", "\x1b\x07\r\x0b\x7f\x9b\u2028\u200b\ufeff\ud800"
  orders += "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
  text = french + japanese + persian + family
  assert metrics.printable(text + orders) == text + "\ufffd" * len(orders)


class Clock:
  """A `time` module whose clock the test moves."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(metrics, "time", clock)
  return clock


def test_plain_progress_shows_the_first_the_last_and_one_in_two_seconds(clock):
  stream = io.StringIO()
  with metrics.Progress(9, stream=stream) as progress:
    for step in range(1, 10):
      progress.update(row(step))
      clock.now += 0.9
    shown = [int(step) for step in re.findall(r"update (\d+)/9", stream.getvalue())]
  assert shown == [1, 4, 7, 9]


def test_plain_progress_describes_an_update_and_when_the_run_ends(clock):
  stream = io.StringIO()
  with metrics.Progress(100, start=40, stream=stream) as progress:
    progress.update(row(41))
    clock.now += 3.0
    values = {"reward/mean": np.float32(0.25), "entropy/mean": 1.5, "staleness/mean": 3.5}
    progress.update(row(42, **values, **{"throughput/trained_tokens_per_s": 12345.6}))
    progress.message("checkpoint 42 saved")
  first, second, message = stream.getvalue().splitlines()
  assert first == "update 41/100  reward 5.625  ETA --:--"
  assert second == (
    "update 42/100  reward 0.250  entropy 1.50  staleness 3.5  12.3k tok/s  ETA 2:54"
  )
  assert message == "checkpoint 42 saved"


def test_plain_progress_shows_the_last_update_of_a_run_that_stops_early(clock):
  stream = io.StringIO()
  with pytest.raises(KeyboardInterrupt), metrics.Progress(10, stream=stream) as progress:
    progress.update(row(1))
    progress.update(row(2))
    raise KeyboardInterrupt
  assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/10", "2/10"]


def test_a_terminal_gets_a_live_bar_with_messages_above_it(monkeypatch):
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "100")
  stream = Terminal()
  with metrics.Progress(4, stream=stream) as progress:
    progress.update(row(1))
    progress.message("[bold] is kept")
    progress.message("\x1b]0;title\x07 and \x9b2J are not")
    progress.update(row(4))
  text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
  assert "[bold] is kept" in text
  assert "\ufffd]0;title\ufffd and \ufffd2J are not" in text
  assert "4/4" in text and "reward 1.000" in text and "\x1b[" in stream.getvalue()
