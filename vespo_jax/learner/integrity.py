"""Whether a worker's rollouts can be what it says they are, judged by log-probs that the update
computes anyway (after SENTINEL, arXiv 2603.03592: momentum monitors with adaptive thresholds that
verify untrusted workers without doing their work again).

Three tests of a result, each blind to what is legitimate:

- **calibration** needs no history. A token really drawn with the reported probability mu, given
  those before it, has E_mu[policy / mu] = 1, however stale the weights and whatever the engine's
  numerics. So sum_t (ratio_t - 1) is a martingale and, over the root of its quadratic variation, a
  standard normal z. For scaled, swapped or invented log-probs it is not. (What heavy tails of stale
  weights do to it: `evidence.calibration`.)
- **disagreement**, mean |log policy - log mu| per token, grows with staleness. It is compared, in
  log space and at the lag the worker claims, with moving averages of what all workers show there.
  Weights older than claimed, or tokens that are not the worker's, stand out.
- **replays**: a response with the tokens and the log-probs, to the bit, of an earlier one, where
  chance is too improbable to have sampled it twice.

What cannot be seen: a claim of *older* weights than were used (it makes a rollout look staler than
it is), lies that most workers share, by disagreement those of the first `warmup` results, and by
calibration probabilities that are reported a little too large where stale weights have heavy tails.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vespo_jax.learner.evidence import Evidence, Levels, gather
from vespo_jax.types import Rollout


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """When a result is not believed.

  Attributes:
    calibrated: whether what is judged are draws from the whole softmax; top-k, top-p and min-p make
      E[policy / mu] the kept mass, not 1, and so does dropping groups by their rewards: both switch
      the calibration test off.
    z: the largest calibration z, of one result or of its average.
    deviations: how many deviations above what is usual the log of a disagreement may be.
    floor_deviation: the least deviation of the log of a disagreement.
    floor_nats: a disagreement below this, per token, is never evidence.
    decay: of the moving averages, per accepted result.
    warmup: results of one worker at one lag before they are compared with.
    extreme: a statistic this many times beyond its threshold quarantines at once.
    patience: results in a row beyond a threshold that quarantine.
    replay_nats: improbability of a response, or of a group's together, from which its second
      appearance is a replay.
    window: responses and groups that are remembered.
  """

  calibrated: bool = True
  z: float = 6.0
  deviations: float = 4.0
  floor_deviation: float = 0.15
  floor_nats: float = 1e-3
  decay: float = 0.9
  warmup: int = 4
  extreme: float = 2.0
  patience: int = 3
  replay_nats: float = 30.0
  window: int = 8192


@dataclasses.dataclass(frozen=True)
class Average:
  """Moving average of a statistic and of its absolute deviation, over `count` accepted results."""

  mean: float = 0.0
  deviation: float = 0.0
  count: int = 0

  def add(self, value: float, decay: float) -> Average:
    """A plain mean at first, exponential once that would forget faster."""
    weight = max(1 - decay, 1 / (self.count + 1))
    deviation = abs(value - self.mean) if self.count else 0.0
    return Average(
      self.mean + weight * (value - self.mean),
      self.deviation + weight * (deviation - self.deviation),
      self.count + 1,
    )


@dataclasses.dataclass(frozen=True)
class Standing:
  """What is known of one worker.

  Attributes:
    disagreement: of the log of its disagreement, by claimed lag ("4": 4 to 7 updates).
    calibration: of its z.
    elevated: whether its last disagreement was beyond the threshold.
    strikes: results in a row that were not believed.
  """

  disagreement: Mapping[str, Average] = dataclasses.field(default_factory=dict)
  calibration: Average = Average()
  elevated: bool = False
  strikes: int = 0


@dataclasses.dataclass(frozen=True)
class Monitor:
  """The state: workers by name, and digests of what was delivered lately, oldest first."""

  workers: Mapping[str, Standing] = dataclasses.field(default_factory=dict)
  seen: tuple[str, ...] = ()

  def to_dict(self) -> dict[str, Any]:
    """Plain values for JSON."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, value: Mapping[str, Any]) -> Monitor:
    """The inverse of `to_dict`, also after JSON."""
    workers = {
      name: Standing(
        {lag: Average(**average) for lag, average in standing["disagreement"].items()},
        Average(**standing["calibration"]),
        standing["elevated"],
        standing["strikes"],
      )
      for name, standing in value["workers"].items()
    }
    return cls(workers, tuple(value["seen"]))


@dataclasses.dataclass(frozen=True)
class Verdict:
  """About one result: `status` is ok, flagged or quarantined, and `score` how far the worst
  statistic is along the way to its threshold, which is 1. `reason` is "" when it is ok."""

  status: str
  score: float
  reason: str = ""


