"""Precision of the pieces that must not follow the compute type."""

import jax.numpy as jnp
import numpy as np

from vespo_jax.models import ModelSpec
from vespo_jax.models.layers import rms_norm, rotary_angles


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
