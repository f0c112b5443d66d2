"""Pieces of a block: precision that must not follow the compute type, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax.models import ModelSpec
from vespo_jax.models.layers import product, rms_norm, rotary_angles


def test_neighbouring_positions_differ_however_far_they_are():
  """bfloat16 holds whole numbers up to 256 only."""
  positions = np.array([0, 256, 257, 4095, 30_001])
  spec = ModelSpec(8, 8, 1, 1, 1, head_width=8, mlp_width=8, rope_theta=10_000.0)
  cos, sin = rotary_angles(jnp.asarray(positions), spec)
  angles = positions[:, None] * 10_000.0 ** (-np.arange(0, 8, 2) / 8)
  np.testing.assert_allclose(cos[:, 0], np.cos(angles), atol=5e-3)
  np.testing.assert_allclose(sin[:, 0], np.sin(angles), atol=5e-3)


def test_a_norm_of_bfloat16_rounds_once():
  x = jnp.asarray(np.random.default_rng(0).normal(0, 300, (64, 48)), jnp.bfloat16)
  scale = jnp.asarray(np.random.default_rng(1).normal(1, 0.1, 48), jnp.bfloat16)
  exact = np.asarray(x, np.float64)
  exact *= np.asarray(scale, np.float64) / np.sqrt((exact**2).mean(axis=-1, keepdims=True) + 1e-6)
  got = rms_norm(x, scale, 1e-6)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=2**-8)


@pytest.mark.parametrize("inner", [128, 48])  # columns that are turned by pieces, and at once
@pytest.mark.parametrize("other", ["float32", "bfloat16"])  # of the kernel
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_has_the_gradients_of_a_plain_one(inner, dtype, other):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(40, inner)), dtype)
  kernel = jnp.asarray(rng.normal(size=(inner, 24)), other)
  y, pull = jax.vjp(product, x, kernel)
  of_y = jnp.asarray(rng.normal(size=(40, 24)), y.dtype)
  expected, pull_plain = jax.vjp(jnp.matmul, x, kernel)
  np.testing.assert_array_equal(y, expected)
  for got, plain in zip(pull(of_y), pull_plain(of_y), strict=True):
    assert got.dtype == plain.dtype
    tolerance = 1e-5 if dtype == other == "float32" else 2**-7
    np.testing.assert_allclose(
      *(np.asarray(g, np.float64) for g in (got, plain)), rtol=tolerance, atol=8 * tolerance
    )


def test_only_a_cpu_turns_what_it_multiplies():
  """Elsewhere a second copy would be for nothing."""
  like = jax.ShapeDtypeStruct((40, 128), jnp.float32), jax.ShapeDtypeStruct((128, 24), jnp.float32)
  gradient = jax.jit(jax.grad(lambda x, kernel: jnp.sum(product(x, kernel) ** 2), argnums=1))
  for platform, held in (("cpu", True), ("tpu", False), ("cuda", False)):
    lowered = gradient.trace(*like).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in lowered) == held