def judge(
  monitor: Monitor,
  thresholds: Thresholds,
  worker: int,
  rollouts: Sequence[Rollout],
  log_ratio_BT: np.ndarray,
  version: int,
) -> tuple[Monitor, Verdict]:
  """Judges one result of a worker; no average learns from one that is not believed.

  Args:
    monitor: the state so far.
    worker: its index.
    rollouts: the result, prompt-major; aborted ones are left out.
    log_ratio_BT: log policy - log behaviour of their tokens, padded on the right; finite.
    version: committed updates behind the policy of `log_ratio_BT`.

  A quarantined worker begins again without strikes, as whoever takes its place does; and without
  averages where disagreement alone accuses it and there are not three workers, most of whom could
  speak for it: if it is the policy that moves faster from now on, it is accused once.
  """
  name, before = str(worker), monitor.workers.get(str(worker), Standing())
  evidence = gather(rollouts, log_ratio_BT, version, thresholds.floor_nats, thresholds.replay_nats)
  calibration = before.calibration.add(evidence.z, thresholds.decay)
  excess = _excess(monitor, evidence.levels, thresholds)
  elevated = bool(max(excess.values(), default=0.0) > 1)
  scores = _scores(monitor, evidence, calibration, thresholds)
  certain = max(scores.values()) > 1
  if not _everyone(monitor, name, elevated):
    scores |= {
      f"it disagrees by {np.exp(evidence.levels[lag][0]):.2g} nats per token at lag {lag}": score
      for lag, score in excess.items()
    }
  reason, score = max(scores.items(), key=lambda item: item[1])

  if score <= 1:
    averages = {
      lag: before.disagreement.get(lag, Average()).add(level, thresholds.decay)
      for lag, (level, _) in evidence.levels.items()
    }
    after = Standing({**before.disagreement, **averages}, calibration, elevated)
    verdict = Verdict("ok", float(score))
  else:
    strikes = before.strikes + 1
    quarantined = score >= thresholds.extreme or strikes >= thresholds.patience
    after = dataclasses.replace(before, elevated=elevated, strikes=0 if quarantined else strikes)
    if quarantined and not certain and len({*monitor.workers, name}) < 3:
      after = dataclasses.replace(after, disagreement={})
    verdict = Verdict("quarantined" if quarantined else "flagged", float(score), reason)
  seen = tuple(dict.fromkeys((*monitor.seen, *evidence.fingerprints)))[-thresholds.window :]
  return Monitor({**monitor.workers, name: after}, seen), verdict


def _scores(
  monitor: Monitor, evidence: Evidence, calibration: Average, thresholds: Thresholds
) -> dict[str, float]:
  """What speaks against a result by itself, in thresholds; what is certain is `extreme`."""
  scores = {}
  weight = 1 - thresholds.decay
  if thresholds.calibrated:  # one z shows a large lie, their average a small one
    deviation = max(1 / calibration.count, weight / (2 - weight)) ** 0.5
    z = max(abs(evidence.z), abs(calibration.mean) / deviation)
    scores["its tokens are not drawn with the log-probs it reports"] = z / thresholds.z
  distinct = set(evidence.fingerprints)
  replayed = len(evidence.fingerprints) - len(distinct - set(monitor.seen))
  scores[f"{replayed} of its responses came before"] = thresholds.extreme if replayed else 0.0
  scores["it claims weights that do not exist"] = thresholds.extreme if evidence.future else 0.0
  return scores


def _excess(monitor: Monitor, levels: Levels, thresholds: Thresholds) -> dict[str, float]:
  """How far each level is above the median of the workers known at that lag, in thresholds.

  Of an even number it is the upper one: between two workers, the lower is not the accuser.
  """
  excess = {}
  for lag, (level, error) in levels.items():
    known = [w.disagreement[lag] for w in monitor.workers.values() if lag in w.disagreement]
    known = [average for average in known if average.count >= thresholds.warmup]
    if known:
      usual = statistics.median_high(average.mean for average in known)
      spread = statistics.median_high(average.deviation for average in known)
      deviation = np.hypot(max(spread, thresholds.floor_deviation), error)
      excess[lag] = (level - usual) / (thresholds.deviations * deviation)
  return excess


def _everyone(monitor: Monitor, name: str, elevated: bool) -> bool:
  """Whether most of at least three workers disagree unusually: then the policy has moved."""
  others = [w.elevated for other, w in monitor.workers.items() if other != name]
  return len(others) >= 2 and 2 * (sum(others) + elevated) > len(others) + 1
