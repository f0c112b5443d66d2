"""One page of everything that has been run: `python -m experiments.summary`.

Writes docs/experiments/README.md from the committed results alone; runs nothing.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.suite import page
from experiments.suite import results as results_lib
from experiments.suite import statistics as verdicts_lib
from experiments.suite.cli import FIGURES
from experiments.suite.experiment import Experiment, by_cell
from experiments.suite.results import Result

NAMES = (
  *("regime", "staleness", "tuned", "baselines", "asynchronous", "mismatch", "length_norm"),
  *("asymmetry", "kernel_grid", "dense_vs_moe", "code", "long_responses", "length_aware"),
  *("frontier", "combination", "per_nat"),
)
HEAD = """\
# Experiments

Figures and tables of the paper at a scale that two CPU cores can run. Each is one command,
`python -m experiments.NAME`, which runs what is missing from `experiments/results/NAME.jsonl`, one
line a run, and draws what is there. Every run starts from the same bytes and asks the same prompts
in the same order. Kernels, clip widths and temperatures are the published ones of each method, and
MinPRO's, for which none are published, ours (`vespo_jax/objectives` says which); learning rate
(2e-4 where none is named), Adam, GRPO's advantages (divided by their deviation) and W against what
the sampler reported are shared, but for VCPO's own advantages and step and where a name says
"(own)"; in `mismatch` W is against the recomputation where no name says "(behaviour)". GRPO has no
dual clip.

