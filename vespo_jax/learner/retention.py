"""Which checkpoints of a run are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from orbax.checkpoint import checkpoint_managers as policies


@dataclasses.dataclass(frozen=True)
class Retention:
  """Which checkpoints are kept: the union of three rules.

  Attributes:
    keep_last: the newest ones, at least 1.
    keep_every: those at least so many updates after the one kept before; 0 is off.
    keep_best: those with the largest `best_metric`; 0 is off.
    best_metric: of the last update before the checkpoint; one without it, or with one that is not
      finite, is the worst. After a "-", as in -held_out/nll, the smallest are the best.
  """

  keep_last: int = 2
  keep_every: int = 0
  keep_best: int = 0
  best_metric: str = "reward/mean"

  @property
  def metric(self) -> str:
    """The name of the best metric."""
    return self.best_metric.removeprefix("-")

  def score(self, metrics: Mapping[str, float]) -> float:
    """How good a checkpoint with these metrics is, larger being better."""
    value = metrics.get(self.metric, np.nan)
    sign = -1 if self.best_metric.startswith("-") else 1
    return sign * value if np.isfinite(value) else -np.inf

  def policy(self) -> policies.PreservationPolicy:
    """The rules as orbax takes them."""
    rules: list[policies.PreservationPolicy] = [policies.LatestN(self.keep_last)]
    if self.keep_every:
      rules.append(policies.EveryNSteps(self.keep_every, exact_interval=False))
    if self.keep_best:
      rules.append(policies.BestN(get_metric_fn=self.score, n=self.keep_best))
    return policies.AnyPreservationPolicy(rules)


KEEP_ALL = Retention(keep_last=2**31)
