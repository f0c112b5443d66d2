"""The records of a run, by sweep: what the figures and the findings read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Point = tuple[str, float | str]  # a sweep and a value of it


class Results:
  """All records; every number asked for is found by its labels.

  Args:
    rows: of `run.records`.
  """

  def __init__(self, rows: Sequence[dict[str, Any]]):
    self.rows = rows
    self.objectives = list(dict.fromkeys(row["objective"] for row in rows))
    self.families = {row["objective"]: row["family"] for row in rows}
    self.seeds = list(dict.fromkeys(row["seed"] for row in rows))
    self.sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    self.points = list(dict.fromkeys((row["sweep"], row["value"]) for row in rows))
    self._cells = {
      (
        row["sweep"],
        row["value"],
        row["seed"],
        row["table"],
        row["advantage"],
        row["objective"],
      ): row
      for row in rows
    }

  def values(self, sweep: str) -> list[float | str]:
    """The values of a sweep, in the order they were run."""
    return list(dict.fromkeys(row["value"] for row in self.rows if row["sweep"] == sweep))

  def sweeps_of(self, advantage: str) -> list[str]:
    """The sweeps that were run with an advantage."""
    return list(dict.fromkeys(row["sweep"] for row in self.rows if row["advantage"] == advantage))

  def per_seed(
    self, point: Point, objective: str, metric: str, table: str, advantage: str = "expected"
  ) -> np.ndarray:
    """[seeds]: one number of one objective at one point."""
    cells = [self._cells[*point, seed, table, advantage, objective] for seed in self.seeds]
    return np.array([cell[metric] for cell in cells], float)

  def mean(
    self, point: Point, objective: str, metric: str, table: str, advantage: str = "expected"
  ) -> float:
    """The mean over seeds of one number."""
    return float(self.per_seed(point, objective, metric, table, advantage).mean())

  def error(
    self, point: Point, objective: str, metric: str, table: str, advantage: str = "expected"
  ) -> float:
    """The Monte Carlo standard error of the mean over seeds; 0 where it is exact."""
    cells = [self._cells[*point, seed, table, advantage, objective] for seed in self.seeds]
    errors = np.array([cell.get(f"{metric}_se", 0.0) for cell in cells])
    return float(np.sqrt(np.sum(errors**2)) / len(errors))

  def line(
    self, sweep: str, objective: str, metric: str, table: str, advantage: str = "expected"
  ) -> np.ndarray:
    """[values]: the mean over seeds along a sweep."""
    return np.array(
      [
        self.mean((sweep, value), objective, metric, table, advantage)
        for value in self.values(sweep)
      ]
    )
