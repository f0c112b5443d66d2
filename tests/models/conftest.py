import jax
import numpy as np
import pytest

from vespo_jax import models

SPECS = {
  "qwen3": dict(qk_norm=True, qkv_bias=False, tied_embeddings=True),
  "qwen2": dict(qk_norm=False, qkv_bias=True, tied_embeddings=False),
  "llama": dict(qk_norm=False, qkv_bias=False, tied_embeddings=False),
}


@pytest.fixture(params=SPECS)
def model(request):
  """A small spec of each family and parameters large enough that every part matters."""
  spec = models.ModelSpec(
    vocab_size=61,
    width=24,
    layers=3,
    heads=4,
    kv_heads=2,
    head_width=8,
    mlp_width=40,
    **SPECS[request.param],
  )
  params = models.init(spec, jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), params)
  return spec, params
