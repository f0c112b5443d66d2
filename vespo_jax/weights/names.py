"""The two-way table between our parameter tree and Hugging Face's tensor names.

One row per parameter drives reading, writing and the round-trip test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vespo_jax.models import ModelSpec, describe


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor of a Hugging Face file and where it lives with us.

  Attributes:
    name: the file's tensor name.
    path: keys into our tree.
    index: on the stacked axes: (layer,), (layer, expert), or () where there are none.
    transposed: True where the file stores [out, in] and we store [in, out].
    shape: of the tensor in the file.
  """

  name: str
  path: tuple[str, ...]
  index: tuple[int, ...]
  transposed: bool
  shape: tuple[int, ...]


_TOP = {
  "embedding": "model.embed_tokens.weight",
  "final_norm": "model.norm.weight",
  "head": "lm_head.weight",
}
_LAYER = {
  "attention_norm": "input_layernorm.weight",
  "query": "self_attn.q_proj.weight",
  "key": "self_attn.k_proj.weight",
  "value": "self_attn.v_proj.weight",
  "output": "self_attn.o_proj.weight",
  "query_bias": "self_attn.q_proj.bias",
  "key_bias": "self_attn.k_proj.bias",
  "value_bias": "self_attn.v_proj.bias",
  "query_norm": "self_attn.q_norm.weight",
  "key_norm": "self_attn.k_norm.weight",
  "mlp_norm": "post_attention_layernorm.weight",
  "gate": "mlp.gate_proj.weight",
  "up": "mlp.up_proj.weight",
  "down": "mlp.down_proj.weight",
  "router": "mlp.gate.weight",
}
_EXPERT = {
  "expert_gate": "mlp.experts.{}.gate_proj.weight",
  "expert_up": "mlp.experts.{}.up_proj.weight",
  "expert_down": "mlp.experts.{}.down_proj.weight",
}
_MIXTRAL = {
  "router": "block_sparse_moe.gate.weight",
  "expert_gate": "block_sparse_moe.experts.{}.w1.weight",
  "expert_up": "block_sparse_moe.experts.{}.w3.weight",
  "expert_down": "block_sparse_moe.experts.{}.w2.weight",
}


def table(spec: ModelSpec) -> Iterator[Row]:
  """Every tensor of a model of this spec, in the order of the layers."""
  tree = describe(spec)
  for key, name in _TOP.items():
    if key in tree:
      yield Row(name, (key,), (), False, tree[key].shape)
  names = {**_LAYER, **_EXPERT, **(_MIXTRAL if spec.style == "mixtral" else {})}
  for layer in range(spec.layers):
    for key, info in tree["layers"].items():
      name = f"model.layers.{layer}.{names[key]}"
      experts = [(e,) for e in range(spec.experts)] if key in _EXPERT else [()]
      for expert in experts:
        shape = info.shape[1 + len(expert) :]
        transposed = len(shape) == 2
        yield Row(
          name.format(*expert),
          ("layers", key),
          (layer, *expert),
          transposed,
          shape[::-1] if transposed else shape,
        )
