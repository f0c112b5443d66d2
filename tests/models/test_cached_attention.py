"""Attention to the cache by kernels, against the dense reference: the kernels are interpreted."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.gpu import decode_attention

from vespo_jax import models
from vespo_jax.models import attention, cached_attention

SPEC = models.ModelSpec(
  vocab_size=61, width=24, layers=1, heads=4, kv_heads=2, head_width=16, mlp_width=40
)


@pytest.fixture(params=["flash", "paged"])
def kernel(request, monkeypatch):
  mqa = functools.partial(decode_attention.mqa, interpret=True)
  monkeypatch.setattr(decode_attention, "mqa", mqa)
  interpreted = pltpu.force_tpu_interpret_mode if request.param == "paged" else None
  with interpreted() if interpreted else contextlib.nullcontext():
    yield request.param


def test_a_token_attends_to_the_slots_of_its_row(kernel):
  """Keys and values that bfloat16 has, to which the paged kernel rounds them."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), "bfloat16").astype(jnp.float32)
  B, N, K, S, H = 3, 4, 2, 2 * cached_attention.PAGE, 16
  queries, keys, values = draw(B, N, H), draw(B, K, S, H), draw(B, K, S, H)
  lengths_B = jnp.array([S, 1, 131], jnp.int32)
  mask = (jnp.arange(S) < lengths_B[:, None])[:, None]
  block = attention.Block(jnp.swapaxes(keys, 2, 3), values, mask)
  expected = attention.attend(queries[:, None], block).reshape(B, N, H)
  attend = jax.jit(functools.partial(cached_attention.attend, kernel))
  mixed = attend(queries, keys, values, lengths_B)
  np.testing.assert_allclose(mixed, expected, atol=2e-6)
  beyond = attend(queries, keys, values, lengths_B + S)
  np.testing.assert_allclose(beyond[0], expected[0], atol=2e-6)  # a full row that waits


@pytest.mark.parametrize("kernel", ["flash"], indirect=True)
def test_rows_are_prefilled_copied_and_continued_alike(kernel):
  """Prompts padded on the right, put into rows of a wider cache, and two more tokens."""
  rng = np.random.default_rng(0)
  draw = lambda info: jnp.asarray(0.2 * rng.normal(size=info.shape), info.dtype)
  params = models.unstack(jax.tree.map(draw, models.abstract(SPEC)))
  prompts, more = (jnp.asarray(rng.integers(0, 61, (3, n)), jnp.int32) for n in (5, 2))
  real = jnp.asarray(np.arange(5) < np.array([[5], [1], [3]]))
  forward = jax.jit(models.forward, static_argnums=1)

  def hidden(attention):
    empty = functools.partial(models.init_cache, SPEC, attention=attention)
    _, source = forward(params, SPEC, prompts, segments=real, cache=empty(3, 5))
    cache = jax.tree.map(lambda x: x + 7, empty(3, 128))  # slots hold something else
    cache = models.copy_rows(cache, source, jnp.arange(3), jnp.array([2, 0, 1]), 3)
    out = []
    for token in more.T:
      step, cache = forward(params, SPEC, token[:, None], cache=cache)
      out.append(step)
    assert cache.attention == attention
    return jnp.stack(out), cache.lengths_B

  chex.assert_trees_all_close(hidden(kernel), hidden("dense"), atol=2e-5, rtol=1e-4)


def test_a_cache_has_whole_pages():
  queries, keys = np.zeros((1, 2, 16)), np.zeros((1, 2, 100, 16))
  with pytest.raises(ValueError, match="a multiple of 128 slots, not 100"):
    cached_attention.attend("paged", queries, keys, keys, np.ones(1, np.int32))
