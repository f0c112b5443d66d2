"""Rollouts of a minibatch -> the arrays of an update, and what their rewards say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vespo_jax.learner.groups import valid, zero_variance
from vespo_jax.sampler import pad_prompts
from vespo_jax.types import REWARD_STATUS, Rollout, TrainBatch


def make_batch(
  rollouts: Sequence[Rollout], samples_per_prompt: int, response_width: int, version: int | None
) -> tuple[TrainBatch, dict[str, float]]:
  """One `TrainBatch` of graded rollouts, and the metrics of their rewards and lengths.

  Args:
    rollouts: prompt-major, `samples_per_prompt` consecutive ones to each group.
    samples_per_prompt: R.
    response_width: T, the width responses are padded to.
    version: of the weights that are updated, where they may have sampled; tokens of this version
      are `fresh`.

  Expert ids become part of the batch where the rollouts have them.

  An aborted rollout is not trained on and counts in no statistic of its group.

  Returns:
    The batch as host arrays, and `reward/mean`, `reward/zero_variance_fraction` (groups without a
    signal), `reward/STATUS_fraction`, `response/length` (tokens), `response/truncated_fraction`.

  Raises:
    ValueError: if the rollouts are not whole groups, or a response is longer than `response_width`.
  """
  R, T = samples_per_prompt, response_width
  group_ids = np.array([r.group_id for r in rollouts]).reshape(-1, R)
  if (group_ids != group_ids[:, :1]).any():
    raise ValueError(f"rollouts are not groups of {R} consecutive samples")
  lengths_PR = np.array([len(r.response_ids) for r in rollouts]).reshape(-1, R)
  if lengths_PR.max() > T:
    raise ValueError(f"a response has {lengths_PR.max()} tokens, more than {T}")
  P = len(group_ids)
  finish_PR = np.array([r.finish for r in rollouts]).reshape(P, R)
  valid_PR = valid(rollouts).reshape(P, R)
  prompt_tokens_PS, prompt_mask_PS = pad_prompts([r.prompt_ids for r in rollouts[::R]])
  tokens_PRT = np.zeros((P, R, T), np.int32)
  logprobs_PRT = np.zeros((P, R, T), np.float32)
  fresh_PRT = np.zeros((P, R, T), bool)
  for row, rollout in enumerate(rollouts):
    n = len(rollout.response_ids)
    tokens_PRT[row // R, row % R, :n] = rollout.response_ids
    logprobs_PRT[row // R, row % R, :n] = rollout.behaviour_logprobs
    fresh_PRT[row // R, row % R, :n] = rollout.weight_versions == version
  rewards_PR = np.array([r.reward for r in rollouts], np.float32).reshape(P, R)
  batch = TrainBatch(
    prompt_tokens_PS=prompt_tokens_PS,
    prompt_mask_PS=prompt_mask_PS,
    response_tokens_PRT=tokens_PRT,
    response_mask_PRT=(np.arange(T) < lengths_PR[..., None]) & valid_PR[..., None],
    behaviour_logprobs_PRT=logprobs_PRT,
    rewards_PR=np.where(valid_PR, rewards_PR, 0.0).astype(np.float32),
    fresh_mask_PRT=fresh_PRT & valid_PR[..., None],
    expert_ids_PJLA=_expert_ids(rollouts, R, T, prompt_tokens_PS.shape[1]),
  )
  statuses = Counter(r.reward_status for r in rollouts)
  return batch, {
    "reward/mean": float(rewards_PR[valid_PR].mean()) if valid_PR.any() else 0.0,
    "reward/zero_variance_fraction": float(zero_variance(rewards_PR, valid_PR).mean()),
    **{f"reward/{s}_fraction": statuses[s] / len(rollouts) for s in REWARD_STATUS},
    "response/length": float(lengths_PR.mean()),
    "response/truncated_fraction": float((finish_PR == "length").mean()),
  }


def _expert_ids(rollouts: Sequence[Rollout], R: int, T: int, S: int) -> np.ndarray | None:
  """[P, S + R * T, L, A]: each group's prompt, padded on the left, then its samples; padding goes
  to expert 0, where it counts in nothing. None if they were not reported."""
  if rollouts[0].expert_ids is None:
    return None
  kind = rollouts[0].expert_ids
  ids_PJLA = np.zeros((len(rollouts) // R, S + R * T, *kind.shape[1:]), kind.dtype)
  for row, rollout in enumerate(rollouts):
    own, n, start = np.asarray(rollout.expert_ids), len(rollout.prompt_ids), S + row % R * T
    ids_PJLA[row // R, S - n : S] = own[:n]
    ids_PJLA[row // R, start : start + len(own) - n] = own[n:]
  return ids_PJLA
