"""Several runs on one page."""

import json

import numpy as np
import pytest
import synthetic_run
from matplotlib.figure import Figure

from vespo_jax.report import comparison, curves, rundir
from vespo_jax.report.__main__ import main

REWARD = next(figure for figure in curves.FIGURES if figure.name == "reward").panels[0]


@pytest.fixture
def make(tmp_path):
  """Writes a run with changes to its config."""

  def run(name, updates=9, **changes):
    workdir = synthetic_run.write(tmp_path / name, updates=updates, evaluate_every=4)
    config = json.loads((workdir / "config.json").read_text()) | {"updates": 9}
    for key, value in changes.items():
      section, _, rest = key.partition("__")
      if rest:
        config[section][rest] = value
      else:
        config[section] = value
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir

  return run


def groups(*workdirs):
  return comparison.group([rundir.load(workdir) for workdir in workdirs])


def test_runs_that_differ_in_the_seed_alone_are_one(make):
  found = groups(
    make("a"),
    make("b", objective__name="grpo", optimizer__learning_rate=1e-4),
    make("c", seed=1),
    make("d", optimizer__learning_rate=1e-4),
  )
  assert [[run.name for run in each.runs] for each in found] == [["a", "c"], ["b"], ["d"]]
  assert [each.label for each in found] == [
    "vespo, optimizer.learning_rate=0.0003",
    "grpo, optimizer.learning_rate=0.0001",
    "vespo, optimizer.learning_rate=0.0001",
  ]
  assert len({each.colour for each in found}) == 3
  (alone,) = groups(make("e"), make("f", seed=2))
  assert alone.label == "e"


def test_what_is_measured_once_per_rollout_batch_is_drawn_as_it_was(make):
  """The smoothing counts updates, and not measurements."""
  run = make("a", updates=48, staleness__minibatches=8)
  rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
  for row in rows:
    first = row["step"] % 8 == 1
    row |= {"reward/mean": row["step"] / 100} if first else {}
    if not first:
      del row["reward/mean"]
  (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (found,) = groups(run)
  axes = Figure().subplots()
  comparison.draw_group(axes, REWARD, found)
  (line,) = axes.lines
  np.testing.assert_array_equal(line.get_xdata(), range(1, 49, 8))
  assert np.ptp(line.get_ydata()) > 0.3


def test_options_of_methods_that_are_not_used_are_no_label(make):
  vespo = {"k_pos": 1.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0}
  found = groups(make("a"), make("b", objective__vespo=vespo), make("c", objective__name="grpo"))
  assert [each.label for each in found] == [
    "vespo, objective.vespo.k_pos=2.0",
    "vespo, objective.vespo.k_pos=1.0",
    "grpo",
  ]


def test_the_mean_is_drawn_as_far_as_all_runs_have_come_and_the_range_around_it(make):
  longer, shorter = make("a", updates=9), make("b", updates=6, seed=1)
  (found,) = groups(longer, shorter)
  values = [
    [row["reward/mean"] for row in map(json.loads, (run / "metrics.jsonl").open())][:6]
    for run in (longer, shorter)
  ]
  axes = Figure().subplots()
  comparison.draw_group(axes, REWARD, found)
  (line,), (band,) = axes.lines, axes.collections
  np.testing.assert_array_equal(line.get_xdata(), range(1, 7))
  np.testing.assert_allclose(line.get_ydata(), np.mean(values, axis=0))
  assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(np.max(values))


def test_the_page_has_every_figure_and_the_accuracies_and_runs_nothing(make, tmp_path):
  hostile = "<img src=x onerror=alert(1)>"
  workdirs = [make("a"), make("b", seed=1), make("c", task__name=hostile)]
  path = comparison.compare(workdirs, tmp_path / "page.html")
  page = path.read_text()
  assert page.count("data:image/png") == len(curves.FIGURES) - 1  # but the histogram
  assert "<script" not in page and hostile not in page and "task.name=&lt;img" in page
  assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
  after = json.loads((workdirs[0] / "result.json").read_text())["evaluation_after"]
  assert f"<td>{after['accuracy']:.1%}</td>" in page  # of two runs alike
  assert f"{after['accuracy']:.1%} ({after['low']:.1%} to {after['high']:.1%})" in page


def test_a_metric_that_is_never_finite_has_no_figure(make, tmp_path, monkeypatch):
  shown = [figure for figure in curves.FIGURES if figure.name in ("reward", "gradient")]
  monkeypatch.setattr(curves, "FIGURES", tuple(shown))
  workdirs = [make("a"), make("b", seed=1)]
  for workdir in workdirs:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = (json.dumps(row | {"grad/norm": "nan"}) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text("".join(lines))
  assert comparison.compare(workdirs, tmp_path / "page.html").read_text().count("<img") == 1


def test_the_command_writes_a_page_of_several_runs(make, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(curves, "FIGURES", curves.FIGURES[:1])
  workdirs = [str(make("a")), str(make("b", seed=1))]
  assert main(["--workdir", *workdirs]) == 0
  assert capsys.readouterr().out == "comparison.html\n" and (tmp_path / "comparison.html").is_file()
  assert main(["--workdir", *workdirs, "--output=other.html"]) == 0
  assert (tmp_path / "other.html").is_file()
  assert not (tmp_path / "a" / "report.html").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--workdir", "run0", "missing"], "no run directory at missing"),
    (["--workdir", *(f"run{i}" for i in range(9))], "9 kinds of runs: at most 8"),
    (["--workdir", "run0", "--output=x.html"], "--output is of several runs"),
  ],
)
def test_what_cannot_be_compared_exits_2(make, tmp_path, capsys, monkeypatch, arguments, message):
  monkeypatch.chdir(tmp_path)
  for i in range(9 if "run8" in arguments else 1):
    make(f"run{i}", optimizer__learning_rate=float(i))
  try:
    code = main(arguments)
  except SystemExit as error:
    code = error.code
  assert code == 2 and message in capsys.readouterr().err
