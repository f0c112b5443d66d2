"""Attention in pieces of its queries, against the whole."""

import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax.models import attention


def test_pieces_of_queries_give_the_same_values_and_gradients(monkeypatch):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  rows, queries, heads, kv_heads, width, prompts, slots = 4, 37, 4, 2, 8, 2, 11
  own = attention.block(
    draw(rows, queries, kv_heads, width),
    draw(rows, queries, kv_heads, width),
    lambda at: jnp.arange(queries) <= at[None, :, None],
  )
  prefix = attention.block(
    draw(prompts, slots, kv_heads, width),
    draw(prompts, slots, kv_heads, width),
    jnp.asarray(rng.random((prompts, 1, slots)) < 0.7),
  )

  def total(queries_BTNH, own_keys, own_values, prefix_keys, prefix_values):
    one = attention.Block(own_keys, own_values, attention.mask_of(own.mask, queries))
    other = attention.Block(prefix_keys, prefix_values, prefix.mask)
    return jnp.sum(jnp.sin(attention.attend(queries_BTNH, one, other)))

  blocks = (own.keys_BKHS, own.values_BKSH, prefix.keys_BKHS, prefix.values_BKSH)
  arguments = (draw(rows, queries, heads, width), *blocks)
  gradient = lambda: jax.value_and_grad(total, argnums=range(5))(*arguments)
  whole = gradient()
  monkeypatch.setattr(attention, "QUERY_BLOCK", 16)  # the last of three pieces is padded
  for got, expected in zip(*map(jax.tree.leaves, (gradient(), whole)), strict=True):
    np.testing.assert_allclose(got, expected, atol=2e-5, rtol=1e-5)
