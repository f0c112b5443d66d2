"""Rollouts -> the arrays of an update: what is trained on, and what counts in no statistic."""

import numpy as np
import pytest

from vespo_jax.learner.batching import make_batch
from vespo_jax.types import Rollout


def rollout(group, length, reward=0.0, finish="stop", status="wrong"):
  return Rollout(
    prompt_ids=np.arange(1, group + 3, dtype=np.int32),
    response_ids=np.arange(10, 10 + length, dtype=np.int32),
    behaviour_logprobs=np.full(length, -2.0, np.float32),
    plain_logprobs=np.full(length, -1.0, np.float32),
    weight_versions=np.zeros(length, np.int32),
    finish=finish,
    group_id=group,
    reward=reward,
    reward_status=status,
  )


def test_arrays_are_prompt_major_and_padded():
  rollouts = [rollout(0, 2), rollout(0, 1, 1.0), rollout(1, 3), rollout(1, 1, 1.0)]
  batch, metrics = make_batch(rollouts, 2, 3, version=0)
  np.testing.assert_array_equal(batch.prompt_mask_PS.sum(axis=1), [2, 3])
  np.testing.assert_array_equal(batch.prompt_tokens_PS[1, -3:], [1, 2, 3])
  np.testing.assert_array_equal(
    batch.response_tokens_PRT, [[[10, 11, 0], [10, 0, 0]], [[10, 11, 12], [10, 0, 0]]]
  )
  np.testing.assert_array_equal(batch.response_mask_PRT, batch.response_tokens_PRT > 0)
  np.testing.assert_array_equal(batch.behaviour_logprobs_PRT, -2.0 * batch.response_mask_PRT)
  np.testing.assert_array_equal(batch.rewards_PR, [[0, 1], [0, 1]])
  np.testing.assert_array_equal(batch.fresh_mask_PRT, batch.response_mask_PRT)
  assert metrics["response/length"] == 7 / 4 and metrics["reward/mean"] == 0.5


def test_tokens_of_the_weights_being_updated_are_fresh():
  rollouts = [rollout(0, 3), rollout(0, 2)]
  rollouts[0].weight_versions = np.array([4, 5, 5], np.int32)
  batch, _ = make_batch(rollouts, 2, 3, version=5)
  np.testing.assert_array_equal(batch.fresh_mask_PRT, [[[False, True, True], [False] * 3]])


def test_an_aborted_rollout_counts_in_nothing():
  rollouts = [
    *(rollout(0, 2), rollout(0, 2, 1.0, "aborted"), rollout(0, 1)),
    *(rollout(1, 1, 1.0), rollout(1, 1, 1.0), rollout(1, 2, 0.0, "aborted")),
    *(rollout(2, 0), rollout(2, 1, 1.0, "aborted"), rollout(2, 2, 1.0)),
  ]
  batch, metrics = make_batch(rollouts, 3, 2, version=0)
  trained = [[True, False, True], [True, True, False], [False, False, True]]
  np.testing.assert_array_equal(batch.response_mask_PRT.any(axis=-1), trained)
  np.testing.assert_array_equal(batch.rewards_PR, [[0, 0, 0], [1, 1, 0], [0, 0, 1]])
  np.testing.assert_allclose(metrics["reward/mean"], 3 / 5, rtol=1e-6)
  # the first two groups say nothing; a group of one keeps its reward
  np.testing.assert_allclose(metrics["reward/zero_variance_fraction"], 2 / 3, rtol=1e-6)


def test_expert_ids_stand_where_their_tokens_do():
  rollouts = [rollout(0, 2), rollout(0, 1), rollout(1, 3), rollout(1, 1)]
  for r in rollouts:
    tokens = np.concatenate([r.prompt_ids, r.response_ids])
    pairs = np.stack([tokens, tokens + 100 * (r.group_id + 1)], axis=-1)
    r.expert_ids = (pairs[:, None] + np.array([[0], [50]])).astype(np.uint16)
  batch, _ = make_batch(rollouts, 2, 3, version=0)
  ids = batch.expert_ids_PJLA
  assert ids.dtype == np.uint16
  tokens = np.concatenate([batch.prompt_tokens_PS, batch.response_tokens_PRT.reshape(2, 6)], axis=1)
  real = tokens > 0
  np.testing.assert_array_equal(ids[..., 0, 0], tokens)
  np.testing.assert_array_equal(ids[..., 1, 0][real], tokens[real] + 50)
  np.testing.assert_array_equal((ids[..., 1, 1] - 150)[real], (tokens + [[0], [100]])[real])


def test_fractions():
  kinds = [("stop", "ok"), ("length", "unparsed"), ("stop", "wrong"), ("stop", "timeout")]
  _, metrics = make_batch([rollout(0, 1, finish=f, status=s) for f, s in kinds], 4, 1, 0)
  assert metrics["response/truncated_fraction"] == 0.25
  assert [metrics[f"reward/{s}_fraction"] for s in ("ok", "unparsed", "error")] == [0.25, 0.25, 0]


def test_what_is_no_minibatch_is_refused():
  with pytest.raises(ValueError, match="not groups of 2 consecutive"):
    make_batch([rollout(0, 1), rollout(1, 1), rollout(0, 1), rollout(1, 1)], 2, 1, 0)
  with pytest.raises(ValueError, match="3 tokens, more than 2"):
    make_batch([rollout(0, 3)], 1, 2, 0)
