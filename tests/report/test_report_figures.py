"""Figures: all that was measured is drawn, nothing else, and the trend tells the truth."""

import json
import math

import numpy as np
import pytest
from matplotlib import image

from tests.marks import slow_but
from vespo_jax import metrics
from vespo_jax.report import curves, drawing, rundir


def ink(file):
  """The share of an image's pixels that are coloured, neither white nor grey."""
  rgb = image.imread(file)[..., :3]
  return float(np.mean(rgb.max(-1) - rgb.min(-1) > 0.15))


def rewrite(workdir, rows):
  (workdir / "metrics.jsonl").unlink()
  with metrics.MetricsWriter(workdir / "metrics.jsonl") as writer:
    for row in rows:
      writer.write(row)


def test_every_figure_is_drawn_and_none_is_blank(reported):
  files = {file.stem: file for file in (reported / "figures").glob("*.png")}
  assert set(files) == {"accuracy"} | {figure.name for figure in curves.FIGURES}
  assert image.imread(files["reward"]).shape[:2] == (594, 900)
  assert all(ink(file) > 0.002 for file in files.values() if file.stem != "gradient")  # is grey
  assert len({file.read_bytes() for file in files.values()}) == len(files)


def test_a_figure_without_any_of_its_keys_is_skipped(small_run):
  rewrite(small_run, [{"step": s, "reward/mean": s / 9, "grad/norm": 1.0} for s in range(1, 10)])
  assert set(drawing.draw(rundir.load(small_run))) == {"reward", "gradient"}


@pytest.mark.parametrize("updates", [1, 2, 30])
def test_short_runs_and_gaps_are_drawn(small_run, updates):
  rows = [{"step": s, "reward/mean": s / updates} for s in range(1, updates + 1)]
  rows[-1] |= {"kl/behaviour_policy": 0.1, "grad/norm": math.inf, "entropy/mean": math.nan}
  rewrite(small_run, rows)
  drawn = drawing.draw(rundir.load(small_run))
  assert set(drawn) == {"reward", "kl"}  # nothing finite is known of the others
  assert all(ink(file) > 5e-5 for file in drawn.values())


@pytest.mark.parametrize("size", slow_but([3e-6, 1.0, 3e4], 3e4))
def test_nothing_is_cut_off_at_the_margins(small_run, size, monkeypatch):
  panels = [panel for figure in curves.FIGURES for panel in figure.panels]
  percent = {line.key: np.clip(size, 0.01, 10.0) for p in panels if p.percent for line in p.lines}
  sizes = {line.key: size for panel in panels for line in panel.lines} | percent
  rows = [{"step": s} | {k: x * (1 + s / 9) for k, x in sizes.items()} for s in range(1, 10)]
  rewrite(small_run, rows)
  outside, save = {}, drawing.Canvas.savefig

  def saved(canvas, path):
    save(canvas, path)
    box, (width, height) = canvas.get_tightbbox(), canvas.get_size_inches()
    outside[path.stem] = -min(box.x0, box.y0, width - box.x1, height - box.y1)

  monkeypatch.setattr(drawing.Canvas, "savefig", saved)
  assert set(drawing.draw(rundir.load(small_run))) == set(outside) > {"kl", "log_weight"}
  assert max(outside.values()) < 0, outside


def painted(file, colour):
  """How many of an image's pixels have a colour, given as "#rrggbb"."""
  wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  return int(np.all(np.abs(image.imread(file)[..., :3] - wanted) < 0.02, axis=-1).sum())


@pytest.mark.parametrize("updates", [4, 40])
def test_the_timeline_shows_shares_of_time(small_run, updates):
  """The learner waits 3 s of every 4 on average, whatever update its waiting falls on."""
  rows = [
    {"step": s, "time/update_s": 1.0, "time/wait_s": 3.0 if updates < 12 else 24.0 * (s % 8 == 0)}
    for s in range(1, updates + 1)
  ]
  rewrite(small_run, rows)
  alone = drawing.draw(rundir.load(small_run))["timeline"]
  waiting, busy = painted(alone, curves.PALE), painted(alone, curves.ORANGE)
  assert painted(alone, curves.BLUE) == 0  # nothing is known of the samplers
  assert 2.7 < waiting / busy < 3.3
  assert waiting + busy > 0.4 * image.imread(alone)[..., 0].size  # the shares add up to all of it
  idle = {"time/sample_s": 2.0, "time/sampler_wait_s": 1.0, "time/queue_depth": 3}
  rewrite(small_run, [row | idle for row in rows])
  both = drawing.draw(rundir.load(small_run))["timeline"]
  waiting, sampling = painted(both, curves.PALE), painted(both, curves.BLUE)
  busy = painted(both, curves.ORANGE)
  assert 1.8 < sampling / (waiting - 3 * busy) < 2.2
  rewrite(small_run, [{"step": 1, "time/update_s": 1.0}])
  assert "timeline" not in drawing.draw(rundir.load(small_run))  # a share of what?


def test_one_evaluation_alone_is_drawn(small_run):
  evaluation = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "problems": 9, "samples_per_problem": 2}
  result = {
    "stop_reason": "Diverged: why",
    "evaluation_before": None,
    "evaluation_after": evaluation,
  }
  (small_run / "result.json").write_text(json.dumps(result))
  assert ink(drawing.draw(rundir.load(small_run))["accuracy"]) > 0.002


def test_the_trend_of_a_staleness_ramp_is_its_mean_up_to_both_ends():
  ramp = np.arange(64) % 8
  np.testing.assert_allclose(drawing.smooth(ramp.astype(float), 8, 2.0), 3.5, rtol=1e-12)


def test_the_trend_ignores_what_is_not_finite():
  values = np.full(50, 2.0)
  values[[3, 20, 21]] = np.nan, np.inf, -np.inf
  np.testing.assert_allclose(drawing.smooth(values, 4, 1.5), 2.0, rtol=1e-12)
  assert np.isnan(drawing.smooth(np.full(5, np.nan), 1, 1.0)).all()


def test_the_trend_of_a_line_is_the_line_inside_and_of_a_step_is_between():
  line = np.linspace(0.0, 1.0, 101)
  np.testing.assert_allclose(drawing.smooth(line, 1, 2.0)[10:-10], line[10:-10], atol=1e-12)
  step = drawing.smooth((np.arange(100) >= 50).astype(float), 1, 2.0)
  assert step[30] == 0 and step[70] == 1 and 0.3 < step[49] < step[50] < 0.7
  assert len(drawing.smooth(np.ones(3), 8, 1.0)) == 3
