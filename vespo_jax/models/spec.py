"""The static description of a decoder-only policy: everything about it but its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """Sizes and switches of one architecture; hashable, so it can be a static argument of `jit`.

  Attributes:
    vocab_size, width, layers: V, D, L.
    heads, kv_heads, head_width: N, K, H; `heads` is a multiple of `kv_heads`.
    mlp_width: F.
    rope_theta: base of the rotary frequencies.
    norm_epsilon: of every RMSNorm.
    qk_norm: RMSNorm on each query and key head before the rotation (Qwen3).
    qkv_bias: biases on the query, key and value projections (Qwen2).
    tied_embeddings: the output head is the embedding table.

  Raises:
    ValueError: naming the field, if a size is not positive or the heads do not divide.
  """

  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_width: int
  mlp_width: int
  rope_theta: float = 10_000.0
  norm_epsilon: float = 1e-6
  qk_norm: bool = True
  qkv_bias: bool = False
  tied_embeddings: bool = True

  def __post_init__(self):
    for field in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "mlp_width"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
    if self.heads % self.kv_heads:
      raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
    if self.head_width % 2:
      raise ValueError(f"head_width must be even for rotary positions, got {self.head_width}")

  @classmethod
  def from_hf_config(cls, config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a Hugging Face `config.json` of a dense Llama, Qwen2 or Qwen3 model.

    `rope_theta` is found at the top level or inside `rope_parameters`. Raises ValueError naming the
    key of anything this code would not compute exactly.
    """
    kind = config.get("model_type")
    if kind not in _HF_KINDS:
      raise ValueError(f"model_type {kind!r} is not supported; known: {', '.join(_HF_KINDS)}")
    rope = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
      raise ValueError(f"rope scaling is not supported yet: {rope}")
    if config.get("hidden_act", "silu") != "silu":
      raise ValueError(f"hidden_act must be 'silu', got {config['hidden_act']!r}")
    for key in ("mlp_bias", "use_sliding_window") + (
      () if kind == "qwen2" else ("attention_bias",)
    ):
      if config.get(key):
        raise ValueError(f"{key}={config[key]!r} is not supported for {kind!r}")
    theta = config.get("rope_theta", rope.get("rope_theta"))
    if theta is None:
      raise ValueError("rope_theta is missing, at the top level and in rope_parameters")
    heads = config["num_attention_heads"]
    return cls(
      vocab_size=config["vocab_size"],
      width=config["hidden_size"],
      layers=config["num_hidden_layers"],
      heads=heads,
      kv_heads=config.get("num_key_value_heads") or heads,
      head_width=config.get("head_dim") or config["hidden_size"] // heads,
      mlp_width=config["intermediate_size"],
      rope_theta=float(theta),
      norm_epsilon=config["rms_norm_eps"],
      qk_norm=kind == "qwen3",
      qkv_bias=kind == "qwen2",
      tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )

  def to_hf_config(self) -> dict[str, Any]:
    """The `config.json` that makes `transformers` build this model; ValueError if none does."""
    kinds = {(False, False): "llama", (False, True): "qwen2", (True, False): "qwen3"}
    kind = kinds.get((self.qk_norm, self.qkv_bias))
    if kind is None:
      raise ValueError("no Hugging Face architecture has both qk_norm and qkv_bias")
    return {
      "architectures": [_HF_KINDS[kind]],
      "model_type": kind,
      "vocab_size": self.vocab_size,
      "hidden_size": self.width,
      "num_hidden_layers": self.layers,
      "num_attention_heads": self.heads,
      "num_key_value_heads": self.kv_heads,
      "head_dim": self.head_width,
      "intermediate_size": self.mlp_width,
      "rope_theta": self.rope_theta,
      "rms_norm_eps": self.norm_epsilon,
      "tie_word_embeddings": self.tied_embeddings,
      "hidden_act": "silu",
      "max_position_embeddings": 32768,
      "torch_dtype": "float32",
    }


_HF_KINDS = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
