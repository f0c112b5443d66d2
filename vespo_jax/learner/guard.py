"""Acting on the integrity monitor: what each sampler delivered is judged once it was trained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vespo_jax.learner.intake import Minibatch
from vespo_jax.learner.integrity import Monitor, Thresholds, Verdict, judge
from vespo_jax.runtime import Sampler


class Guard:
  """Judges every minibatch, says what it finds, and takes quarantined samplers out of service.

  Args:
    sampler: of the run.
    thresholds: when a result is not believed.
    action: `off`, `flag` or `quarantine`: do nothing, report, or also restart a quarantined sampler
      and sample again what it had not delivered.
    monitor: what is known already.
    say: where a finding goes.
  """

  def __init__(
    self,
    sampler: Sampler,
    thresholds: Thresholds,
    action: str,
    monitor: Monitor,
    say: Callable[[str], None],
  ):
    self._sampler, self._thresholds, self._action, self._say = sampler, thresholds, action, say
    self.monitor = monitor

  def check(self, minibatch: Minibatch, log_ratio_BT: np.ndarray, version: int) -> dict[str, float]:
    """`integrity/score`, the worst statistic in thresholds (above 1 is not believed), and
    `integrity/flagged`, the samplers that are not; nothing if the guard is off.

    Args:
      minibatch: of the update.
      log_ratio_BT: log policy - log behaviour of every token, one row per rollout.
      version: committed updates behind that policy.
    """
    if self._action == "off":
      return {}
    verdicts = [
      self._judge(worker, minibatch, log_ratio_BT, version)
      for worker in sorted(set(minibatch.workers))
    ]
    return {
      "integrity/score": max(verdict.score for verdict in verdicts),
      "integrity/flagged": float(sum(verdict.status != "ok" for verdict in verdicts)),
    }

  def _judge(
    self, worker: int, minibatch: Minibatch, log_ratio_BT: np.ndarray, version: int
  ) -> Verdict:
    rows = [i for i, made_by in enumerate(minibatch.workers) if made_by == worker]
    rollouts = [minibatch.rollouts[i] for i in rows]
    self.monitor, verdict = judge(
      self.monitor, self._thresholds, worker, rollouts, log_ratio_BT[rows], version
    )
    if verdict.status != "ok":
      self._say(f"after update {version}, sampler {worker} is {verdict.status}: {verdict.reason}")
    if verdict.status == "quarantined" and self._action == "quarantine":
      self._sampler.quarantine(worker, verdict.reason)
    return verdict
