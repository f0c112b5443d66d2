"""What the host adds to an update's metrics: staleness, gradient shares, where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vespo_jax import diagnostics
from vespo_jax.learner.intake import Minibatch
from vespo_jax.types import REWARD_PARTS, Rollout, TrainBatch


def host_metrics(
  minibatch: Minibatch,
  batch: TrainBatch,
  columns: Mapping[str, np.ndarray],
  *,
  version: int,
  published: int,
  max_new_tokens: int,
) -> dict[str, Any]:
  """Metrics of one minibatch that need no device.

  Args:
    minibatch: what was trained on.
    batch: its arrays, on the host.
    columns: [P, R] each: `log_w`, `advantage` and `gradient` of every sequence.
    version: committed updates behind the policy that was trained on it.
    published: the newest version samplers had been given by then.
    max_new_tokens: the longest response there can be.

  Returns:
    The staleness and gradient-share metrics of `diagnostics`, the histogram of log W, those of the
    minibatch, the mean of each component of the rewards (`reward/correct`, ...) where there are
    several, and, with keys of `time/`, seconds of sampling and waiting and the depth of the queue.
  """
  versions = [rollout.weight_versions for rollout in minibatch.rollouts]
  lags = version - np.array([v.mean() if len(v) else version for v in versions])
  mask_PRT = np.asarray(batch.response_mask_PRT)
  return {
    **minibatch.metrics,
    **diagnostics.staleness_metrics(versions, version, published),
    **diagnostics.gradient_shares(
      columns["gradient"].ravel(),
      columns["advantage"].ravel(),
      mask_PRT.sum(axis=-1).ravel(),
      lags,
      max_new_tokens,
    ),
    **_reward_parts(minibatch.rollouts),
    "weight/log_w_histogram": diagnostics.log_w_histogram(columns["log_w"][mask_PRT.any(axis=-1)]),
    "time/sample_s": minibatch.sample_s,
    "time/sampler_wait_s": minibatch.sampler_wait_s,
    "time/queue_depth": minibatch.queue_depth,
    "throughput/sampled_tokens_per_s": minibatch.sampled_tokens / max(minibatch.sample_s, 1e-9),
  }


def _reward_parts(rollouts: Sequence[Rollout]) -> dict[str, float]:
  """The means of what shaped rewards are composed of, over the rollouts that are trained on."""
  parts = [
    r.reward_parts
    for r in rollouts
    if r.reward_parts is not None and r.finish != "aborted" and len(r.response_ids)
  ]
  if not parts:
    return {}
  means = np.mean(parts, axis=0).tolist()
  return {f"reward/{name}": mean for name, mean in zip(REWARD_PARTS, means, strict=True)}
