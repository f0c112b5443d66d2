"""Reads a run directory into plain values, without drawing anything."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vespo_jax import metrics

MAX_ROLLOUTS = 600
MAX_ROLLOUT_FILES = 60
MAX_TEXT = 6000  # characters of one prompt or response

_T = TypeVar("_T")


class RunError(ValueError):
  """A run directory cannot be reported on; the message says which file and why."""


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run directory holds.

  Attributes:
    workdir: the run directory.
    rows: metrics, in the order of their updates; never empty.
    config: the resolved config, nested; empty when the file is missing.
    result: what the run ended with; empty while it has not ended.
    rollouts: a sample of at most `MAX_ROLLOUTS` rollouts, whole groups spread over the updates.
    rollouts_total: how many rollouts the directory holds.
  """

  workdir: Path
  rows: list[dict[str, Any]]
  config: dict[str, Any]
  result: dict[str, Any]
  rollouts: list[dict[str, Any]]
  rollouts_total: int

  @property
  def name(self) -> str:
    """The run's name: the last part of its directory."""
    return self.workdir.resolve().name

  def setting(self, name: str) -> Any:
    """The config's value under a dotted name such as `objective.name`; None when absent."""
    value: Any = self.config
    for part in name.split("."):
      if not isinstance(value, dict) or part not in value:
        return None
      value = value[part]
    return value


def load(workdir: str | os.PathLike[str]) -> Run:
  """Reads a run directory. Raises RunError if it, or its metrics, are missing or unreadable."""
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
  rollouts, total = _load_rollouts(path / "rollouts")
  return Run(
    workdir=path,
    rows=rows,
    config=_load_object(path / "config.json"),
    result=_load_object(path / "result.json"),
    rollouts=rollouts,
    rollouts_total=total,
  )


def evaluations(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The held-out evaluations a result holds, by "before" and "after"."""
  found = {when: result.get(f"evaluation_{when}") for when in ("before", "after")}
  return {when: evaluation for when, evaluation in found.items() if evaluation}


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


def _load_rollouts(folder: Path) -> tuple[list[dict[str, Any]], int]:
  """A spread sample of the rollouts under `folder`, and how many there are in all."""
  files = sorted(folder.glob("*.jsonl"))
  chosen = _spread(files, MAX_ROLLOUT_FILES)
  rollouts = []
  for file in chosen:
    rollouts += _whole_groups(_read_rollouts(file), MAX_ROLLOUTS // len(chosen))
  return rollouts, sum(file.read_bytes().count(b"\n") for file in files)


def _read_rollouts(file: Path) -> list[dict[str, Any]]:
  lines = file.read_bytes().split(b"\n")[:-1]  # what follows the last newline is half-written
  try:
    rollouts = [json.loads(line, parse_constant=str) for line in lines]
  except ValueError as error:
    raise RunError(f"{file}: not JSON lines ({error})") from error
  return [
    {k: _shorten(v) if isinstance(v, str) else v for k, v in rollout.items()}
    for rollout in rollouts
  ]


def _whole_groups(rollouts: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
  """At most `limit` rollouts, the samples of one prompt together, prompts spread over the file."""
  groups: dict[Any, list[dict[str, Any]]] = {}
  for rollout in rollouts:
    groups.setdefault(rollout.get("group_id"), []).append(rollout)
  largest = max(map(len, groups.values()), default=1)
  kept = _spread(list(groups.values()), max(limit // largest, 1))
  return [rollout for group in kept for rollout in group][:limit]


def _spread(items: Sequence[_T], limit: int) -> list[_T]:
  """At most `limit` of the items, evenly spaced, the first and the last among them."""
  if len(items) <= limit:
    return list(items)
  if limit == 1:
    return [items[len(items) // 2]]
  return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def _shorten(text: str) -> str:
  """A long text without its middle, which says how much was left out."""
  if len(text) <= MAX_TEXT:
    return text
  head, tail = text[: MAX_TEXT * 2 // 3], text[-MAX_TEXT // 3 :]
  return f"{head}\n[... {len(text) - MAX_TEXT} characters left out ...]\n{tail}"
