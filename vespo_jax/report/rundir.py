"""Reads a run directory into plain values, without drawing anything."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vespo_jax import metrics
from vespo_jax.report.rollouts import load as load_rollouts


class RunError(ValueError):
  """A run directory cannot be reported on; the message says which file and why."""


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run directory holds.

  Attributes:
    workdir: the run directory.
    rows: metrics, in the order of their updates; never empty.
    config: the resolved config, nested; empty when the file is missing.
    result: what the run ended with; while it has not ended, at most `evaluation_before`.
    failure: why it could not go on, in words; "" where its last update is good.
    rollouts: the sample of its rollouts that `report.rollouts.load` takes.
    rollouts_total: how many rollouts the directory holds.
  """

  workdir: Path
  rows: list[dict[str, Any]]
  config: dict[str, Any]
  result: dict[str, Any]
  failure: str
  rollouts: list[dict[str, Any]]
  rollouts_total: int

  @property
  def name(self) -> str:
    """The run's name: the last part of its directory."""
    return self.workdir.resolve().name

  @property
  def updates(self) -> int:
    """How many it has made; a bad one that ended it is none."""
    return self.result.get("updates", self.rows[-1]["step"])

  def setting(self, name: str) -> Any:
    """The config's value under a dotted name such as `objective.name`; None when absent."""
    value: Any = self.config
    for part in name.split("."):
      if not isinstance(value, dict) or part not in value:
        return None
      value = value[part]
    return value


def load(workdir: str | os.PathLike[str], *, rollouts: bool = True) -> Run:
  """Reads a run directory, unless told not to with a sample of its rollouts. Raises RunError if it,
  or its metrics, are missing or unreadable."""
  path = Path(workdir)
  if not path.is_dir():
    raise RunError(f"no run directory at {workdir}")
  if not (path / "metrics.jsonl").is_file():
    raise RunError(f"{workdir} has no metrics.jsonl: not a run directory, or nothing trained yet")
  try:
    rows = metrics.read(path / "metrics.jsonl")
  except ValueError as error:
    raise RunError(str(error)) from error
  if not rows:
    raise RunError(f"{workdir}/metrics.jsonl is empty: no update has been committed yet")
  if "data/nll" in rows[-1]:
    raise RunError(f"{workdir} is of vespo_jax.sft, which has no report: see its metrics.jsonl")
  failure = _failure(path, rows[-1]["step"])
  try:
    sample, total = load_rollouts(path, failed=bool(failure)) if rollouts else ([], 0)
  except ValueError as error:
    raise RunError(str(error)) from error
  return Run(
    workdir=path,
    rows=rows,
    config=_load_object(path / "config.json"),
    result=_current(_load_object(path / "result.json"), rows[-1]["step"]),
    failure=failure,
    rollouts=sample,
    rollouts_total=total,
  )


def evaluations(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The held-out evaluations a result holds, by "before" and "after"."""
  found = {when: result.get(f"evaluation_{when}") for when in ("before", "after")}
  return {when: evaluation for when, evaluation in found.items() if evaluation}


def _current(result: dict[str, Any], step: Any) -> dict[str, Any]:
  """The result of the attempt that made the last row; of an earlier attempt's, what was measured
  before training.

  A run ends with the row of its last update or of the one before, a diverged one with that of the
  bad update, which is not counted.
  """
  updates = result.get("updates")
  if not isinstance(updates, int) or not isinstance(step, int):
    return result
  diverged = str(result.get("stop_reason")).startswith("Diverged")
  if step - updates in ((1,) if diverged else (-1, 0)):
    return result
  return {key: result[key] for key in result.keys() & {"evaluation_before"}}


def _failure(path: Path, step: Any) -> str:
  found = _load_object(path / "failure" / "report.json")
  return str(found.get("why", "")) if found.get("update") == step else ""


def _load_object(path: Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_bytes(), parse_constant=str)
  except ValueError as error:
    raise RunError(f"{path}: not JSON ({error})") from error
  if not isinstance(value, dict):
    raise RunError(f"{path}: not a JSON object")
  return value
