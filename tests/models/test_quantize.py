"""Weight-only int8: its error bound, its exactness as a model, and its mismatch to the learner."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax import models, sampler
from vespo_jax.models import quantize
from vespo_jax.models.layers import linear
from vespo_jax.models.quantize import Quantized
from vespo_jax.sampler.weights import prepare

IDS = np.random.default_rng(0).integers(0, 61, (2, 7)).astype(np.int32)
is_quantized = lambda leaf: isinstance(leaf, Quantized)
routed = jax.jit(models.forward_routed, static_argnums=1)
token_logprobs = jax.jit(models.token_logprobs, static_argnums=1)


def dequantized(params):
  return jax.tree.map(quantize.dequantize, params, is_leaf=is_quantized)


def test_no_element_is_off_by_more_than_half_a_scale():
  rng = np.random.default_rng(1)
  kernel = rng.standard_t(3, (4, 50, 6)).astype(np.float32)  # heavy tails
  kernel *= 10.0 ** rng.integers(-6, 6, (4, 1, 6))
  kernel[2, :, 3] = 0.0
  got = quantize.quantize(jnp.asarray(kernel))
  assert got.values.dtype == jnp.int8 and got.scale.shape == (4, 1, 6)
  largest = np.abs(kernel).max(axis=1, keepdims=True)
  error = np.abs(quantize.dequantize(got) - kernel)
  assert (error <= largest / 254 * (1 + 1e-4)).all()
  assert error.max() > 0 and not error[2, :, 3].any()
  assert (np.abs(got.values).max(axis=1) == 127 * (largest[:, 0] > 0)).all()


def test_a_product_with_it_is_that_of_the_dequantised_kernel():
  rng = np.random.default_rng(2)
  x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 64), (64, 9)))
  got = quantize.quantize(kernel)
  np.testing.assert_allclose(linear(x, got), x @ quantize.dequantize(got), atol=2e-5)
  assert np.abs(linear(x, got) - x @ kernel).max() > 1e-3


def test_every_family_computes_with_its_kernels_and_nothing_else_changed(model):
  spec, params = model
  low = quantize.cast(params, "int8")
  kernels = {name for name, leaf in low["layers"].items() if is_quantized(leaf)}
  attention = {"query", "key", "value", "output"}
  mlp = {"gate", "up", "down"}
  assert kernels == attention | ({f"expert_{name}" for name in mlp} if spec.experts else mlp)
  for name in set(params["layers"]) - kernels:
    np.testing.assert_array_equal(low["layers"][name], params["layers"][name])
  ids = np.zeros((spec.layers, IDS.size, 2), np.int32) + [0, 3] if spec.experts else None  # no ties
  hidden = lambda params: np.asarray(routed(params, spec, IDS, expert_ids_LMA=ids)[0])
  np.testing.assert_allclose(hidden(low), hidden(dequantized(low)), atol=2e-3)
  assert np.abs(hidden(low) - hidden(params)).max() > 2e-2


def test_an_unknown_type_is_refused():
  with pytest.raises(ValueError, match="'int4'.*bfloat16, int8"):
    quantize.cast({}, "int4")


def test_a_quantised_sampler_reports_what_it_sampled_from():
  """Its log-probs are exactly those of the dequantised model, and measurably not the learner's."""
  spec = models.ModelSpec(
    vocab_size=11, width=32, layers=2, heads=2, kv_heads=1, head_width=16, mlp_width=48
  )
  params = jax.tree.map(lambda x: x * 20 if x.ndim > 1 else x, models.init(spec, jax.random.key(0)))
  settings = sampler.Settings(max_new_tokens=8, samples_per_prompt=16, stop_ids=(0,))
  weights = prepare(params, version=0, dtype="int8", noise=0.0)
  rollouts = sampler.generate(weights, spec, [[1, 2, 3]], jax.random.key(0), settings)
  tokens, reported = np.zeros((16, 11), np.int32), np.full((16, 11), np.nan)
  for i, rollout in enumerate(rollouts):
    end = 3 + len(rollout.response_ids)
    tokens[i, :3], tokens[i, 3:end] = rollout.prompt_ids, rollout.response_ids
    reported[i, 3:end] = rollout.behaviour_logprobs
  learner, same = (
    np.abs(token_logprobs(p, spec, tokens)[0] - reported)
    for p in (params, dequantized(quantize.cast(params, "int8")))
  )
  assert np.nanmax(same) < 1e-4
  assert 1e-3 < np.nanmean(learner) < 0.2
