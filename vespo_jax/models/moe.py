"""Mixture of experts: a float32 router, and dropless experts by grouped matrix products.

Sampler and trainer route by this one function. Whatever their numerics, a router near a tie may
choose differently in the two; `expert_ids` replays choices that were made before. In transit they
are compact: see `pack_expert_ids`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from vespo_jax.models import partition
from vespo_jax.models.quantize import dequantize
from vespo_jax.models.spec import ModelSpec
from vespo_jax.types import Array, HostArray, Params

SLACK = 1.25  # of what devices send each other in one round, over an even choice of experts


@flax.struct.dataclass
class Routing:
  """What the routers of all layers did with the tokens of a call.

  Attributes:
    expert_ids_LMA: int32, the experts of every token, in falling order of their probability.
    load_LE: float32, real tokens sent to each expert; detached.
    importance_LE: float32, the probabilities of each expert summed over real tokens.
    z_L: float32, the squared log-sum-exp of the router's logits summed over real tokens.
    mismatch_L: float32, replayed choices of real tokens that the router would not have made.
    tokens: float32 scalar, the real tokens.
  """

  expert_ids_LMA: Array
  load_LE: Array
  importance_LE: Array
  z_L: Array
  mismatch_L: Array
  tokens: Array


def mixture(
  x_MD: Array, layer: Params, spec: ModelSpec, real_M: Array, expert_ids_MA: Array | None
) -> tuple[Array, Routing]:
  """The sum of the active experts' outputs, each weighed by its router probability.

  Args:
    x_MD: normalised hidden states.
    layer: `router` [D, E], `expert_gate` and `expert_up` [E, D, F], `expert_down` [E, F, D].
    spec: of the model.
    real_M: bool, the tokens that there are: the others count in no statistics and become 0.
    expert_ids_MA: int32 choices to replay; None to choose the A most probable experts. The weights
      are the router's own either way, and differentiable.

  Returns:
    y_MD in x's type, and this layer's `Routing` without the axis L. No token is dropped.

  Source: Shazeer et al. (arXiv 1701.06538) eq. 1-5; Qwen3-MoE and Mixtral in Hugging Face
  `transformers` (softmax over all experts, then the top k, then their normalisation).
  """
  E, A = spec.experts, spec.active_experts
  router_DE = partition.gather(layer["router"], "expert", 1)
  logits_ME = jnp.matmul(
    x_MD.astype(jnp.float32), router_DE.astype(jnp.float32), precision="highest"
  )
  probs_ME = jax.nn.softmax(logits_ME, axis=-1)
  own_MA = jax.lax.top_k(jax.lax.stop_gradient(probs_ME), A)[1]
  if expert_ids_MA is None:
    expert_ids_MA = own_MA
  weights_MA = jnp.take_along_axis(probs_ME, expert_ids_MA, axis=-1)
  if spec.normalize_router:
    weights_MA = weights_MA / jnp.sum(weights_MA, axis=-1, keepdims=True)

  real_M1 = real_M[:, None]
  # padding goes to no expert: all of it would go to the same ones
  y_MD = _experts(x_MD, layer, jnp.where(real_M1, expert_ids_MA, E), weights_MA)
  chosen_ME = jnp.sum(jax.nn.one_hot(expert_ids_MA, E), axis=1)
  agrees_MA = jnp.any(expert_ids_MA[:, :, None] == own_MA[:, None, :], axis=-1)
  total = lambda x: partition.add(x, *partition.BATCH_AXES, "sequence")
  routing = Routing(
    expert_ids_LMA=expert_ids_MA,
    load_LE=total(jax.lax.stop_gradient(jnp.sum(jnp.where(real_M1, chosen_ME, 0.0), axis=0))),
    importance_LE=total(jnp.sum(jnp.where(real_M1, probs_ME, 0.0), axis=0)),
    z_L=total(jnp.sum(jnp.where(real_M, jax.nn.logsumexp(logits_ME, axis=-1) ** 2, 0.0))),
    mismatch_L=total(jnp.sum(~agrees_MA & real_M1, dtype=jnp.float32)),
    tokens=total(jnp.sum(real_M, dtype=jnp.float32)),
  )
  return y_MD.astype(x_MD.dtype), routing


def _experts(x_MD: Array, layer: Params, expert_ids_MA: Array, weights_MA: Array) -> Array:
  """sum_a weight_a expert_a(x), float32 [M, D]; 0 of a token whose experts are none, which is a
  number beyond the last. No token is dropped, and shapes are fixed."""
  kernels = [dequantize(layer[f"expert_{name}"]) for name in ("gate", "up", "down")]
  # XLA divides a program over a mesh by itself where rows are packed, but no Pallas kernel
  of_sorted = _grouped if partition.current_mesh() is None else jax.lax.ragged_dot

  def product(x_MD: Array, flat_I: Array) -> Array:
    return jax.lax.platform_dependent(
      *(x_MD, *kernels, flat_I),
      cpu=_by_blocks,
      tpu=functools.partial(_by_sorting, product=of_sorted),
      default=functools.partial(_by_sorting, product=jax.lax.ragged_dot),
    )

  spread = _by_sending if partition.size("expert") > expert_ids_MA.shape[-1] else _by_gathering
  return spread(x_MD, expert_ids_MA, weights_MA, len(kernels[0]), product)


Product = Callable[[Array, Array], Array]  # (tokens, expert of each assignment) -> rows


def _by_gathering(
  x_MD: Array, expert_ids_MA: Array, weights_MA: Array, E: int, product: Product
) -> Array:
  """Every device takes the tokens of all along `expert`, and computes what its own E experts make
  of them: the fewer bytes where there are no more devices than choices."""
  A = expert_ids_MA.shape[-1]
  x_MD, weights_MA, expert_ids_MA = (
    partition.gather(x, "expert", 0) for x in (x_MD, weights_MA, expert_ids_MA)
  )
  flat_I = (expert_ids_MA - partition.index("expert") * E).reshape(-1)  # I = M * A assignments
  mine_I = (flat_I >= 0) & (flat_I < E)
  y_ID = product(x_MD, jnp.where(mine_I, flat_I, E))  # those of other devices are in no group
  y_MAD = y_ID.reshape(-1, A, x_MD.shape[-1])
  y_MAD = jnp.where(mine_I.reshape(-1, A, 1), y_MAD.astype(jnp.float32), 0.0)
  y_MD = jnp.einsum("mad,ma->md", y_MAD, weights_MA)
  return partition.add_and_scatter(y_MD, "expert", 0)


def _by_sending(
  x_MD: Array, expert_ids_MA: Array, weights_MA: Array, E: int, product: Product
) -> Array:
  """Every token goes to the devices that have its experts, and what they make of it comes back.

  C assignments fit from each device to each in a round, `SLACK` times as many as there are if
  experts are chosen evenly. What does not fit goes in another round, which nobody makes if nobody
  needs it; so memory and traffic grow with the devices only as far as choices are uneven.
  """
  (M, A), N = expert_ids_MA.shape, partition.size("expert")
  C = math.ceil(SLACK * M * A / N)
  flat_I = expert_ids_MA.reshape(-1)  # I = M * A assignments; to device N: to none
  to_IN = jax.nn.one_hot(flat_I // E, N, dtype=jnp.int32)
  rank_I = jnp.sum((jnp.cumsum(to_IN, axis=0) - 1) * to_IN, axis=1)
  needed = partition.largest(1 + jnp.max(rank_I) // C, *partition.MESH_AXES)  # all do as many

  def send(y_MD: Array, round_: Array) -> Array:
    now_I = (flat_I < N * E) & (rank_I // C == round_)
    slot_I = jnp.where(now_I, flat_I // E * C + rank_I % C, N * C)  # beyond the last: not now
    token_S = jnp.zeros(N * C, int).at[slot_I].set(jnp.arange(M * A) // A, mode="drop")
    expert_S = jnp.full(N * C, E).at[slot_I].set(flat_I % E, mode="drop")  # E: none
    there_S = partition.exchange(expert_S, "expert")
    y_SD = product(partition.exchange(x_MD[token_S], "expert"), there_S)
    y_SD = partition.exchange(jnp.where(there_S[:, None] < E, y_SD, 0), "expert")
    y_ID = y_SD.at[slot_I].get(mode="fill", fill_value=0)
    return y_MD + jnp.einsum("mad,ma->md", y_ID.reshape(M, A, -1).astype(jnp.float32), weights_MA)

  def step(y_MD: Array, round_: Array) -> tuple[Array, None]:
    again = jax.checkpoint(send)  # else there were room for what the backward pass keeps of each
    return jax.lax.cond(round_ < needed, again, lambda y_MD, _: y_MD, y_MD, round_), None

  y_MD = send(jnp.zeros(x_MD.shape, jnp.float32), jnp.int32(0))
  return jax.lax.scan(step, y_MD, jnp.arange(1, math.ceil(M * A / C)))[0]


def _by_sorting(
  x_MD: Array,
  gate_EDF: Array,
  up_EDF: Array,
  down_EFD: Array,
  flat_I: Array,
  product: Callable[[Array, Array, Array], Array],
) -> Array:
  """What the expert of each assignment makes of its token, [I, D].

  Args:
    flat_I: int32, the expert of every assignment; E: none, whose row of the result is anything.
    product: of sorted rows, the weights of each expert and how many rows it has.
  """
  E, A = len(gate_EDF), len(flat_I) // len(x_MD)
  order_I = jnp.argsort(flat_I, stable=True)
  sizes_E = jnp.bincount(flat_I, length=E).astype(jnp.int32)
  # the gradients of rows in no group are anything too, and end here
  x_ID = jnp.where((flat_I[order_I] < E)[:, None], x_MD[order_I // A], 0)
  mixed_IF = jax.nn.silu(product(x_ID, gate_EDF, sizes_E)) * product(x_ID, up_EDF, sizes_E)
  y_ID = product(mixed_IF, down_EFD, sizes_E)
  return y_ID[jnp.zeros_like(order_I).at[order_I].set(jnp.arange(order_I.size))]


def _grouped(x_ID: Array, weights_EDF: Array, sizes_E: Array, *, interpret: bool = False) -> Array:
  """As `lax.ragged_dot`, by megablox: Pallas kernels for TPU, where XLA makes the gradient of a
  ragged product by its weights of dense products over all experts.

  Source: Gale et al. (arXiv 2211.15841); `jax.experimental.pallas.ops.tpu.megablox`.
  """
  from jax.experimental.pallas.ops.tpu import megablox  # what it imports takes a while

  I, dtype = len(x_ID), x_ID.dtype
  x_ID = jnp.pad(x_ID, ((0, -I % _tiles(I)[0]), (0, 0)))
  y_IF = megablox.gmm(x_ID, weights_EDF, sizes_E, dtype, _tiles, None, None, False, interpret)
  return y_IF[:I]


def _tiles(rows: int, inner: int = 0, outer: int = 0) -> tuple[int, int, int]:
  """Of a product [rows, inner] [inner, outer]: what fits a TPU core's fast memory twice."""
  return 512 if rows >= 4096 else 128, min(inner, 512), min(outer, 1024)


