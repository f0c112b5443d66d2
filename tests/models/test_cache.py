"""Writing to the key/value cache converts nothing of the rest of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax import models
from vespo_jax.models import cache as cache_lib

B, K, S, H = 16, 2, 64, 8
DTYPE = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def temporaries(function, *args):
  compiled = jax.jit(function, donate_argnums=0).lower(*args).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@DTYPE
@pytest.mark.parametrize("slot_axis", [2, 3])
def test_new_tokens_are_put_in_place(dtype, slot_axis):
  shape = (B, K, S, H) if slot_axis == 2 else (B, K, H, S)
  values = np.random.default_rng(0).normal(size=shape)
  cache, new = jnp.asarray(values, dtype), jnp.full((B, 1, K, H), 3.0, dtype)
  slots = jnp.full((B, 1), 5).at[0].set(S)  # row 0 is full
  put = lambda cache, new, slots: cache_lib.put(cache, new, slots, slot_axis)
  expected = np.moveaxis(np.array(cache), slot_axis, 2)
  expected[1:, :, 5] = 3.0
  np.testing.assert_array_equal(
    np.moveaxis(jax.jit(put)(cache, new, slots), slot_axis, 2), expected
  )
  copies = 1 if dtype == jnp.bfloat16 else 0  # of the bits; it was all of it in float32
  assert temporaries(put, cache, new, slots) < (copies + 0.5) * cache.nbytes


@DTYPE
def test_rows_are_copied_in_place(dtype):
  spec = models.ModelSpec(61, width=8, layers=2, heads=2, kv_heads=K, head_width=H, mlp_width=8)
  cache, source = (models.init_cache(spec, rows, S, dtype) for rows in (B, 1))
  source = jax.tree.map(lambda x: x + 1, source)
  rows = jnp.zeros(B, jnp.int32), jnp.arange(B)
  copied = jax.jit(models.copy_rows)(cache, source, *rows, jnp.int32(2))
  for layer in (*copied.keys, *copied.values):
    assert (layer[:2] == 1).all() and (layer[2:] == 0).all()
  layer = cache.keys[0].nbytes
  assert temporaries(models.copy_rows, cache, source, *rows, jnp.int32(2)) < layer / 2
