"""Micro-batches: what is cut is joined again, and what has no gradient has no backward pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example import REWARD, SPEC, example_batch, fresh_state, plain_gradient

from vespo_jax import models, objectives
from vespo_jax.learner import gradient as gradient_lib
from vespo_jax.learner.gradient import LossSettings, make_gradient
from vespo_jax.learner.micro_batches import any_nonzero, cut, join, live_first, reorder

PARAMS = fresh_state().params
PIECES = 4
NEAR = np.float32(1e-3)


def with_dead_groups(dead):
  """Groups of which these have the reward 0, which `REWARD` has for their advantage."""
  batch = example_batch()
  rewards_PR = np.array(batch.rewards_PR)
  rewards_PR[dead] = 0.0
  logprobs_PRT = np.asarray(models.group_logprobs(PARAMS, SPEC, batch)[0])
  return batch.replace(
    rewards_PR=rewards_PR,
    behaviour_logprobs_PRT=logprobs_PRT + NEAR,
    reference_logprobs_PRT=logprobs_PRT - NEAR,
  )


def test_what_is_cut_is_joined():
  x = np.arange(24).reshape(12, 2)
  pieces = cut(jnp.asarray(x), 3)
  np.testing.assert_array_equal(pieces[1], x[[1, 4, 7, 10]])
  np.testing.assert_array_equal(join(pieces), x)


def test_prompts_with_an_advantage_are_in_the_first_pieces():
  advantages_PR = np.zeros((12, 2), np.float32)
  live = [1, 2, 6, 7, 11]
  advantages_PR[live, 1] = -1.0
  order_DK = live_first(jnp.asarray(advantages_PR), 3)
  pieces = np.asarray(cut(reorder(np.arange(12), order_DK), 3))
  np.testing.assert_array_equal(pieces[0], live[:4])
  assert pieces[1, 0] == live[4]
  assert sorted(pieces.reshape(-1)) == list(range(12))


def test_nan_is_a_gradient():
  assert any_nonzero((jnp.zeros(2), jnp.array([0.0, jnp.nan])))
  assert not any_nonzero((jnp.zeros(2), jnp.ones(2, jnp.int32)))


@pytest.mark.parametrize(
  "loss",
  [
    {},
    pytest.param({"kl_coefficient": 0.1}, marks=pytest.mark.slow),
    pytest.param({"entropy_coefficient": 0.1}, marks=pytest.mark.slow),
  ],
  ids=["plain", "kl", "entropy"],
)
def test_groups_without_an_advantage_change_no_gradient(loss):
  batch = with_dead_groups([0, 1, 2, 5, 6, 9, 12, 13, 15])
  whole = plain_gradient("vespo", **loss)(PARAMS, batch)
  pieces = plain_gradient("vespo", micro_batches=PIECES, **loss)(PARAMS, batch)
  chex.assert_trees_all_close(pieces, whole, atol=1e-6, rtol=1e-4)
  rest = plain_gradient("vespo", micro_batches=PIECES)(PARAMS, with_dead_groups(range(16)))
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(rest))


def test_the_order_of_groups_is_that_of_the_batch():
  batch = with_dead_groups([0, 3, 4, 7, 8, 9])

  def evaluated(pieces):
    settings = LossSettings(micro_batches=pieces)
    gradient = make_gradient(SPEC, objectives.make("grpo"), REWARD, settings)
    return jax.jit(lambda params: gradient(params, batch)[1])(PARAMS)

  chex.assert_trees_all_close(evaluated(PIECES), evaluated(1), atol=1e-6, rtol=1e-5)


def count_backward_passes(monkeypatch, batch, **settings):
  """Of one gradient."""
  passes = []

  @jax.custom_vjp
  def watched(logprobs_PRT):
    return logprobs_PRT

  def backward(_, of_logprobs_PRT):
    jax.debug.callback(lambda: passes.append(1))
    return (of_logprobs_PRT,)

  watched.defvjp(lambda logprobs_PRT: (logprobs_PRT, None), backward)
  plain = models.group_logprobs_routed

  def forward(*args):
    logprobs_PRT, *rest = plain(*args)
    return watched(logprobs_PRT), *rest

  monkeypatch.setattr(gradient_lib.models, "group_logprobs_routed", forward)
  objective = objectives.make(settings.pop("objective", "vespo"))
  gradient = make_gradient(SPEC, objective, REWARD, LossSettings(micro_batches=PIECES, **settings))
  jax.block_until_ready(jax.jit(lambda params: gradient(params, batch)[0])(PARAMS))
  jax.effects_barrier()
  return len(passes)


@pytest.mark.parametrize(
  ("live", "settings", "passes"),
  [
    pytest.param(16, {}, 4, marks=pytest.mark.slow),
    (5, {}, 2),
    pytest.param(4, {}, 1, marks=pytest.mark.slow),
    (0, {}, 0),
    # every token has a gradient
    pytest.param(0, {"entropy_coefficient": 0.1}, 4, marks=pytest.mark.slow),
    (0, {"objective": "kl_cov"}, 1),  # it penalises a token, with an advantage or without
  ],
)
def test_a_micro_batch_without_a_gradient_has_no_backward_pass(monkeypatch, live, settings, passes):
  batch = with_dead_groups(np.random.default_rng(0).permutation(16)[live:])
  # every row has a token, or a live group might have none
  mask_PRT = np.array(batch.response_mask_PRT)
  mask_PRT[..., 0] = True
  batch = batch.replace(response_mask_PRT=mask_PRT)
  assert count_backward_passes(monkeypatch, batch, **settings) == passes
