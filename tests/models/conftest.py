import jax
import numpy as np
import pytest

from vespo_jax import models

SPECS = {
  "qwen3": dict(qk_norm=True, qkv_bias=False, tied_embeddings=True),
  "qwen2": dict(qk_norm=False, qkv_bias=True, tied_embeddings=False),
  "llama": dict(
    qk_norm=False,
    tied_embeddings=False,
    rope_theta=500.0,
    norm_epsilon=0.05,
    rope_scaling="llama3",  # so near that the three regimes of frequencies all occur
    rope_factor=8.0,
    rope_context=64,
    rope_low_factor=0.01,
    rope_high_factor=2.0,
  ),
  "qwen3_moe": dict(experts=5, active_experts=2, normalize_router=False, tied_embeddings=False),
  "mixtral": dict(
    qk_norm=False, experts=4, active_experts=2, style="mixtral", tied_embeddings=False
  ),
}


# what a forward pass has peculiar to these is in the others too, or their logits are in
# tests/models/golden, which has all families
ALIKE = ("qwen3", "llama", "mixtral")


@pytest.fixture(params=[pytest.param(k, marks=[pytest.mark.slow] * (k in ALIKE)) for k in SPECS])
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
