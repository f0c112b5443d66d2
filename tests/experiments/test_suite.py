"""The machinery of experiments: what is run, kept, compared and said. No policy is trained here."""

import json
import shlex
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from experiments import (
  asymmetry,
  asynchronous,
  baselines,
  code,
  combination,
  dense_vs_moe,
  frontier,
  gradient_mass,
  kernel_grid,
  kernels,
  length_aware,
  length_norm,
  mismatch,
  per_nat,
  regime,
  staleness,
  tuned,
)
from experiments.suite import cli, results
from experiments.suite.experiment import Experiment
from experiments.suite.pool import Pool
from experiments.suite.runs import Run, scores
from vespo_jax import config_file

EXPERIMENTS = [
  module.EXPERIMENT
  for module in (
    *(asymmetry, asynchronous, baselines, combination, dense_vs_moe, frontier, kernel_grid),
    *(code, length_aware, length_norm, mismatch, per_nat, regime, staleness),
  )
]

STUB = """
import json, pathlib, sys, time
workdir, seed, code = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
workdir.mkdir(parents=True, exist_ok=True)
with (workdir.parent / "started").open("a") as file:
  file.write(f"{seed}\\n")
time.sleep(0.2)
row = {"reward/mean": 0.1 * seed, "grad/norm": 1.0}
(workdir / "config.json").write_text('{"updates": 4}')
(workdir / "metrics.jsonl").write_text(
  "".join(json.dumps({"step": i + 1, **row}) + "\\n" for i in range(4)))
result = {"evaluation_before": {"accuracy": 0.1}, "stop_reason": "finished", "updates": 4}
result["wall_time_s"] = 1.0
(workdir / "result.json").write_text(json.dumps(
  {**result, "evaluation_after": {"accuracy": 0.2 + 0.1 * seed}}))
print("the last line")
sys.exit(code)
"""


@pytest.fixture
def stub(monkeypatch):
  """Runs are a small program that ends with the exit code that the run's method is."""

  def command(self, workdir):
    return [sys.executable, "-c", STUB, str(workdir), str(self.seed), self.method]

  monkeypatch.setattr(Run, "command", command)


def runs(seeds, method="0"):
  return [Run("stub", method, seed, 4, "configs/testbed.py") for seed in range(seeds)]


def pool(tmp_path, name="stub", **settings):
  return Pool(tmp_path / f"{name}.jsonl", tmp_path / "runs", jobs=2, budget_s=60, **settings)


def started(tmp_path):
  return sorted((tmp_path / "runs" / "started").read_text().split())


def test_what_has_a_result_is_not_run_again(stub, tmp_path):
  assert pool(tmp_path).work(runs(2)) == []
  assert pool(tmp_path).work(runs(3)) == []
  assert started(tmp_path) == ["0", "1", "2"]
  kept = results.read(tmp_path / "stub.jsonl")
  assert sorted(result["after"] for result in kept) == pytest.approx([0.2, 0.3, 0.4])
  assert {"experiment", "method", "seed", "staleness", "config_hash", "commit"} <= set(kept[0])
  assert not list((tmp_path / "runs").glob("*.log"))


