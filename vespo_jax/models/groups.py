"""Log-probabilities of a batch of groups, on one device or spread over a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from vespo_jax.models import partition
from vespo_jax.models.compute import PLAIN, Compute
from vespo_jax.models.head import chunked_logprobs, statistics
from vespo_jax.models.moe import Routing, unpack_expert_ids
from vespo_jax.models.params import head_table
from vespo_jax.models.spec import ModelSpec
from vespo_jax.models.transformer import forward_groups, forward_routed
from vespo_jax.types import Array, HostArray, Params, TrainBatch


def group_logprobs(
  params: Params,
  spec: ModelSpec,
  batch: TrainBatch,
  temperature: float = 1.0,
  compute: Compute = PLAIN,
) -> tuple[Array, Array]:
  """Log-prob and entropy of every response token of a batch of groups, or of every token but the
  first of each sequence of packed rows, float32 [P, R, T].

  Differentiable with respect to the parameters, whatever type `compute` has them used in.
  """
  return group_logprobs_routed(params, spec, batch, temperature, compute)[:2]


def group_logprobs_routed(
  params: Params,
  spec: ModelSpec,
  batch: TrainBatch,
  temperature: float = 1.0,
  compute: Compute = PLAIN,
) -> tuple[Array, Array, Routing | None]:
  """`group_logprobs`, and what the routers did (None of a dense model); they replay the batch's
  expert ids where it has them.

  Inside `partition.over` a mesh the work is spread over it, where the prompts divide over its
  `BATCH_AXES`.
  """

  def local(
    params: Params, groups: _Groups, temperature: Array
  ) -> tuple[Array, Array, _Routed | None]:
    hidden_MD, table_VD, routing = _group_hidden(params, spec, groups, compute)
    shape = groups.response_tokens_PRT.shape
    targets_M = jnp.asarray(groups.response_tokens_PRT).reshape(-1)
    results = chunked_logprobs(hidden_MD, table_VD, targets_M, temperature)
    logprobs_PRT, entropy_PRT = (x.reshape(shape) for x in results)
    return logprobs_PRT, entropy_PRT, None if routing is None else _Routed.split(routing, groups)

  T = batch.response_tokens_PRT.shape[-1]
  run, groups = _spread(local, params, spec, _Groups.of(batch))
  logprobs_PRT, entropy_PRT, routed = run(params, groups, jnp.float32(temperature))
  routing = None if routed is None else routed.join(batch.prompt_tokens_PS.shape[1], T)
  return logprobs_PRT[..., :T], entropy_PRT[..., :T], routing


def group_logit_norms(
  params: Params,
  spec: ModelSpec,
  batch: TrainBatch,
  temperature: float = 1.0,
  compute: Compute = PLAIN,
) -> Array:
  """|d log pi(y_t) / d logits|^2 = 1 - 2 pi(y_t) + sum_v pi(v)^2 of every response token, float32
  [P, R, T], at temperature 1 of the scaled logits: from (1 - pi(y_t))^2 to twice that."""

  def local(params: Params, groups: _Groups, temperature: Array) -> Array:
    hidden_MD, table_VD, _ = _group_hidden(params, spec, groups, compute)
    targets_M = jnp.asarray(groups.response_tokens_PRT).reshape(-1)
    found = statistics(hidden_MD, table_VD, targets_M, temperature)
    logprob_M = found.logit_M - found.log_z_M
    rest_M = jnp.expm1(logprob_M) ** 2  # of all other tokens' probabilities together, squared
    squares_M = rest_M + jnp.clip(found.squares_M - jnp.exp(2 * logprob_M), 0.0, rest_M)
    return squares_M.reshape(groups.response_tokens_PRT.shape)

  run, groups = _spread(local, params, spec, _Groups.of(batch), routed=False)
  T = batch.response_tokens_PRT.shape[-1]
  return run(params, groups, jnp.float32(temperature))[..., :T]


@flax.struct.dataclass
class _Groups:
  """What the forward pass needs of a batch; expert ids of prompts and of responses apart, segments
  where it is of packed rows."""

  prompt_tokens_PS: HostArray
  prompt_mask_PS: HostArray
  response_tokens_PRT: HostArray
  response_mask_PRT: HostArray
  prompt_ids_PSLA: HostArray | None = None
  response_ids_PRTLA: HostArray | None = None
  segments_PRT: HostArray | None = None

  @classmethod
  def of(cls, batch: TrainBatch) -> _Groups:
    tokens = (batch.prompt_tokens_PS, batch.prompt_mask_PS)
    tokens += (batch.response_tokens_PRT, batch.response_mask_PRT)
    ids = batch.expert_ids_PJLA
    if ids is None:
      return cls(*tokens, segments_PRT=batch.segments_PRT)
    S = batch.prompt_tokens_PS.shape[1]
    responses = ids[:, S:].reshape(*batch.response_tokens_PRT.shape, *ids.shape[2:])
    return cls(*tokens, ids[:, :S], responses, batch.segments_PRT)

  @property
  def expert_ids_LMA(self) -> Array | None:
    """int32, as `forward_groups` replays them."""
    if self.prompt_ids_PSLA is None or self.response_ids_PRTLA is None:
      return None
    P, _, L, A = self.prompt_ids_PSLA.shape
    responses = jnp.asarray(self.response_ids_PRTLA).reshape(P, -1, L, A)
    ids = jnp.concatenate([jnp.asarray(self.prompt_ids_PSLA), responses], axis=1)
    return unpack_expert_ids(ids.reshape(-1, L, A))

  def padded(self, multiple: int) -> _Groups:
    """With prompts (on the left) and responses (on the right) as long as a multiple."""

    def pad(x: HostArray, axis: int, left: bool) -> Array:
      more = -x.shape[axis] % multiple
      widths = [(0, 0)] * x.ndim
      widths[axis] = (more, 0) if left else (0, more)
      return jnp.pad(x, widths) if more else jnp.asarray(x)

    prompt, response = (lambda x: pad(x, 1, True)), (lambda x: pad(x, 2, False))
    ids = {}
    if self.prompt_ids_PSLA is not None and self.response_ids_PRTLA is not None:
      ids["prompt_ids_PSLA"] = prompt(self.prompt_ids_PSLA)
      ids["response_ids_PRTLA"] = response(self.response_ids_PRTLA)
    return dataclasses.replace(
      self,
      prompt_tokens_PS=prompt(self.prompt_tokens_PS),
      prompt_mask_PS=prompt(self.prompt_mask_PS),
      response_tokens_PRT=response(self.response_tokens_PRT),
      response_mask_PRT=response(self.response_mask_PRT),
      **ids,
    )


@flax.struct.dataclass
class _Routed:
  """A `Routing` whose expert ids are apart as in `_Groups`: [L, P, S, A] and [L, P, R, T, A]."""

  sums: Routing
  prompt_ids_LPSA: Array
  response_ids_LPRTA: Array

  @classmethod
  def split(cls, routing: Routing, groups: _Groups) -> _Routed:
    (P, S), (_, R, T) = groups.prompt_tokens_PS.shape, groups.response_tokens_PRT.shape
    ids = routing.expert_ids_LMA
    L, _, A = ids.shape
    ids = ids.reshape(L, P, S + R * T, A)
    sums = dataclasses.replace(routing, expert_ids_LMA=ids[:, 0, :0])
    return cls(sums, ids[:, :, :S], ids[:, :, S:].reshape(L, P, R, T, A))

  def join(self, S: int, T: int) -> Routing:
    """With expert ids of the last S tokens of prompts and the first T of responses."""
    prompts, responses = self.prompt_ids_LPSA[:, :, -S:], self.response_ids_LPRTA[:, :, :, :T]
    L, P, _, A = prompts.shape
    ids = jnp.concatenate([prompts, responses.reshape(L, P, -1, A)], axis=2)
    return dataclasses.replace(self.sums, expert_ids_LMA=ids.reshape(L, -1, A))


def _spread(
  local: Callable[..., Any],
  params: Params,
  spec: ModelSpec,
  groups: _Groups,
  routed: bool = True,
) -> tuple[Callable[..., Any], _Groups]:
  """`local(params, groups, temperature)` over the current mesh, if there is one that the prompts
  divide over, and the groups as long as that needs them."""
  mesh = partition.current_mesh()
  batch = partition.BATCH_AXES
  packed = groups.segments_PRT is not None  # XLA spreads these by itself
  if mesh is None or packed or len(groups.response_tokens_PRT) % partition.devices(mesh):
    return local, groups
  groups = groups.padded(partition.devices(mesh, ("sequence", "tensor")))
  prompts: Any = P(batch, "sequence")  # specs stand in the place of arrays
  responses: Any = P(batch, None, "sequence")
  ids = groups.prompt_ids_PSLA is not None
  group_specs = _Groups(
    *(prompts, prompts, responses, responses),
    *((prompts, responses) if ids else (None, None)),
  )
  out_specs: Any = responses
  if routed:
    experts = None
    if spec.experts:
      whole: Any = P()
      sums = Routing(*(whole for _ in dataclasses.fields(Routing)))
      of_layers: Any = (P(None, *prompts), P(None, *responses))
      experts = _Routed(sums, *of_layers)
    out_specs = (responses, responses, experts)
  specs = (partition.param_specs(spec, params), group_specs, P())
  return partition.spread(local, mesh, specs, out_specs), groups


def _group_hidden(
  params: Params, spec: ModelSpec, groups: _Groups, compute: Compute
) -> tuple[Array, Array, Routing | None]:
  """The hidden states before each response token [M, D], the table's rows, and the routing."""
  params = jax.tree.map(lambda leaf: leaf.astype(compute.dtype), params)
  if groups.segments_PRT is None:
    hidden_PRTD, routing = forward_groups(
      params,
      spec,
      groups.prompt_tokens_PS,
      groups.prompt_mask_PS,
      groups.response_tokens_PRT,
      groups.response_mask_PRT,
      groups.expert_ids_LMA,
      compute,
    )
  else:
    hidden_PTD, _, routing = forward_routed(
      params,
      spec,
      groups.response_tokens_PRT[:, 0],
      segments=groups.segments_PRT[:, 0],
      expert_ids_LMA=groups.expert_ids_LMA,
      compute=compute,
    )
    hidden_PRTD = jnp.pad(hidden_PTD[:, None, :-1], [(0, 0), (0, 0), (1, 0), (0, 0)])
  table_VD = partition.gather(head_table(params), "fsdp", 1)
  return hidden_PRTD.reshape(-1, hidden_PRTD.shape[-1]), table_VD, routing
