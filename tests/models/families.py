"""Small models of each family, and which of them a test needs."""

import pytest

from tests.marks import slow_but

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
# what a forward pass has peculiar to the others is in these two, or their logits are in
# tests/models/golden, which has all families
CASES = slow_but(SPECS, "qwen2", "qwen3_moe")
MIXTURE = pytest.mark.parametrize("model", slow_but(SPECS, "qwen3_moe"), indirect=True)
