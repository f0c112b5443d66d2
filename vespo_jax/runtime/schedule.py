"""Who may sample when, and with which weights: every schedule is one inequality.

The minibatch of update u may be ordered from a sampler once

    u - p <= S,          p the newest *published* weight version (every K-th version is published),

and is sampled with version p or newer. So its tokens are at most S updates old when update u trains
on them, whatever happens in between: staleness is bounded at admission and nothing need be dropped.

    sync, N minibatches    S = N - 1   K = N    ordered at p = u - u % N, and trained on u % N later
    one step off           S = 1       K = 1
    async                  S >= K - 1

Two clocks. On the *wall* clock a sampler takes the newest weights there are. On the *logical* clock
an order says which version samples which of its tokens, a function of the update number alone, so
that an asynchronous run is deterministic and every objective sees the same lags.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vespo_jax import files
from vespo_jax.types import Plan, Rollout


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The schedule of a run, a pure function of update numbers.

  Attributes:
    prompts: of one minibatch.
    max_staleness: S, in updates.
    publish_every: K, in updates.
    logical: whether orders say exactly which versions sample them.
    in_flight: whether a response may be continued under newer weights.
    recorded: the plans of a run that is replayed, by update; they take the place of the logical
      clock's own.

  Raises:
    ValueError: if S < K - 1: no order could be placed before the next publication; if a recorded
      plan is one that no order of this schedule can have.
  """

  prompts: int
  max_staleness: int
  publish_every: int = 1
  logical: bool = False
  in_flight: bool = False
  recorded: Mapping[int, Plan] | None = None

  def __post_init__(self):
    if self.max_staleness < self.publish_every - 1:
      raise ValueError(
        f"weights published every {self.publish_every} updates are up to {self.publish_every - 1} "
        f"updates old before the next ones, more than a staleness of {self.max_staleness}"
      )
    for update, plan in (self.recorded or {}).items():
      versions = [version for _, version in plan]
      good = self.may_train(update, versions) and all(map(self.publishes, versions))
      if not good or (len(versions) > 1 and not self.in_flight):
        raise ValueError(
          f"update {update} was sampled with versions {versions} of the weights; where every "
          f"{self.publish_every} updates publish some, at most {self.max_staleness} updates old, "
          f"and a response has {'several' if self.in_flight else 'one'}, that cannot be repeated"
        )

  @classmethod
  def sync(cls, minibatches: int, prompts: int) -> Schedule:
    """N minibatches are rolled out with one set of weights, then trained on one after another.

    Source: arXiv 2602.10693 section 4.1.
    """
    return cls(prompts, minibatches - 1, minibatches, logical=True)

  def publishes(self, version: int) -> bool:
    """Whether `version` is published."""
    return version % self.publish_every == 0

  def published(self, version: int) -> int:
    """The newest published version once `version` updates are committed."""
    return version - version % self.publish_every

  def may_order(self, update: int, version: int) -> bool:
    """Whether the minibatch of `update` may be ordered once `version` updates are committed."""
    return update - self.published(version) <= self.max_staleness

  def may_train(self, update: int, token_versions: Iterable[int]) -> bool:
    """Whether `update` may train on tokens of these versions: none too old or from the future."""
    return all(update - self.max_staleness <= version <= update for version in token_versions)

  def oldest_version(self, update: int) -> int:
    """The oldest version that may sample the minibatch of `update`."""
    return max(-(-(update - self.max_staleness) // self.publish_every) * self.publish_every, 0)

  def plan(self, update: int, max_new_tokens: int) -> Plan:
    """Which versions sample the minibatch of `update`: (from token, version), or () for the newest.

    The logical clock takes the oldest version there may be: the sampler is always S updates behind.
    With responses continued in flight it takes every version from there to the last one before
    `update`, each for an equal share of `max_new_tokens`.
    """
    if self.recorded is not None:
      if update not in self.recorded:
        raise ValueError(f"the recorded schedule has no plan for update {update}")
      return self.recorded[update]
    if not self.logical:
      return ()
    first = self.oldest_version(update)
    if not self.in_flight:
      return ((0, first),)
    versions = range(first, max(first, update - 1) + 1, self.publish_every)
    spans = min(len(versions), max_new_tokens)
    return tuple((i * max_new_tokens // spans, versions[i]) for i in range(spans))

  @property
  def versions_kept(self) -> int:
    """How many published versions must stay readable: those that an order under way may need."""
    exact = self.logical or self.recorded is not None
    return self.max_staleness // self.publish_every + 2 if exact else 2

  def due(self, every: int, version: int) -> bool:
    """Whether something wanted every `every` updates (0: never) is due at `version`.

    It is due at the first publication at or after each multiple of `every`.
    """
    if not every or version == 0 or not self.publishes(version):
      return False
    return version // every > max(version - self.publish_every, 0) // every


def plan_of(rollouts: Iterable[Rollout]) -> Plan | None:
  """The plan that rollouts really followed; None if two of them had different weights at the same
  token."""
  longest: list[int] = []
  for rollout in rollouts:
    versions = rollout.weight_versions.tolist()
    shared = min(len(versions), len(longest))
    if versions[:shared] != longest[:shared]:
      return None
    longest = max(longest, versions, key=len)
  return tuple((t, v) for t, v in enumerate(longest) if t == 0 or v != longest[t - 1])


def record(path: Path, update: int, plan: Plan | None) -> None:
  """Appends what an update's minibatch was sampled with to the schedule's file."""
  with path.open("a") as file:
    file.write(json.dumps({"update": update, "plan": plan}) + "\n")


def truncate(path: Path, updates: int) -> None:
  """Cuts the schedule's file back to the first `updates` updates; no file is an empty one. Raises
  ValueError naming the line that says none."""
  lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
  kept = []
  for number, line in enumerate(lines, start=1):
    try:
      if line.endswith(b"\n") and json.loads(line)["update"] < updates:
        kept.append(line)
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(f"{path}, line {number}: no plan of an update ({error!r})") from error
  files.write(path, b"".join(kept))


def _plan(update: int, plan: list[list[int]] | None) -> Plan | None:
  """A plan as it was recorded. Raises ValueError if no order can have had it."""
  if plan is None:
    return None
  if plan == []:  # of a minibatch without tokens
    return ()
  starts, versions = zip(*plan, strict=True)
  whole = all(type(number) is int for number in (*starts, *versions))
  ascending = list(starts) == sorted({0, *starts})
  if not whole or not ascending or min(versions) < 0 or max(versions) > update:
    raise ValueError("no plan")
  return tuple(zip(starts, versions, strict=True))


def read_recorded(path: Path) -> dict[int, Plan]:
  """The plans that `record` wrote, the last one of each update.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: naming the line that is not such a record, or the update whose sequences had
      different weights at the same token, so that it has no plan.
  """
  plans: dict[int, Plan | None] = {}
  for number, line in enumerate(path.read_text().splitlines(), start=1):
    try:
      entry: dict[str, Any] = json.loads(line)
      plans[entry["update"]] = _plan(entry["update"], entry["plan"])
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
      raise ValueError(f"{path}, line {number}: not a recorded plan") from error
  known = {update: plan for update, plan in plans.items() if plan is not None}
  missing = sorted(set(plans) - set(known))
  if missing:
    raise ValueError(
      f"{path}: the sequences of update {missing[0]} were sampled with different weights at the "
      "same token; a schedule can be replayed if every minibatch had a slot for all its sequences"
    )
  return known
