"""What the rollouts of one result, and log-probs the update computes anyway, say for themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence

import numpy as np

from vespo_jax.diagnostics import STALENESS_BUCKETS
from vespo_jax.types import Rollout

Levels = dict[str, tuple[float, float]]
UNSEEN = 1.5  # standard errors of a sum of so few terms; see `calibration`


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Statistics of one result.

  Attributes:
    z: of `calibration`.
    levels: of `disagreement`.
    fingerprints: of `fingerprints`.
    future: whether a token claims weights that did not exist.
  """

  z: float
  levels: Levels
  fingerprints: list[str]
  future: bool


def gather(
  rollouts: Sequence[Rollout],
  log_ratio_BT: np.ndarray,
  version: int,
  floor_nats: float,
  replay_nats: float,
) -> Evidence:
  """The evidence of a result; the arguments are those of `integrity.judge`."""
  live = [(x, r) for x, r in zip(log_ratio_BT, rollouts, strict=True) if r.finish != "aborted"]
  log_ratio_N = _joined([x[: len(r.response_ids)] for x, r in live], np.float32)
  lags_N = version - _joined([r.weight_versions for _, r in live], np.int32)
  return Evidence(
    calibration(log_ratio_N, floor_nats),
    disagreement(log_ratio_N, np.maximum(lags_N, 0), floor_nats),
    fingerprints([r for _, r in live], replay_nats),
    bool(lags_N.min(initial=0) < 0),
  )


def calibration(log_ratio_N: np.ndarray, floor_nats: float) -> float:
  """z = sum_t d_t / sqrt(sum_t d_t^2 + N floor^2), where d_t = ratio_t - 1: standard normal for
  tokens drawn with the probabilities they report; below `floor_nats` the ratios are rounding.

  Stale weights have heavy tails: a policy that has learnt a token which its sampler almost never
  drew has a large ratio there, which N draws may all miss, and then their sum is below 0. How much
  may be missing is known from what is not: of the mass that left the drawn tokens,
  sum_t max(-d_t, 0), a fraction of `UNSEEN / sqrt(n)`, where n = (sum_t d_t^2)^2 / sum_t d_t^4
  counts the terms that decide the variation. A negative sum is forgiven so much.
  """
  d_N = np.expm1(np.clip(log_ratio_N.astype(np.float64), -20.0, 20.0))
  if not len(d_N):
    return 0.0
  total, squares = float(np.sum(d_N)), float(np.sum(d_N**2))
  if total < 0:
    deciding = squares**2 / np.sum(d_N**4)
    unseen = min(1.0, UNSEEN / deciding**0.5) * float(np.sum(np.maximum(-d_N, 0.0)))
    total = min(total + unseen, 0.0)
  return total / (squares + len(d_N) * floor_nats**2) ** 0.5


def disagreement(log_ratio_N: np.ndarray, lags_N: np.ndarray, floor_nats: float) -> Levels:
  """Log of (mean |log ratio| + floor) of the tokens of each lag, and its standard error.

  Lags go by the bins of `STALENESS_BUCKETS`, named after their lower edge.
  """
  sizes_N = np.abs(log_ratio_N, dtype=np.float64)
  bins_N = np.searchsorted(STALENESS_BUCKETS, lags_N, side="right") - 1
  levels: Levels = {}
  for i in np.unique(bins_N):
    sizes = sizes_N[bins_N == i]
    mean = sizes.mean() + floor_nats
    error = max(sizes.std() / mean, 1.0) / len(sizes) ** 0.5  # a few tokens prove nothing
    levels[str(STALENESS_BUCKETS[i])] = (float(np.log(mean)), float(error))
  return levels


def fingerprints(rollouts: Sequence[Rollout], nats: float) -> list[str]:
  """Digests of what honest sampling does not repeat: every response that is improbable enough, and
  the others of each group together, in any order."""
  units = []
  for _, group in itertools.groupby(rollouts, key=lambda rollout: rollout.group_id):
    rest, rest_nats = [], 0.0
    for rollout in group:
      digest = _digest(rollout.response_ids.tobytes() + rollout.behaviour_logprobs.tobytes())
      surprise = -float(rollout.behaviour_logprobs.sum())
      if surprise >= nats:
        units.append(digest)
      else:
        rest.append(digest)
        rest_nats += surprise
    if rest_nats - math.lgamma(len(rest) + 1) >= nats:
      units.append(_digest("".join(sorted(rest)).encode()))
  return units


def _digest(data: bytes) -> str:
  return hashlib.blake2b(data, digest_size=8).hexdigest()


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
  return np.concatenate([np.zeros(0, dtype), *arrays])
