"""The sizes of an update that its costs are made of: tokens, products and pairs of attention."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from ml_collections import FrozenConfigDict

from experiments.scale.programs import abstract_state
from vespo_jax import models, sharding, training
from vespo_jax.models import ModelSpec
from vespo_jax.models.partition import BATCH_AXES

Sizes = Mapping[str, int]  # devices along each mesh axis


@dataclasses.dataclass(frozen=True)
class Workload:
  """One update of a config.

  Attributes:
    spec: of the policy.
    prompts, samples, prompt_width, width: P, R, S and T of the minibatch; responses are computed at
      their whole width whatever they hold.
    micro_batches: pieces.
    remat: as `policy.remat`.
    scored: policies beside the trained one that score each minibatch, each a copy of the weights.
    state_width: bytes of a parameter in the optimizer's state, all moments together.
    offload: whether that state is in the host's memory between updates.
    width_bytes: of one number of the parameters and their gradients.
    compute_bytes: of one number of activations and gathered weights.
    attention: `dense`, whose scores are kept for a piece of queries, or the name of a fused kernel.
    sampler_bytes: of one number of the sampler's weights and cache.
    wire_bytes: of one number as it is published.
  """

  spec: ModelSpec
  prompts: int
  samples: int
  prompt_width: int
  width: int
  micro_batches: int
  remat: str
  scored: int
  state_width: float
  offload: bool
  width_bytes: int
  compute_bytes: int
  attention: str
  sampler_bytes: int
  wire_bytes: int

  @classmethod
  def of(cls, config: FrozenConfigDict, spec: ModelSpec, prompt_width: int) -> Workload:
    """The update that the config makes."""
    state, loss = abstract_state(config, spec), training.loss_settings(config)
    count = models.count(spec)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    pieces = config.runtime.weights == "pieces"
    return cls(
      spec,
      config.batch.prompts,
      config.batch.samples_per_prompt,
      prompt_width,
      config.sampler.max_new_tokens,
      config.batch.micro_batches,
      config.policy.remat,
      int(loss.needs_proximal) + int(loss.needs_reference),
      size(state.opt_state) / count,
      config.optimizer.offload,
      size(state.params) // count,
      jnp.dtype(config.policy.dtype).itemsize,
      config.policy.attention,
      jnp.dtype(config.sampler.dtype).itemsize,
      jnp.dtype(config.runtime.pieces.dtype).itemsize if pieces else 4,
    )

  @property
  def tokens(self) -> int:
    """Tokens of a minibatch, padding included; a prompt counts once."""
    return self.prompts * (self.prompt_width + self.samples * self.width)

  @property
  def pairs(self) -> float:
    """Pairs (query, key) of a minibatch that causal attention has."""
    S, T, R = self.prompt_width, self.width, self.samples
    return self.prompts * (S * (S + 1) / 2 + R * (T * (T + 1) / 2 + T * S))

  def groups(self, sizes: Sizes) -> float:
    """Prompts of a micro-batch on one device."""
    return self.prompts / self.micro_batches / math.prod(sizes[axis] for axis in BATCH_AXES)

  def local_tokens(self, sizes: Sizes) -> float:
    """Tokens of a micro-batch that the dense layers of one device see."""
    group = self.prompt_width + self.samples * self.width
    return self.groups(sizes) * group / sizes["sequence"]


def matmul_params(spec: ModelSpec) -> tuple[float, float]:
  """Parameters that each token is multiplied with: of all blocks (of active experts alone), and of
  the head."""
  D, H = spec.width, spec.head_width
  attention = D * H * (2 * spec.heads + 2 * spec.kv_heads)
  mlp = 3 * D * spec.mlp_width * (spec.active_experts or 1) + D * spec.experts
  return float(spec.layers * (attention + mlp)), float(spec.vocab_size * D)


def forward_flops(work: Workload) -> tuple[float, float]:
  """Floating-point operations of one forward pass of a minibatch on all devices: of dense products,
  and of causal attention."""
  blocks, head = matmul_params(work.spec)
  responses = work.prompts * work.samples * work.width
  attention = 4.0 * work.spec.layers * work.spec.heads * work.spec.head_width * work.pairs
  return 2.0 * (blocks * work.tokens + head * responses), attention


def model_flops(work: Workload) -> float:
  """Those that an update needs: a forward and a backward pass, nothing computed again. What MFU
  counts (PaLM, arXiv 2204.02311, appendix B)."""
  return 3.0 * sum(forward_flops(work))


def executed_flops(work: Workload) -> float:
  """Those that this code's update makes: blocks again under `remat`, the head's logits always;
  dense attention over whole masks, long queries' scores again in the backward pass; fused attention
  over the causal part alone, with its scores again in its backward pass (FlashAttention-2, arXiv
  2307.08691)."""
  dense, attention = forward_flops(work)
  again = 1.0 if work.remat == "full" else 0.0
  head = 2.0 * matmul_params(work.spec)[1] * work.prompts * work.samples * work.width
  made = (3 + again) * dense + (1 - again) * head
  attention_again = 0.0 if work.remat == "none" else 1.0
  if work.attention != "dense":
    return made + (3.5 + attention_again) * attention
  pieces = 1.0 if work.width > 1024 else 0.0  # `attention.attend` keeps no scores then
  return made + 2 * (3 + attention_again + pieces) * attention


@functools.cache
def _sharded_params(spec: ModelSpec, sizes: tuple[int, ...]) -> dict[str, float]:
  mesh = AbstractMesh(sizes, sharding.MESH_AXES)
  placed = sharding.param_shardings(mesh, spec)  # refuses what does not divide
  shard = lambda info, place: math.prod(place.shard_shape(info.shape))
  sizes_ = jax.tree.map(shard, models.describe(spec), placed)
  layers, described = sizes_["layers"], models.describe(spec)["layers"]
  experts = sum(size for name, size in layers.items() if "expert" in described[name].axes)
  own = {"layers": layers, "all": sizes_}
  return {"experts": experts, **{name: sum(jax.tree.leaves(part)) for name, part in own.items()}}


def sharded_params(spec: ModelSpec, sizes: Sizes) -> dict[str, float]:
  """Parameters of one device: of the `experts`, of the blocks (`layers`), and `all`.

  Raises ValueError, as `sharding.param_shardings`, if they do not divide.
  """
  return _sharded_params(spec, tuple(sizes[axis] for axis in sharding.MESH_AXES))