def _by_blocks(
  x_MD: Array, gate_EDF: Array, up_EDF: Array, down_EFD: Array, flat_I: Array
) -> Array:
  """The same for a CPU, where a ragged product computes every token for every expert.

  The assignments of each expert fill blocks of B rows (the last one in part), so all experts are
  one batched product of blocks with copies of their weights. B keeps both the rows that stay empty
  and the copies to a few times what there is of each.
  """
  E, (I,), A = len(gate_EDF), flat_I.shape, len(flat_I) // len(x_MD)
  B = max(8, 1 << (I // (4 * E)).bit_length())  # between I / 4E and I / 2E
  N = min(I, (I + E * (B - 1)) // B)  # blocks, at most
  member_IE = jax.nn.one_hot(flat_I, E, dtype=jnp.int32)
  rank_IE = jnp.cumsum(member_IE, axis=0) - 1
  last_E = jnp.cumsum(-(-(rank_IE[-1] + 1) // B))  # the block after the last of each expert
  first_E = jnp.pad(last_E, (1, 0))[:-1]
  slot_IE = first_E * B + rank_IE
  slot_I = jnp.where(flat_I < E, jnp.sum(slot_IE * member_IE, axis=1), N * B)
  token_S = jnp.zeros(N * B, int).at[slot_I].set(jnp.arange(I) // A, mode="drop")
  expert_N = jnp.searchsorted(last_E, jnp.arange(N), side="right", method="compare_all")
  expert_N = jnp.minimum(expert_N, E - 1)
  x_NBD = x_MD[token_S].reshape(N, B, -1)
  mixed_NBF = jax.nn.silu(x_NBD @ gate_EDF[expert_N]) * (x_NBD @ up_EDF[expert_N])
  y_NBD = mixed_NBF @ down_EFD[expert_N]
  return y_NBD.reshape(N * B, -1).at[slot_I].get(mode="fill", fill_value=0)


def pack_expert_ids(expert_ids_LMA: Array, experts: int) -> Array:
  """[M, L, A] in the smallest unsigned type that holds `experts`: choices as they are reported and
  stored, token by token."""
  dtype = jnp.uint8 if experts <= 256 else jnp.uint16
  return jnp.moveaxis(expert_ids_LMA, 0, 1).astype(dtype)


def unpack_expert_ids(expert_ids_MLA: HostArray) -> Array:
  """The inverse of `pack_expert_ids`: int32 [L, M, A], as `forward` replays them."""
  return jnp.moveaxis(jnp.asarray(expert_ids_MLA, jnp.int32), 0, 1)
