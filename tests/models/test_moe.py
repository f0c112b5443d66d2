"""Routing: what is counted, what is replayed, and that nothing is dropped."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from tests.marks import slow_but
from vespo_jax import models
from vespo_jax.models import moe
from vespo_jax.models.moe import mixture

SPEC = models.ModelSpec(
  vocab_size=61,
  width=24,
  layers=2,
  heads=4,
  kv_heads=2,
  head_width=8,
  mlp_width=40,
  experts=6,
  active_experts=2,
)
PARAMS = jax.tree.map(lambda x: 5 * x, models.init(SPEC, jax.random.key(0)))
IDS = np.random.default_rng(0).integers(0, 61, (3, 7)).astype(np.int32)
SEGMENTS = np.array([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5])
routed = jax.jit(models.forward_routed, static_argnums=1)


def run(params=PARAMS, expert_ids=None, ids=IDS, segments=SEGMENTS):
  return routed(params, SPEC, ids, segments=segments, expert_ids_LMA=expert_ids)


def test_statistics_count_real_tokens_once_per_active_expert():
  _, _, routing = run()
  real = SEGMENTS.reshape(-1) != 0
  assert routing.expert_ids_LMA.shape == (2, 21, 2) and routing.tokens.shape == (2,)
  assert set(np.asarray(routing.tokens).tolist()) == {16.0}
  for layer in range(2):
    counted = np.bincount(np.asarray(routing.expert_ids_LMA[layer])[real].ravel(), minlength=6)
    np.testing.assert_array_equal(routing.load_LE[layer], counted)
  np.testing.assert_allclose(routing.importance_LE.sum(axis=1), 16.0, rtol=1e-5)
  assert (np.asarray(routing.z_L) > 0).all()


def test_a_dense_model_has_no_routing():
  dense = dataclasses.replace(SPEC, experts=0, active_experts=0)
  assert routed(models.init(dense, jax.random.key(0)), dense, IDS)[2] is None


def test_replaying_its_own_choices_changes_nothing():
  hidden, _, routing = run()
  again, _, replayed = run(expert_ids=routing.expert_ids_LMA)
  np.testing.assert_array_equal(again, hidden)
  np.testing.assert_array_equal(replayed.expert_ids_LMA, routing.expert_ids_LMA)


def test_replay_holds_the_choices_and_not_the_weights():
  """Other weights choose otherwise; under replay they do not, and their outputs differ still."""
  _, _, routing = run()
  other = jax.tree.map(lambda x: x + 0.05 * jnp.cos(37 * x), PARAMS)
  free_hidden, _, free = run(other)
  held_hidden, _, held = run(other, routing.expert_ids_LMA)
  assert (np.sort(free.expert_ids_LMA) != np.sort(routing.expert_ids_LMA)).any()
  np.testing.assert_array_equal(held.expert_ids_LMA, routing.expert_ids_LMA)
  assert np.abs(np.asarray(held_hidden - free_hidden)).max() > 1e-3


def test_the_router_learns_through_its_weights_under_replay_too():
  _, _, routing = run()

  def loss(router, expert_ids):
    params = {**PARAMS, "layers": {**PARAMS["layers"], "router": router}}
    return jnp.sum(run(params, expert_ids)[0] ** 3)

  for expert_ids in (None, routing.expert_ids_LMA):
    grad = jax.grad(loss)(PARAMS["layers"]["router"], expert_ids)
    assert np.isfinite(grad).all() and np.abs(np.asarray(grad)).max() > 1e-3


@pytest.mark.parametrize("choices", slow_but(["one expert", "even"], "one expert"))
def test_no_token_is_dropped_however_unbalanced(choices):
  """Every token gets exactly its chosen experts' outputs, also where all choose the same two."""
  x = jnp.asarray(np.random.default_rng(1).normal(size=(12, 24)), jnp.float32)
  layer = {key: value[0] for key, value in PARAMS["layers"].items()}
  pairs = [[0, 1]] * 12 if choices == "one expert" else [[i % 6, (i + 1) % 6] for i in range(12)]
  ids = jnp.asarray(pairs, jnp.int32)
  y, _ = mixture(x, layer, SPEC, jnp.ones(12, bool), ids)
  probs = np.asarray(jax.nn.softmax(x @ layer["router"]))
  for m, (a, b) in enumerate(pairs):
    expected = 0
    for e in (a, b):
      hidden = jax.nn.silu(x[m] @ layer["expert_gate"][e]) * (x[m] @ layer["expert_up"][e])
      expected += probs[m, e] / (probs[m, a] + probs[m, b]) * (hidden @ layer["expert_down"][e])
    np.testing.assert_allclose(y[m], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_flips_choices_that_replay_holds():
  """The mismatch between a sampler's numerics and the trainer's, and its cure."""
  ids = np.random.default_rng(2).integers(0, 61, (16, 32)).astype(np.int32)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  segments = np.ones(ids.shape, np.int32)
  _, _, sampler = run(half, ids=ids, segments=segments)
  _, _, trainer = run(ids=ids, segments=segments)
  _, _, replayed = run(expert_ids=sampler.expert_ids_LMA, ids=ids, segments=segments)
  flipped = np.sort(sampler.expert_ids_LMA) != np.sort(trainer.expert_ids_LMA)
  assert 0 < flipped.mean() < 0.2
  np.testing.assert_array_equal(replayed.expert_ids_LMA, sampler.expert_ids_LMA)


@pytest.mark.parametrize(
  "tokens,spread,form",
  slow_but(
    itertools.product([1, 40, 500], ["even", "one", "elsewhere"], ["blocks", "grouped"]),
    (40, "elsewhere", "blocks"),
    (500, "one", "blocks"),
    (500, "elsewhere", "grouped"),
  ),
)
def test_every_platform_s_products_are_ragged_products(tokens, spread, form):
  """Values and gradients, with experts that get all or nothing, or of which some are on other
  devices."""
  E, A, D, F = 5, 2, 16, 24
  highest = {"even": E, "one": 1, "elsewhere": E + 1}[spread]
  wide = form == "blocks"  # the kernel has no float64
  interpret = pltpu.InterpretParams(uninitialized_memory="nan") if tokens == 40 else True
  grouped = functools.partial(moe._grouped, interpret=interpret)
  formed = moe._by_blocks if wide else functools.partial(moe._by_sorting, product=grouped)
  with jax.enable_x64(wide):
    keys = jax.random.split(jax.random.key(tokens), 5)
    x_MD = jax.random.normal(keys[0], (tokens, D))
    gate, up = (jax.random.normal(key, (E, D, F)) / 4 for key in keys[1:3])
    down = jax.random.normal(keys[3], (E, F, D)) / 4
    flat_I = jax.random.randint(keys[4], (tokens * A,), 0, highest)
    here = (flat_I < E)[:, None]

    def value_and_grad(form):
      loss = lambda *arrays: jnp.mean(jnp.sin(jnp.where(here, form(*arrays, flat_I), 0.0)))
      return jax.jit(jax.value_and_grad(loss, range(4)))(x_MD, gate, up, down)

    made = value_and_grad(formed)
    expected = value_and_grad(functools.partial(moe._by_sorting, product=jax.lax.ragged_dot))
  tolerance = 1e-10 if wide else 1e-5
  chex.assert_trees_all_close(made, expected, rtol=tolerance, atol=tolerance)
