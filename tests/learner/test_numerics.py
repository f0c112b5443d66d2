"""Bad updates never reach the parameters, and nothing is fetched to find them."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.learner.example import SPEC, example_batch, fresh_state, plain_update
from vespo_jax import sharding
from vespo_jax.learner.failure import explain
from vespo_jax.learner.numerics import CAUSES, PER_LEAF, SKIPS_LEFT, Limits, leaf_names
from vespo_jax.learner.update import PER_SEQUENCE, compile_update, place_state

BAD = {
  "loss": {"behaviour_logprobs_PRT": np.nan},
  "reward": {"rewards_PR": np.inf},
}


@pytest.fixture(scope="module")
def compiled():
  mesh, plain = sharding.make_mesh({"data": 1}), plain_update("vespo")
  cache = {}

  def make(limits):
    if limits not in cache:
      update = compile_update(plain, mesh, SPEC, fresh_state(), limits)
      cache[limits] = lambda batch, *left, n=None, state=None: update(
        state or place_state(mesh, SPEC, fresh_state()), batch, *left
      )
    return cache[limits]

  return make


def spoiled(cause, batch):
  changes = {}
  for field, value in BAD[cause].items():
    array = np.array(getattr(batch, field))
    array[np.asarray(batch.response_mask_PRT).any(-1)] = value
    changes[field] = array
  return dataclasses.replace(batch, **changes)


def test_a_good_update_is_what_it_would_be_without_guards(compiled):
  batch = example_batch()
  state, metrics = compiled(Limits())(batch)
  expected, plain = jax.jit(plain_update("vespo"))(fresh_state(), batch)
  chex.assert_trees_all_close(state, expected, rtol=1e-6, atol=1e-8)
  assert not any(metrics[CAUSES].values()) and metrics[SKIPS_LEFT] == 0 and state.step == 1
  norms = np.asarray(metrics[PER_LEAF])
  assert norms.shape == (len(leaf_names(state.params)),)
  np.testing.assert_allclose(np.sqrt((norms**2).sum()), plain["grad/norm"], rtol=1e-6)


@pytest.mark.parametrize("cause", BAD)
def test_without_skips_the_state_stays_as_it_was_from_then_on(cause, compiled):
  update, batch = compiled(Limits()), example_batch()
  state, metrics = update(spoiled(cause, batch))
  assert metrics[CAUSES][cause] and metrics[SKIPS_LEFT] == -1
  chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(fresh_state()))
  state, metrics = update(batch, metrics[SKIPS_LEFT], state=state)  # a good one comes too late
  assert not any(metrics[CAUSES].values()) and metrics[SKIPS_LEFT] == -1
  chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(fresh_state()))


def test_skipped_updates_count_but_change_nothing(compiled):
  update, batch = compiled(Limits(max_skipped=2)), example_batch()
  bad = spoiled("reward", batch)
  state, metrics = update(bad)
  assert state.step == 1 and metrics[SKIPS_LEFT] == 1
  chex.assert_trees_all_equal(
    jax.device_get(state.replace(step=jnp.int32(0))), jax.device_get(fresh_state())
  )
  state, metrics = update(batch, metrics[SKIPS_LEFT], state=state)
  assert state.step == 2 and metrics[SKIPS_LEFT] == 2  # a good one gives all skips back
  params = jax.device_get(state.params)
  for left in (1, 0, -1):
    state, metrics = update(bad, metrics[SKIPS_LEFT], state=state)
    assert metrics[SKIPS_LEFT] == left
  assert state.step == 4  # the third bad one in a row was not made
  chex.assert_trees_all_equal(jax.device_get(state.params), params)


def test_limits_are_on_the_gradient_before_clipping_and_on_log_w(compiled):
  batch = example_batch()
  _, metrics = compiled(Limits())(batch)
  norm = float(metrics["grad/norm"])
  log_w = float(jnp.max(jnp.abs(metrics[PER_SEQUENCE]["log_w"])))
  for limits, cause in (
    (Limits(max_grad_norm=0.99 * norm, max_log_w=1.01 * log_w), "grad_norm"),
    (Limits(max_grad_norm=1.01 * norm, max_log_w=0.99 * log_w), "log_w"),
  ):
    _, metrics = compiled(limits)(batch)
    assert [name for name, found in metrics[CAUSES].items() if found] == [cause]
    row = {"grad/norm": norm, "objective/loss": 0.0}
    words = explain([cause], row, {}, np.asarray(metrics[PER_SEQUENCE]["log_w"]))
    assert f"{norm if cause == 'grad_norm' else log_w:.3g}" in words
