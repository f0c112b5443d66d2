"""Runs the sweeps: every objective in every setting, one record each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from experiments.estimators import exact, monte_carlo, sweeps
from experiments.estimators.estimates import Setting, conditions
from experiments.estimators.families import family
from experiments.estimators.presets import Preset
from vespo_jax import advantages, objectives
from vespo_jax.objectives import Objective

COMMON = "seq-mean-token-sum"  # of the first table: the aggregation that makes g^ estimate grad J
GROUP_ADVANTAGE = "grpo"
GROUP_SWEEP = "staleness"  # where group-normalised advantages are tried too

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
  """An objective and what kind it is."""

  objective: Objective
  family: str


def entries() -> list[Entry]:
  """Every registered objective with its defaults."""
  made = [objectives.make(name) for name in objectives.names()]
  return [Entry(objective, family(objective)) for objective in made]


def records(preset: Preset, every: list[Entry]) -> Iterator[tuple[Setting, list[Record]]]:
  """Each setting of each seed with its records.

  A record says what was estimated (`sweep`, `value`, `seed`, `objective`, `family`, `advantage`,
  `table`, `aggregation`, `batch_size`), how (`method`: `exact` or `monte_carlo`), how far apart the
  policies are (`estimates.conditions`), and how good the estimate is (`Moments.numbers`; a Monte
  Carlo number has its standard error as `NAME_se`). `variance_single` is that of one sequence, null
  where an objective or an advantage needs a batch. `table` is `common` or `own`: whose aggregation.
  """
  for seed in preset.seeds:
    for setting in sweeps.settings(preset, seed):
      shared = {"sweep": setting.sweep, "value": setting.value, "seed": seed}
      shared |= {"batch_size": preset.batch_size} | conditions(setting)
      yield setting, [shared | record for record in _setting(preset, seed, setting, every)]


def _setting(preset: Preset, seed: int, setting: Setting, every: list[Entry]) -> Iterator[Record]:
  batches = monte_carlo.draw(setting, preset.batches, preset.batch_size, seed)
  for entry in every:
    if entry.objective.batch_wide:
      yield from _sampled(setting, batches, entry, "expected", ("common", "own"))
    else:
      yield from _exact(preset, setting, entry)
  if setting.sweep == GROUP_SWEEP:
    advantage = advantages.make(GROUP_ADVANTAGE)
    grouped = monte_carlo.in_groups(batches, setting.target.rewards_B, advantage, preset.group_size)
    for entry in every:
      yield from _sampled(setting, grouped, entry, "group", ("own",))


def _aggregation(table: str, objective: Objective) -> str:
  return COMMON if table == "common" else objective.aggregation


def _labels(entry: Entry, advantage: str, table: str, method: str) -> Record:
  return {
    "objective": entry.objective.name,
    "family": entry.family,
    "advantage": advantage,
    "table": table,
    "aggregation": _aggregation(table, entry.objective),
    "method": method,
  }


def _exact(preset: Preset, setting: Setting, entry: Entry) -> Iterator[Record]:
  weights_BT = exact.token_weights(entry.objective, setting)
  for table in ("common", "own"):
    aggregation = _aggregation(table, entry.objective)
    batch, single = exact.moments(setting, weights_BT, aggregation, (preset.batch_size, 1))
    labels = _labels(entry, "expected", table, "exact")
    yield labels | batch.numbers() | {"variance_single": single.numbers()["variance"]}


def _sampled(
  setting: Setting,
  batches: monte_carlo.Batches,
  entry: Entry,
  advantage: str,
  tables: tuple[str, ...],
) -> Iterator[Record]:
  weights_JRT = monte_carlo.token_weights(entry.objective, setting, batches)
  for table in tables:
    aggregation = _aggregation(table, entry.objective)
    numbers = monte_carlo.numbers(setting, batches, weights_JRT, aggregation)
    yield _labels(entry, advantage, table, "monte_carlo") | numbers | {"variance_single": None}
