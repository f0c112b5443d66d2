"""The draw of a token, against exact integer arithmetic."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax.sampler.sampling import categorical

EDGES = [0, 1, 2**16 - 1, 2**16, 2**31, 2**32 - 2, 2**32 - 1]


def distributions(size: int, rows: int = 50) -> np.ndarray:
  rng = np.random.default_rng(size)
  probs = rng.dirichlet(np.full(size, 0.1), rows).astype(np.float32)
  probs[rng.random(probs.shape) < 0.3] = 0.0
  probs[:, 0] = probs[:, -1] = 0.0
  probs[:, size // 2] += 1e-3
  return probs / probs.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("size", [3, 64, 65, 1000])
def test_a_draw_inverts_the_cumulative_distribution(size):
  probs = distributions(size)
  rng = np.random.default_rng(0)
  bits = np.concatenate([EDGES, rng.integers(0, 2**32, 43)]).astype(np.uint32)
  expected = []
  for p, b in zip(probs, bits.tolist(), strict=True):
    until = np.cumsum((p.astype(np.float64) * 2**31).astype(np.int64)).tolist()
    drawn = b * until[-1] // 2**32  # Python integers: exact
    expected.append(sum(u <= drawn for u in until))
  tokens = categorical(jnp.asarray(probs), jnp.asarray(bits))
  chex.assert_trees_all_equal(np.asarray(tokens), np.array(expected, np.int32))
  assert (np.take_along_axis(probs, np.asarray(tokens)[:, None], axis=1) > 0).all()


def test_even_numbers_draw_every_token_as_often_as_it_is_likely():
  probs = distributions(100, rows=1)
  n = 2**16
  bits = jnp.arange(n, dtype=jnp.uint32) << 16
  tokens = categorical(jnp.broadcast_to(probs, (n, 100)), bits)
  counts = np.bincount(np.asarray(tokens), minlength=100)
  np.testing.assert_allclose(counts, probs[0] * n, atol=1.01)


def test_what_is_no_distribution_still_gives_a_token():
  tokens = jax.jit(categorical)(jnp.full((2, 100), jnp.nan), jnp.array([0, 2**32 - 1], jnp.uint32))
  assert ((tokens >= 0) & (tokens < 100)).all()
