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
    layer: index on the stacked axis, or None.
    transposed: True where the file stores [out, in] and we store [in, out].
    shape: of the tensor in the file.
  """

  name: str
  path: tuple[str, ...]
  layer: int | None
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
}


def table(spec: ModelSpec) -> Iterator[Row]:
  """Every tensor of a model of this spec, in the order of the layers."""
  tree = describe(spec)
  for key, name in _TOP.items():
    if key in tree:
      yield Row(name, (key,), None, False, tree[key].shape)
  for layer in range(spec.layers):
    for key, name in _LAYER.items():
      if key in tree["layers"]:
        shape = tree["layers"][key].shape[1:]
        transposed = len(shape) == 2
        yield Row(
          f"model.layers.{layer}.{name}",
          ("layers", key),
          layer,
          transposed,
          shape[::-1] if transposed else shape,
        )