Figures are means over seeds with 95 % intervals (Student's t); p is of the paired t-test over
seeds. A claim is judged by the accuracy on held-out problems at the end: one of the paper is
*reproduced* or *contradicted* if p < 0.05, and otherwise *not seen at this scale*; one that is not
the paper's *holds here*, or its reverse does, or there is *no difference seen*. There is no verdict
before all planned seeds are there (three, five of `staleness` and `dense_vs_moe`, eight of
`combination` and `length_aware`), and none where the paper has a tie. No run is left out, and
beside the end stand the mean of the evaluations in the second half, the best one, and the mean
reward of the last tenth of the updates, whose responses are of weights up to N updates older. (Runs
of `code` are evaluated twice, so that the first of these is the end, those at N = 64 three times,
those of `long_responses` and `length_aware` four, and others six.) A run has collapsed that ends
below half of its best evaluation, the one before training included. What is selected is the
learning rate of `tuned`, by one run at each of six rates on the problems that all runs are
evaluated on.

Lines of results were changed twice: five runs that the machine had stopped in their middle were
taken out and made again; and 12 of `mismatch` were named "(behaviour)", which is what they are.

The paper's figures are of its third version and of checkpoints that were the best on the test sets
themselves, one seed each; but those of `asynchronous` are read off a plot of its first version at
update 1,450, and those of `code` are pass@10. The first version has others too (VESPO 66.9 at
N = 8, and 57.2 in another table of the same).

`python -m experiments.kernels` draws figure 2, `python -m experiments.estimators` holds every
estimator against an exact gradient ([found](../estimators.md)),
`python -m experiments.gradient_mass` shows what kernels leave of the gradient as responses grow:

![gradient_mass](gradient_mass.png)

Every claim that has been run with all its seeds:

![claims](claims.png)
"""
MANY_TESTS = """\
Verdicts are each of one test. Of {all} claims (one that two experiments make of the same runs
counts once, with the more seeds) {small} have p < 0.05, where chance alone would give {chance:.1f};
held against one another, with a false discovery rate of 5 % (Benjamini and Hochberg), {left} stand.
"""
BUDGET = """## What it costs

A run is of one core, and two cores work off two at a time (`--jobs=2`, the default; `frontier`,
which measures the clock, has both). Minutes are the median of the runs that have been made, on
whatever machine and beside whatever other work; where there is none, that of all. (A run of the
dense policy takes 85 to 95 s of an AVX-512 core that does nothing else, as most of `per_nat` had,
and three to six minutes of an AVX2 core beside other work, as most of the others had: on two of the
former all would take about eight hours.) A run that two experiments share is made once, and counted
here in both.

| experiment | runs made | of | minutes a run | hours left on two cores |
| --- | --- | --- | --- | --- |
"""


def main() -> int:
  """Writes the page and prints the count of verdicts."""
  experiments: list[Experiment] = [
    importlib.import_module(f"experiments.{name}").EXPERIMENT for name in NAMES
  ]
  made = {
    experiment.name: experiment.own(
      results_lib.read(results_lib.RESULTS / f"{experiment.name}.jsonl")
    )
    for experiment in experiments
  }
  parts, verdicts = [HEAD, many_tests(experiments, made), budget(experiments, made)], []
  for experiment in experiments:
    name, results = experiment.name, made[experiment.name]
    if not results:
      parts.append(f"## {experiment.title}\n\nNot run yet.\n")
      continue
    text = page.markdown(experiment, results)
    verdicts += [v for v in VERDICTS for line in text.splitlines() if line.endswith(f"| {v} |")]
    minutes = sum(result["wall_time_s"] for result in results) / 60
    commits = len({result["commit"] for result in results})
    note = f"{len(results)} runs, {minutes:.0f} core-minutes, {commits} commits."
    parts.append(f"{text}\n{note}\n\n![{name}]({name}.png)\n")
  warning = FIGURES / "early_warning.md"  # `python -m experiments.early_warning` reads all of them
  if warning.is_file():
    parts.append(f"{warning.read_text()}\n![early_warning](early_warning.png)\n")
  page.draw_claims(experiments, made, FIGURES / "claims.png")
  FIGURES.mkdir(parents=True, exist_ok=True)
  Path(FIGURES / "README.md").write_text("\n".join(parts))
  for verdict in VERDICTS:
    print(f"{verdict}: {verdicts.count(verdict)}")
  return 0


def many_tests(experiments: Sequence[Experiment], made: Mapping[str, Sequence[Result]]) -> str:
  """What is left of the verdicts when all claims are held against one another."""
  tests: dict[frozenset[str], Sequence[float]] = {}  # by the runs of one seed
  for experiment in experiments:
    cells = by_cell(made[experiment.name])
    for claim, differences in page.judged(experiment, made[experiment.name]):
      better, worse = cells[claim.better], cells[claim.worse]
      seed = min(better.keys() & worse.keys())
      runs = frozenset((better[seed]["key"], worse[seed]["key"]))
      tests[runs] = max(tests.get(runs, ()), differences, key=len)
  p_values = [verdicts_lib.paired_p(differences) for differences in tests.values()]
  small = sum(p < verdicts_lib.LEVEL for p in p_values)
  return MANY_TESTS.format(
    all=len(p_values),
    small=small,
    chance=verdicts_lib.LEVEL * len(p_values),
    left=verdicts_lib.discoveries(p_values),
  )


def budget(experiments: Sequence[Experiment], made: Mapping[str, Sequence[Result]]) -> str:
  """The table of what has been run of each experiment, how long the rest takes, and all took."""
  minutes = lambda results: statistics.median([r["wall_time_s"] / 60 for r in results])
  usual = minutes([r for results in made.values() for r in results] or [{"wall_time_s": 0.0}])
  rows, hours = [], 0.0
  for experiment in experiments:
    runs = {run.key for run in experiment.runs(experiment.seeds)}
    mine = [result for result in made[experiment.name] if result["key"] in runs]
    each = minutes(mine) if mine else usual
    left = (len(runs) - len(mine)) * each / 60 / (1 if experiment.alone else 2)
    hours += left
    rows.append(f"| {experiment.name} | {len(mine)} | {len(runs)} | {each:.1f} | {left:.1f} |")
  seconds = {r["key"]: r["wall_time_s"] for results in made.values() for r in results}
  took = sum(seconds.values()) / 3600
  all_of_them = f"The {len(seconds)} different runs took {took:.0f} core-hours as they were made."
  return BUDGET + "\n".join([*rows, f"| all | | | | {hours:.1f} |", "", all_of_them]) + "\n"


VERDICTS = (
  *(verdicts_lib.REPRODUCED, verdicts_lib.NOT_SEEN, verdicts_lib.CONTRADICTED),
  *(verdicts_lib.HOLDS, verdicts_lib.NO_DIFFERENCE, verdicts_lib.REVERSED, verdicts_lib.TOO_FEW),
  verdicts_lib.TIE,
)

if __name__ == "__main__":
  sys.exit(main())
