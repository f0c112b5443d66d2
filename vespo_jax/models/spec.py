"""The static description of a decoder-only policy: everything about it but its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

ROPE_SCALINGS = ("default", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """Sizes and switches of one architecture; hashable, so it can be a static argument of `jit`.

  Attributes:
    vocab_size, width, layers: V, D, L.
    heads, kv_heads, head_width: N, K, H; `heads` is a multiple of `kv_heads`.
    mlp_width: F, of the dense feed-forward layer or of each expert.
    rope_theta: base of the rotary frequencies.
    norm_epsilon: of every RMSNorm.
    qk_norm: RMSNorm on each query and key head before the rotation (Qwen3).
    qkv_bias: biases on the query, key and value projections (Qwen2).
    tied_embeddings: the output head is the embedding table.
    context: positions the model was made for; nothing is checked against it.
    rope_scaling: `default`, none; `linear`, all frequencies over `rope_factor`; `llama3`, that for
      wavelengths above `rope_context / rope_low_factor`, none below `rope_context /
      rope_high_factor`, and interpolated between (Llama 3.1).
    experts: E, experts of every layer; 0 is a dense model.
    active_experts: A, those a token goes to.
    normalize_router: whether the weights of the chosen experts are scaled to sum to 1.
    style: `mixtral` where a mixture of experts has Mixtral's tensor names, else "".

  Raises:
    ValueError: naming the field that is out of range, or the heads that do not divide.
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
  context: int = 32_768
  rope_scaling: str = "default"
  rope_factor: float = 1.0
  rope_low_factor: float = 1.0
  rope_high_factor: float = 4.0
  rope_context: int = 8192
  experts: int = 0
  active_experts: int = 0
  normalize_router: bool = True
  style: str = ""

  def __post_init__(self):
    for field in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "mlp_width"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
    if self.heads % self.kv_heads:
      raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
    if self.head_width % 2:
      raise ValueError(f"head_width must be even for rotary positions, got {self.head_width}")
    if self.rope_scaling not in ROPE_SCALINGS:
      raise ValueError(f"rope_scaling={self.rope_scaling!r}; known: {', '.join(ROPE_SCALINGS)}")
    if self.experts and not 1 <= self.active_experts <= self.experts:
      raise ValueError(f"active_experts ({self.active_experts}) must be 1 to {self.experts}")

  @classmethod
  def from_hf_config(cls, config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a Hugging Face `config.json`: Llama 2 and 3, SmolLM2, Qwen2, Qwen2.5, Qwen3,
    Qwen3-MoE or Mixtral.

    `rope_theta` and the scaling of positions are found at the top level, inside `rope_scaling` or
    inside `rope_parameters`. Raises ValueError naming the key of anything this code would not
    compute exactly.
    """
    kind = config.get("model_type")
    if kind not in _HF_CLASSES:
      raise ValueError(f"model_type {kind!r} is not supported; known: {', '.join(_HF_CLASSES)}")
    for key, harmless in _REFUSED.items():
      allowed = kind == "qwen2" and key == "attention_bias"
      if key in config and config[key] not in harmless and not allowed:
        raise ValueError(f"{key}={config[key]!r} is not supported for {kind!r}")
    if set(config.get("layer_types") or ()) - {"full_attention"}:
      raise ValueError(f"layer_types={config['layer_types']!r}: only full_attention is supported")
    if kind == "mixtral" and config.get("sliding_window"):
      raise ValueError(f"sliding_window={config['sliding_window']!r} is not supported")
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    if theta is None and kind == "llama":
      theta = 10_000.0  # Llama 2's published files leave it out
    if theta is None:
      raise ValueError("rope_theta is missing, at the top level and in rope_parameters")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
      raise ValueError(f"partial_rotary_factor={rope['partial_rotary_factor']} is not supported")
    heads = config["num_attention_heads"]
    moe = kind in ("qwen3_moe", "mixtral")
    experts = (config.get("num_experts") or config.get("num_local_experts") or 0) if moe else 0
    return cls(
      vocab_size=config["vocab_size"],
      width=config["hidden_size"],
      layers=config["num_hidden_layers"],
      heads=heads,
      kv_heads=config.get("num_key_value_heads") or heads,
      head_width=config.get("head_dim") or config["hidden_size"] // heads,
      mlp_width=config["moe_intermediate_size" if kind == "qwen3_moe" else "intermediate_size"],
      rope_theta=float(theta),
      norm_epsilon=config["rms_norm_eps"],
      qk_norm=kind in ("qwen3", "qwen3_moe"),
      qkv_bias=kind == "qwen2",
      tied_embeddings=bool(config.get("tie_word_embeddings", False)),
      context=config.get("max_position_embeddings", cls.context),
      experts=experts,
      active_experts=config["num_experts_per_tok"] if moe else 0,
      normalize_router=kind != "qwen3_moe" or bool(config.get("norm_topk_prob", False)),
      style="mixtral" if kind == "mixtral" else "",
      **_rope_scaling(rope),
    )

  def to_hf_config(self) -> dict[str, Any]:
    """The `config.json` that makes `transformers` build this model; ValueError if none does."""
    kinds = {(False, False): "llama", (False, True): "qwen2", (True, False): "qwen3"}
    kind = kinds.get((self.qk_norm, self.qkv_bias), "")
    if self.experts:
      kinds = {("mixtral", "llama"): "mixtral", ("", "qwen3"): "qwen3_moe"}
      kind = kinds.get((self.style, kind), "")
    if not kind or (kind == "mixtral" and not self.normalize_router):
      raise ValueError("no Hugging Face architecture has this mix of qk_norm, biases and experts")
    config: dict[str, Any] = {
      "architectures": [_HF_CLASSES[kind]],
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
      "max_position_embeddings": self.context,
      "torch_dtype": "float32",
    }
    if self.rope_scaling != "default":
      config["rope_scaling"] = {"rope_type": self.rope_scaling, "factor": self.rope_factor}
    if self.rope_scaling == "llama3":
      config["rope_scaling"] |= {
        "low_freq_factor": self.rope_low_factor,
        "high_freq_factor": self.rope_high_factor,
        "original_max_position_embeddings": self.rope_context,
      }
    if kind == "qwen3_moe":
      config |= {
        "num_experts": self.experts,
        "num_experts_per_tok": self.active_experts,
        "moe_intermediate_size": self.mlp_width,
        "norm_topk_prob": self.normalize_router,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
      }
    elif kind == "mixtral":
      config |= {"num_local_experts": self.experts, "num_experts_per_tok": self.active_experts}
    return config


def _rope_scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a spec that say how positions are scaled."""
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ROPE_SCALINGS:
    raise ValueError(f"rope_type={kind!r} is not supported; known: {', '.join(ROPE_SCALINGS)}")
  fields: dict[str, Any] = {"rope_scaling": kind}
  if kind != "default":
    fields["rope_factor"] = float(rope["factor"])
  if kind == "llama3":
    fields |= {
      "rope_low_factor": float(rope["low_freq_factor"]),
      "rope_high_factor": float(rope["high_freq_factor"]),
      "rope_context": int(rope["original_max_position_embeddings"]),
    }
  return fields


# Keys of a config that change what a model computes, and the values at which they do not.
_REFUSED: dict[str, tuple[Any, ...]] = {
  "hidden_act": ("silu",),
  "mlp_bias": (False, None),
  "attention_bias": (False, None),
  "use_sliding_window": (False, None),
  "decoder_sparse_step": (1,),
  "mlp_only_layers": ([], None),
  "partial_rotary_factor": (1.0, None),
}
_HF_CLASSES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "qwen3_moe": "Qwen3MoeForCausalLM",
  "mixtral": "MixtralForCausalLM",
}
