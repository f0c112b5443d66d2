"""Bytes of one device's memory, by what they hold: a model of the update and of the sampler.

It is what a layout is chosen by where no compiler for the device is at hand, and to see what a
compiler's sum is made of. Parameters, gradients, optimizer and cache are exact; activations are
those that `policy.remat` keeps; working space is an estimate.
"""

from __future__ import annotations

import dataclasses

from experiments.scale.workload import Sizes, Workload, sharded_params
from vespo_jax.models.moe import SLACK

QUERY_BLOCK = 1024  # of `models.attention.attend`


@dataclasses.dataclass(frozen=True)
class UpdateMemory:
  """Bytes of one device during an update.

  Attributes:
    params, optimizer: the state; `offload`: of which the optimizer's comes from the host when the
      backward pass is done.
    grads: the sum over micro-batches, and those of the present one.
    anchors: the weights of policies that only score.
    kept: what the backward pass keeps of all blocks.
    block: working space of the block that is being differentiated, gathered weights included.
    attention: scores of one piece of queries.
    head: gathered embedding and head, and their gradients.
  """

  params: float
  optimizer: float
  grads: float
  anchors: float
  kept: float
  block: float
  attention: float
  head: float
  offload: bool

  @property
  def temporary(self) -> float:
    """What is no argument of the compiled update: the head is at work before blocks are."""
    return self.grads + self.kept + max(self.block + self.attention, self.head)

  @property
  def total(self) -> float:
    """All of it at its peak."""
    if self.offload:
      return self.params + self.anchors + max(self.temporary, self.grads + self.optimizer)
    return self.params + self.optimizer + self.anchors + self.temporary


def update_memory(work: Workload, sizes: Sizes) -> UpdateMemory:
  """The memory of one device under a layout. Raises ValueError if the parameters do not divide."""
  spec, c, w = work.spec, work.compute_bytes, work.width_bytes
  own = sharded_params(spec, sizes)
  whole = sharded_params(spec, {**sizes, "fsdp": 1, "data": 1})  # gathered over fsdp
  t, s, e = sizes["tensor"], sizes["sequence"], sizes["expert"]
  M = work.local_tokens(sizes)
  D, H, N, K = spec.width, spec.head_width, spec.heads / t, spec.kv_heads / t
  F = spec.mlp_width / t
  projections = H * (2 * N + 2 * K) + (0 if spec.experts else 3 * F)
  kept_of_token = {
    "full": D / t,
    "layers": D / t + D + projections,
    "none": 4 * D + 3 * projections,
  }[work.remat]
  kept = c * spec.layers * M * kept_of_token
  rows = work.groups(sizes) * work.samples
  T_own = work.width / s
  scores = 4 * rows * N * (work.width + work.prompt_width)  # bytes for one query of each row
  if work.remat == "none" and work.width <= QUERY_BLOCK and work.attention == "dense":
    kept += spec.layers * scores * T_own * 2
  weights = 2 * c * whole["layers"] / spec.layers  # gathered, and their gradient
  # the factors of tokens are fitted to what the compiler of v5p makes of this code (docs/scale.md)
  block = weights + c * M * (2 * D + 1.5 * projections)
  if spec.experts:  # every device sees all choices of its group's tokens, or those it is sent
    sees = SLACK if e > spec.active_experts else e
    block += c * M * sees * spec.active_experts * 6 * (D + F)
  keys = c * rows * (work.width + work.prompt_width / work.samples) * 2 * K * H
  block += 2 * keys if s > 1 else 0.0
  # scores, their exponentials, the gradients of both
  attention = 4 * scores * min(T_own, QUERY_BLOCK) if work.attention == "dense" else 0.0
  table = c * spec.vocab_size / t * D
  tables = 1 if spec.tied_embeddings else 2
  head = 2 * tables * table + 8 * rows * T_own * D
  return UpdateMemory(
    params=w * own["all"],
    optimizer=work.state_width * own["all"],
    grads=(2 if work.micro_batches > 1 else 1) * w * own["all"],
    anchors=work.scored * w * own["all"],
    kept=kept,
    block=block,
    attention=attention,
    head=head,
    offload=work.offload,
  )


def sampler_memory(work: Workload, tensor: int) -> tuple[float, float]:
  """Bytes of one device of a sampler that is spread over `tensor` devices: its weights, and the
  cache of one sequence at its longest."""
  sizes = {"data": 1, "fsdp": 1, "tensor": tensor, "expert": 1, "sequence": 1}
  weights = work.sampler_bytes * sharded_params(work.spec, sizes)["all"]
  spec = work.spec
  slot = work.sampler_bytes * 2 * spec.layers * spec.kv_heads / tensor * spec.head_width
  return weights, slot * (work.prompt_width + work.width)
