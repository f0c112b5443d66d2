"""What saves memory or time at the cost of digits, or of none: bfloat16, and host memory."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from example import SPEC, example_batch, fresh_state, plain_gradient, plain_update

from vespo_jax import models, sharding
from vespo_jax.learner.gradient import LossSettings
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.update import compile_score, compile_update, place_state, state_shardings

BFLOAT16 = models.Compute(dtype="bfloat16")


def test_a_gradient_in_bfloat16_is_near_that_in_float32_and_of_its_type():
  params, batch = fresh_state().params, example_batch()
  exact = plain_gradient("reinforce")(params, batch)
  rounded = plain_gradient("reinforce", compute=BFLOAT16)(params, batch)
  chex.assert_trees_all_equal_dtypes(rounded, params)
  off = optax.tree.norm(optax.tree.sub(rounded, exact)) / optax.tree.norm(exact)
  assert 1e-4 < off < 0.03  # bfloat16 has 8 bits


def test_scores_are_computed_as_the_gradient_is():
  mesh, params, batch = sharding.make_mesh({"data": -1}), fresh_state().params, example_batch()
  score = compile_score(mesh, SPEC, LossSettings(compute=BFLOAT16))
  expected = jax.jit(lambda p: models.group_logprobs(p, SPEC, batch, compute=BFLOAT16)[0])(params)
  np.testing.assert_allclose(score(params, batch)[0], expected, atol=1e-6)


def test_the_momentum_is_kept_in_bfloat16_and_nothing_else():
  rounded, exact = (
    make_optimizer(OptimizerSettings(0.1, max_grad_norm=0.0, momentum_dtype=dtype))
    for dtype in ("bfloat16", "float32")
  )
  params = {"layers": {"w": jnp.zeros((1, 2, 2))}}
  grads = jax.tree.map(lambda x: x + 1.001, params)
  moved, state = rounded.update(grads, rounded.init(params), params)
  expected, full = exact.update(grads, exact.init(params), params)
  chex.assert_trees_all_close(moved, expected, rtol=1e-6)  # the first step is not rounded
  kept, whole = state[1][0], full[1][0]
  assert kept.mu["layers"]["w"].dtype == "bfloat16" and kept.nu["layers"]["w"].dtype == "float32"
  chex.assert_trees_all_equal(kept.mu, jax.tree.map(lambda x: x.astype("bfloat16"), whole.mu))
  chex.assert_trees_all_equal(kept.nu, whole.nu)


@pytest.mark.slow
def test_an_update_from_host_memory_is_the_same():
  """The optimizer's state comes from there, in the program, and is there again afterwards."""
  mesh, batch = sharding.make_mesh({"data": -1}), example_batch()
  after, placed = {}, {}
  for offload in (False, True):
    state = place_state(mesh, SPEC, fresh_state(), offload)
    update = compile_update(plain_update("reinforce"), mesh, SPEC, state, offload=offload)
    lowered = jax.jit(update).trace(state, batch).lower(lowering_platforms=("tpu",))
    placed[offload] = lowered.as_text().count('_xla_buffer_placement = "device"')
    state, _ = update(state, batch)
    mu = state.opt_state[1][0].mu["embedding"]
    assert mu.sharding.memory_kind == ("pinned_host" if offload else "device")
    assert state.params["embedding"].sharding.memory_kind == "device"
    after[offload] = jax.device_get(state)
  chex.assert_trees_all_equal(after[True], after[False])
  assert placed[True] >= 2 * len(jax.tree.leaves(state.params)) and not placed[False]


def test_scalars_stay_on_the_device():
  mesh, state = sharding.make_mesh({"data": -1}), fresh_state()
  shardings = state_shardings(mesh, SPEC, state, offload=True)
  assert shardings.opt_state[1][0].count.memory_kind in (None, "device")


def test_a_device_without_host_memory_is_refused():
  class Plain:
    platform = "plain"

    def addressable_memories(self):
      return jax.devices()[0].addressable_memories()[:1]

  sharding.check_host_memory(jax.devices()[0])
  with pytest.raises(ValueError, match="plain has no memory 'pinned_host', only device"):
    sharding.check_host_memory(Plain())