def test_two_pools_share_the_work(stub, tmp_path):
  threads = [threading.Thread(target=pool(tmp_path).work, args=(runs(4),)) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert started(tmp_path) == ["0", "1", "2", "3"]


def test_another_experiment_takes_a_result_over(stub, tmp_path):
  pool(tmp_path).work(runs(2))
  other = [Run("other", "renamed", seed, 8, "configs/testbed.py") for seed in range(2)]
  assert pool(tmp_path, "other").work(other) == []
  assert started(tmp_path) == ["0", "1"]
  kept = results.read(tmp_path / "other.jsonl")
  assert {result["method"] for result in kept} == {"renamed"}


def test_a_failure_is_told_and_tried_again(stub, tmp_path):
  failures = pool(tmp_path).work(runs(1, method="1"))
  assert len(failures) == 1 and "the last line" in failures[0]
  assert not results.read(tmp_path / "stub.jsonl")
  pool(tmp_path).work(runs(1, method="3"))  # diverged: that is a result
  assert len(results.read(tmp_path / "stub.jsonl")) == 1


def test_no_run_begins_beyond_the_budget(stub, tmp_path):
  Pool(tmp_path / "stub.jsonl", tmp_path / "runs", jobs=1, budget_s=0).work(runs(2))
  assert not (tmp_path / "runs" / "started").exists()


def test_a_half_written_line_is_no_result_and_spoils_none(tmp_path):
  path = tmp_path / "some.jsonl"
  results.append(path, {"key": "a"})
  with path.open("a") as file:
    file.write('{"key": "b"')
  assert results.read(path) == [{"key": "a"}]
  results.append(path, {"key": "c"})
  assert json.loads(path.read_text().splitlines()[-1]) == {"key": "c"}


def test_scores_of_a_run(tmp_path):
  reward = np.concatenate([np.linspace(0.2, 0.8, 60), np.full(40, 0.1)])
  rows = [{"step": i + 1, "reward/mean": x, "grad/norm": 1.0} for i, x in enumerate(reward)]
  rows[49]["evaluation/accuracy"], rows[99]["evaluation/accuracy"] = 0.7, 0.2
  bound = "weight/second_moment_bound_pos"
  rows = [row | {bound: "inf" if row["step"] == 5 else 1.0} for row in rows]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  result = {"evaluation_before": {"accuracy": 0.2}, "stop_reason": "Diverged", "updates": 100}
  result["wall_time_s"] = 300.04
  (tmp_path / "result.json").write_text(json.dumps(result))
  (tmp_path / "config.json").write_text('{"updates": 300}')
  found = scores(tmp_path)
  assert found["asked"] == 300 and results.second_half(found) == 0.0
  assert found["after"] == 0.0 and found["evaluations"] == [(50, 0.7), (100, 0.0)]
  assert results.best(found) == 0.7 and results.collapsed(found)
  assert found["last_reward"] == pytest.approx(0.1) and found["wall_time_s"] == 300.0
  assert len(found["curves"]["reward/mean"]) == len(found["curves"]["step"]) == 64
  assert np.mean(found["curves"]["grad/norm"]) == 1.0
  assert bound not in found["curves"]
  results.append(tmp_path / "some.jsonl", found)


def test_a_run_that_diverged_at_once_has_scores(tmp_path):
  (tmp_path / "metrics.jsonl").touch()
  (tmp_path / "config.json").write_text('{"updates": 300}')
  result = {"evaluation_before": {"accuracy": 0.2}, "stop_reason": "Diverged", "updates": 0}
  (tmp_path / "result.json").write_text(json.dumps({**result, "wall_time_s": 1.0}))
  found = scores(tmp_path)
  assert (found["after"], found["last_reward"], found["curves"]) == (0.0, 0.0, {})
  assert results.collapsed(found) and results.second_half(found) == 0.0
  results.append(tmp_path / "some.jsonl", found)


def test_scores_of_evaluations():
  """The second half is of the same updates however often a run evaluates."""
  often = {"updates": 96, "after": 0.5, "evaluations": [(24, 0.2), (48, 0.9), (72, 0.7), (96, 0.5)]}
  often["before"] = 0.3
  seldom = {"updates": 96, "after": 0.5, "evaluations": [(64, 0.6), (96, 0.4)]}
  assert results.second_half(often) == pytest.approx(0.6)
  assert results.second_half(seldom) == pytest.approx(0.5)
  assert results.best(often) == 0.9 and not results.collapsed(often)
  assert results.collapsed({**often, "after": 0.44})
  dead = {"before": 0.5, "after": 0.0, "evaluations": [(48, 0.0), (96, 0.0)]}
  assert results.collapsed(dead)  # before the first evaluation


def test_at_the_papers_scale_methods_are_against_what_they_are_published_against():
  cells = [
    (name, 8, "x.py", (("objective.name", name),)) for name in ("vespo", "vcpo", "dppo_tv", "grpo")
  ]
  cells.append(("own", 8, "x.py", (("objective.name", "vcpo"), ("correction.denominator", "x"))))
  experiment = Experiment("toy", "", cells, [])
  behaviour = ("correction.denominator", "behaviour")
  at_scale = {
    run.method: behaviour in run.changes for run in experiment.runs(1, (), {"x.py": "y.py"})
  }
  assert at_scale == {"vespo": False, "vcpo": True, "dppo_tv": True, "grpo": False, "own": False}
  assert not any(behaviour in run.changes for run in experiment.runs(1))


def test_results_are_those_of_the_runs_there_are_now(monkeypatch):
  """What was run under other settings is left out, and names are the present ones."""
  cells = [("new name", 8, "x.py", (("a", 1),))]
  experiment = Experiment("toy", "", cells, [], first_seed=1, testbed=(("chunk", 8),))
  mine = [{"key": run.key, "seed": run.seed, "method": "old name"} for run in experiment.runs(3)]
  quick = {"key": experiment.runs(1, (("updates", 8),))[0].key, "seed": 1}
  stranger = {"key": "of other changes", "seed": 5}
  found = experiment.own([*mine, quick, stranger])
  assert [result["seed"] for result in found] == [1, 2, 3]
  assert {(result["method"], result["staleness"]) for result in found} == {("new name", 8)}
  assert experiment.own([quick, *mine], (("updates", 8),))[0]["key"] == quick["key"]
  assert experiment.own([]) == []
  monkeypatch.setattr("experiments.suite.runs.VERSION", 0)
  assert experiment.own(mine) == []


def test_the_papers_configs_make_no_change_of_the_testbeds():
  cells = [("vespo", 8, "x.py", (("a", 1),))]
  experiment = Experiment("toy", "", cells, [], testbed=(("chunk", 8),))
  assert experiment.runs(1)[0].flags == ["--config.a=1", "--config.chunk=8", "--config.seed=0"]
  at_scale = experiment.runs(1, (), {"x.py": "paper.py"})[0]
  assert at_scale.config == "paper.py" and at_scale.flags == ["--config.a=1", "--config.seed=0"]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_experiments_name_their_cells(experiment):
  planned = experiment.runs(2)
  assert len({run.key for run in planned}) == len(planned)
  cells = {(run.method, run.staleness) for run in planned}
  for claim in experiment.claims:
    assert {claim.better, claim.worse} <= cells, claim.text


def test_every_method_has_its_own_best_rate(tmp_path, monkeypatch):
  monkeypatch.setattr(results, "RESULTS", tmp_path)
  for method in ("vespo", "grpo"):
    for rate in regime.RATES if method == "vespo" else regime.RATES[:-1]:
      after = {2e-4: 0.5, 4e-4: 0.5}.get(rate, 0.1)
      line = {"method": f"{method}, {rate:g}", "seed": 0, "after": after}
      results.append(tmp_path / "regime.jsonl", line)
  assert tuned.best_rates() == {"vespo": 2e-4}  # the lower of two alike; GRPO is not searched yet


def test_vespos_surrogate_has_its_closed_form():
  assert max(kernels.error(1.0), kernels.error(-1.0)) < 1e-6


@pytest.mark.parametrize(
  "length,positive,negative", [(32, 0.9021, 0.7943), (128, 0.7045, 0.5045), (512, 0.3389, 0.1985)]
)
def test_the_mass_of_the_gradient(length, positive, negative):
  """Known values at deviations of log W of 0.5, 1 and 2; a length-aware kernel's stays near that of
  the shortest."""
  mass = gradient_mass.mass
  for sign, known in ((1.0, positive), (-1.0, negative)):
    np.testing.assert_allclose(mass("as published", sign, length), known, atol=6e-5)
    shortest = mass("as published", sign, gradient_mass.REFERENCE)
    aware = mass("k and lambda / (T / 8)", sign, length)
    assert known < aware and shortest - 0.03 < aware < shortest


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_the_papers_scale_has_configs(experiment, capsys, tmp_path, monkeypatch):
  """The commands of every run name config files that there are, and change keys of theirs."""
  monkeypatch.setattr(results, "RESULTS", tmp_path)
  if not experiment.paper:
    return
  assert cli.main(experiment, ["--preset=paper", "--commands", "--seeds=1"]) == 0
  commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
  assert len(commands) == len(experiment.cells)
  for command in commands:
    assert command[1:3] == ["-m", "vespo_jax.train"]
    config_file.read_command([command[0], *command[3:]])  # raises ConfigError


def test_bad_options_are_refused(capsys):
  for option, words in (
    ("--seeds=0", "positive"),
    ("--only nobody", "no method 'nobody'"),
    ("--preset=paper --quick", "no quick one"),
  ):
    with pytest.raises(SystemExit) as exit_:
      cli.main(staleness.EXPERIMENT, option.split())
    assert exit_.value.code == 2 and words in capsys.readouterr().err


def test_sigterm_stops_the_runs_too(tmp_path):
  """The runs are stopped and waited for, and the command says how to go on."""
  program = f"""
import pathlib, sys
from experiments import staleness
from experiments.suite import cli, results
from experiments.suite.runs import Run
code = '''
import pathlib, signal, sys, time
def stop(*_):
  time.sleep(4)  # a run takes a while to save itself
  pathlib.Path(sys.argv[1] + ".saved").touch()
  sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1] + ".started").touch()
time.sleep(60)
'''
Run.command = lambda self, workdir: [sys.executable, "-c", code, str(workdir)]
results.RESULTS = pathlib.Path({str(tmp_path)!r})
sys.exit(cli.main(staleness.EXPERIMENT, ["--seeds=1", "--jobs=1", "--scratch={tmp_path}/runs"]))
"""
  process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 60
  while len(list((tmp_path / "runs").glob("*.started"))) < 1 and time.monotonic() < deadline:
    time.sleep(0.1)
  process.terminate()
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 1 and "stopped; the same command goes on" in errors
  assert len(list((tmp_path / "runs").glob("*.saved"))) == 1


@pytest.mark.parametrize("module", [frontier, per_nat])
def test_figures_of_their_own_show_every_cell(module, tmp_path, monkeypatch):
  """Each cell with results is one point; those without are left out, and those of no KL, which a
  logarithm has no place for."""
  drawn, experiment = [], module.EXPERIMENT
  monkeypatch.setattr("matplotlib.axes.Axes.annotate", lambda _, text, xy, **k: drawn.append(xy))
  curves = {"kl/behaviour_policy": [0.01, 0.02], "wall_time_s": [10.0, 20.0]}
  found = [
    {"method": method, "staleness": n, "seed": seed, "after": 0.5, "updates": 2, "curves": curves}
    for method, n, *_ in experiment.cells[1:]
    for seed in range(2)
  ]
  experiment.draw(experiment, found, tmp_path / "figure.png")
  assert len(drawn) == len([name for name, *_ in experiment.cells if "noise 0" != name[-7:]]) - 1
  assert (tmp_path / "figure.png").stat().st_size > 5000
