"""The policy model: a spec, a plain tree of arrays, and pure functions of both."""

from __future__ import annotations

from typing import Any

from vespo_jax.models import lora, quantize
from vespo_jax.models.cache import KVCache, copy_rows, init_cache
from vespo_jax.models.compute import (
  ATTENTION,
  DECODE_ATTENTION,
  DTYPES,
  REMAT,
  Compute,
  check_platform,
)
from vespo_jax.models.groups import group_logit_norms, group_logprobs, group_logprobs_routed
from vespo_jax.models.head import chunked_logprobs, token_logprobs
from vespo_jax.models.layers import rotary_angles
from vespo_jax.models.moe import Routing, pack_expert_ids
from vespo_jax.models.params import abstract, count, describe, head_table, init, unstack
from vespo_jax.models.spec import ModelSpec
from vespo_jax.models.transformer import forward, forward_groups, forward_routed


def load(path: Any, **kwargs: Any) -> Any:
  """`(spec, params, tokenizer)` of the model at `path`; see `vespo_jax.weights.load`."""
  from vespo_jax import weights  # a room above this one: the public name is all that lives here

  return weights.load(path, **kwargs)


def save(path: Any, spec: ModelSpec, params: Any, tokenizer: Any, **kwargs: Any) -> None:
  """Writes the model to `path`; see `vespo_jax.weights.save`."""
  from vespo_jax import weights

  weights.save(path, spec, params, tokenizer, **kwargs)


__all__ = [
  "ATTENTION",
  "DECODE_ATTENTION",
  "DTYPES",
  "REMAT",
  "Compute",
  "KVCache",
  "ModelSpec",
  "Routing",
  "abstract",
  "check_platform",
  "chunked_logprobs",
  "copy_rows",
  "count",
  "describe",
  "forward",
  "forward_groups",
  "forward_routed",
  "group_logit_norms",
  "group_logprobs",
  "group_logprobs_routed",
  "head_table",
  "init",
  "init_cache",
  "load",
  "lora",
  "pack_expert_ids",
  "quantize",
  "rotary_angles",
  "save",
  "token_logprobs",
  "unstack",
]
