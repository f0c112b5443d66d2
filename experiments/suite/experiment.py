"""What a file of `experiments/` declares: its runs, and the paper's claims about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.suite import statistics
from experiments.suite.results import Result
from experiments.suite.runs import Run

DENSE, MOE = "configs/testbed.py", "configs/testbed_moe.py"
CODE, LONG = "configs/testbed_code.py", "configs/testbed_long.py"
PAPER = {config: "configs/paper/qwen3_30b_a3b.py" for config in (DENSE, MOE, LONG)}  # main model
PAPER[CODE] = "configs/paper/code.py"
ACCURACY = "evaluation/accuracy"  # the curve of the evaluations
Cell = tuple[str, int, str, tuple[tuple[str, Any], ...]]
Draw = Callable[["Experiment", Sequence[Result], Path], None]
METHODS: Mapping[str, tuple[tuple[str, Any], ...]] = {  # at their defaults, under their names
  name: (("objective.name", name),)
  for name in (
    *("vespo", "grpo", "gspo", "sapo", "topr", "cispo", "bapo", "minpro", "minirl", "m2po"),
    *("dppo_tv", "sequence_is", "reinforce"),
  )
} | {
  # VCPO is three things at once: the objective, its baseline and its step size
  "vcpo": (
    ("objective.name", "vcpo"),
    ("advantage.name", "vcpo"),
    ("optimizer.ess_scaling", "sqrt"),
  ),
}


# At the paper's scale W is against the recomputation, but for methods that are published against
# what sampled; the testbed has that for all, if its runs do not say otherwise.
AT_PAPER_SCALE: Mapping[str, tuple[tuple[str, Any], ...]] = {
  name: (("correction.denominator", "behaviour"),) for name in ("dppo_tv", "vcpo")
}


@dataclasses.dataclass(frozen=True)
class Claim:
  """One sentence about two cells of an experiment, of the paper or a question of our own.

  Attributes:
    text: what is claimed: `better` ends above `worse`.
    paper: the paper's figures for `better` and `worse`, in per cent; its words, where it has no
      figures; None: it is not the paper's.
    better, worse: (method, staleness) of two cells, whose accuracies at the end are compared.
    tie: the paper has the two alike, which no such test can bear out: there is no verdict.
  """

  text: str
  paper: tuple[float, float] | str | None
  better: tuple[str, int]
  worse: tuple[str, int]
  tie: bool = False

  def differences(self, cells: Mapping[tuple[str, int], Mapping[int, Result]]) -> list[float]:
    """By how much `better` ends above `worse`, for every seed that both have been run with."""
    return paired_differences(cells.get(self.better, {}), cells.get(self.worse, {}))


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A figure or table of the paper.

  Attributes:
    name: its file, and that of its results.
    title: what it shows, and where the paper has it.
    cells: (method, staleness, config, changes) of every cell; each is run with every seed. What
      follows ", " in a method's name is what its VESPO shares with it ("vespo, int8").
    claims: what is tested.
    curves: metrics of its figure, a row each, `ACCURACY` among them.
    seeds: how many, unless the command says otherwise.
    first_seed: of them.
    alone: the clock is measured: one run at a time, on all cores.
    draw: its figure; None: the curves.
    analysis: Markdown that stands below its table; None: nothing.
    testbed: changes that all runs make at the testbed's scale; the paper's configs have their own.
    at_paper_scale: changes that all runs make at the paper's scale.
    paper: the config in the place of each of the testbed's, at the paper's scale; empty: there is
      none, because it is about the testbed.
  """

  name: str
  title: str
  cells: Sequence[Cell]
  claims: Sequence[Claim]
  curves: Sequence[str] = (ACCURACY, "reward/mean")
  seeds: int = 3
  first_seed: int = 0
  alone: bool = False
  draw: Draw | None = None
  analysis: Callable[[Sequence[Result]], str] | None = None
  testbed: tuple[tuple[str, Any], ...] = ()
  at_paper_scale: tuple[tuple[str, Any], ...] = ()
  paper: Mapping[str, str] = dataclasses.field(default_factory=lambda: PAPER)

  @property
  def verdict_seeds(self) -> int:
    """How many a verdict needs: all that were planned, so that nobody stops where it is welcome."""
    return max(statistics.FEWEST, self.seeds)

  def runs(
    self,
    seeds: int,
    extra: Sequence[tuple[str, Any]] = (),
    configs: Mapping[str, str] | None = None,
  ) -> list[Run]:
    """All runs, seed by seed, so that a part of them is a smaller experiment; with changes that all
    make, and with the configs that `configs` puts in the place of others."""
    added = (*(self.at_paper_scale if configs else self.testbed), *extra)

    def published(changes: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
      given = dict(changes)
      own = AT_PAPER_SCALE.get(given.get("objective.name", ""), ()) if configs else ()
      return tuple(change for change in own if change not in added and change[0] not in given)

    of = configs or {}
    return [
      Run(
        self.name,
        method,
        seed,
        staleness,
        of.get(config, config),
        (*changes, *published(changes), *added),
      )
      for seed in range(self.first_seed, self.first_seed + seeds)
      for method, staleness, config, changes in self.cells
    ]

  def own(
    self,
    results: Sequence[Result],
    extra: Sequence[tuple[str, Any]] = (),
    configs: Mapping[str, str] | None = None,
  ) -> list[Result]:
    """Those results that are of its runs, as `runs` has them, under the names they have here: a
    file keeps what was run under earlier settings too."""
    seeds = 1 + max((result["seed"] for result in results), default=0) - self.first_seed
    runs = {run.key: run for run in self.runs(max(seeds, 0), extra, configs)}
    return [
      {**result, "method": run.method, "staleness": run.staleness}
      for result in results
      if (run := runs.get(result["key"]))
    ]


def synchronous(
  methods: Sequence[str], stalenesses: Sequence[int], config: str = DENSE
) -> list[Cell]:
  """The cells of methods by N."""
  return [
    (method, n, config, (*METHODS[method], ("staleness.minibatches", n)))
    for n in stalenesses
    for method in methods
  ]


def variants(
  changes: Mapping[str, tuple[tuple[str, Any], ...]], stalenesses: Sequence[int]
) -> list[Cell]:
  """The cells of VESPO with the changes of each variant, by N."""
  return [
    (name, n, DENSE, (*METHODS["vespo"], ("staleness.minibatches", n), *change))
    for n in stalenesses
    for name, change in changes.items()
  ]


def paired_differences(one: Mapping[int, Result], other: Mapping[int, Result]) -> list[float]:
  """The accuracy at the end of one cell less another's, for every seed that both have been run
  with."""
  return [one[seed]["after"] - other[seed]["after"] for seed in sorted(one) if seed in other]


def by_cell(results: Sequence[Result]) -> dict[tuple[str, int], dict[int, Result]]:
  """Results by (method, staleness), then by seed; of two for one seed the newest."""
  cells: dict[tuple[str, int], dict[int, Result]] = {}
  for result in results:
    cell = cells.setdefault((result["method"], result["staleness"]), {})
    cell[result["seed"]] = result
  return cells
