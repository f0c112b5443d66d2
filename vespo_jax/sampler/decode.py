"""The device programs of the engine: prefill some prompts, place them in rows, decode a chunk."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vespo_jax import models
from vespo_jax.models import KVCache, ModelSpec, partition
from vespo_jax.sampler import placement
from vespo_jax.sampler.sampling import Draw, next_token
from vespo_jax.sampler.settings import Settings
from vespo_jax.types import Array, HostArray, Params

place = jax.jit(models.copy_rows, donate_argnums=0)


@flax.struct.dataclass
class Rows:
  """What decoding must know of each row besides its cache; the host makes it anew every time.

  Attributes:
    tokens_B: int32, the last token of the sequence so far, which is not in the cache yet.
    lengths_B: int32, the tokens before it, which are.
    counts_B: int32, how many tokens of it are response.
    keys_BX, seeds_B: uint32, key data of the whole call and what names the sequence in it.
    live_B: bool, the row holds a sequence that has not ended.
    limits_B: int32, a row waits when its response has so many tokens.
    forced_CB: int32, the next C tokens of each row where they are given; negative: draw it.
  """

  tokens_B: Array
  lengths_B: Array
  counts_B: Array
  keys_BX: Array
  seeds_B: Array
  live_B: Array
  limits_B: Array
  forced_CB: Array


@flax.struct.dataclass
class Chunk:
  """What one call of `decode` sampled.

  Attributes:
    steps: int32 scalar, the steps it made.
    sampled_B: int32, the tokens of each row: the first of its column.
    stopped_B: bool, the last of them is a stop token.
    draws: arrays [C, B, ..].
    expert_ids_CBLA: uint8 or uint16, C + 1 columns: what the routers chose for the row's token
      before the chunk, and for each sampled one; None where they were not asked for.
  """

  steps: Array
  sampled_B: Array
  stopped_B: Array
  draws: Draw
  expert_ids_CBLA: Array | None


@functools.partial(jax.jit, static_argnames=("spec", "expert_ids", "attention", "mesh"))
def prefill(
  params: Params,
  spec: ModelSpec,
  tokens_PS: HostArray,
  lengths_P: HostArray,
  expert_ids: bool,
  attention: str = "dense",
  mesh: Mesh | None = None,
) -> tuple[KVCache, Array | None]:
  """The cache of P right-padded sequences, for what will attend to it, and if asked their expert
  ids [P, S, L, A]; over the devices of `mesh`, if one is given, as `decode` is."""

  def local(params: Params, tokens_PS: Array, lengths_P: Array) -> tuple[KVCache, Array | None]:
    P, S = tokens_PS.shape
    real_PS = jnp.arange(S) < lengths_P[:, None]
    cache = models.init_cache(spec, P, S, models.head_table(params).dtype, attention)
    _, cache, routing = models.forward_routed(
      params, spec, tokens_PS, segments=real_PS, cache=cache
    )
    return cache, _reported(routing, spec, P) if expert_ids else None

  run: Callable[..., Any] = local
  if mesh is not None:
    in_specs = (placement.specs_of(params, spec), placement.ROWS, placement.ROWS)
    out_specs = (placement.cache_specs(spec, attention), placement.ROWS)
    run = partition.spread(local, mesh, in_specs, out_specs)
  return run(params, tokens_PS, lengths_P)


@functools.partial(
  jax.jit, static_argnames=("spec", "settings", "mesh"), donate_argnames=("cache",)
)
def decode(
  params: Params,
  spec: ModelSpec,
  settings: Settings,
  cache: KVCache,
  rows: Rows,
  enough: HostArray,
  mesh: Mesh | None = None,
) -> tuple[KVCache, Chunk]:
  """Samples up to C tokens for every live row, one a step; the cache is updated in place.

  A token depends on its own row alone: on the tokens before it, and on the key
  `fold_in(fold_in(key, seed), count)` where it is drawn. One program draws tokens and takes given
  ones, so what it reports of a token is the same bits either way.

  Args:
    settings: `Settings.compiled`.
    enough: int32 scalar; return early once so many rows have stopped or reached their limit.
    mesh: over whose `tensor` parameters and cache are spread, as `placement` says; it divides the
      number of rows. All of its devices draw every token, alike.
  """
  run: Callable[..., Any] = functools.partial(_decode, spec, settings)
  if mesh is not None:
    specs = Rows(*(placement.ROWS,) * 7, forced_CB=placement.COLUMNS)
    cache_specs = placement.cache_specs(spec, cache.attention)
    once: Any = P()
    chunk = Chunk(once, placement.ROWS, placement.ROWS, placement.COLUMNS, placement.COLUMNS)
    in_specs = (placement.specs_of(params, spec), cache_specs, specs, once)
    run = partition.spread(run, mesh, in_specs, (cache_specs, chunk))
  return run(params, cache, rows, enough)


def _decode(
  spec: ModelSpec, settings: Settings, params: Params, cache: KVCache, rows: Rows, enough: Array
) -> tuple[KVCache, Chunk]:
  """`decode` on one device, or what one of several sees of it."""
  (steps, B), expert_ids = rows.forced_CB.shape, settings.expert_ids
  table_VD = models.head_table(params)
  cache = dataclasses.replace(cache, lengths_B=rows.lengths_B)
  keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.keys_BX), rows.seeds_B)

  def feed(state: _State) -> tuple[Array, KVCache, Any]:
    hidden_B1D, cache, routing = models.forward_routed(
      params, spec, state.tokens_B[:, None], cache=state.cache, angles=state.angles
    )
    ids_BLA = _reported(routing, spec, B)[:, 0] if expert_ids else None
    logits_BV = partition.gather(hidden_B1D[:, 0] @ table_VD.T, "tensor", 1)
    return logits_BV, cache, ids_BLA

  def write(out: Array, at: Array, value: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(out, value, at, 0)

  def step(state: _State) -> _State:
    logits_BV, cache, ids_BLA = feed(state)
    keys_at_B = jax.vmap(jax.random.fold_in)(keys_B, state.counts_B)
    draw = next_token(logits_BV, keys_at_B, rows.forced_CB[state.step], settings)
    active_B = ~state.stopped_B & rows.live_B & (state.counts_B < rows.limits_B)
    lengths_B = state.cache.lengths_B + active_B
    return _State(
      step=state.step + 1,
      tokens_B=jnp.where(active_B, draw.tokens_B, state.tokens_B),
      counts_B=state.counts_B + active_B,
      stopped_B=state.stopped_B
      | (active_B & jnp.isin(draw.tokens_B, jnp.array(settings.stop_ids, jnp.int32))),
      cache=dataclasses.replace(cache, lengths_B=lengths_B),
      angles=models.rotary_angles(lengths_B, spec),
      draws=jax.tree.map(lambda out, x: write(out, state.step, x), state.draws, draw),
      expert_ids=jax.tree.map(lambda out, x: write(out, state.step, x), state.expert_ids, ids_BLA),
    )

  def unfinished(state: _State) -> Array:
    active_B = ~state.stopped_B & rows.live_B & (state.counts_B < rows.limits_B)
    ended = jnp.sum(rows.live_B & ~active_B)
    return (state.step < steps) & jnp.any(active_B) & (ended < enough)

  shapes = jax.eval_shape(
    functools.partial(next_token, settings=settings),
    jax.ShapeDtypeStruct((B, spec.vocab_size), jnp.float32),
    keys_B,
    rows.tokens_B,
  )
  draws = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), shapes)
  angles = models.rotary_angles(rows.lengths_B, spec)
  start = (jnp.int32(0), rows.tokens_B, rows.counts_B, ~rows.live_B, cache, angles, draws)
  state = _State(*start, expert_ids=None)
  if expert_ids:
    ids = jax.eval_shape(feed, state)[2]
    state = dataclasses.replace(state, expert_ids=jnp.zeros((steps + 1, *ids.shape), ids.dtype))
  state = jax.lax.while_loop(unfinished, step, state)
  ids, cache = state.expert_ids, state.cache
  if ids is not None:  # of the last tokens too; they are fed again if their sequences go on
    ids = write(ids, state.step, feed(state)[2])
  stopped_B = state.stopped_B & rows.live_B
  return cache, Chunk(state.step, state.counts_B - rows.counts_B, stopped_B, state.draws, ids)


@flax.struct.dataclass
class _State:
  """The loop's carry. The angles of the next tokens are in it, because what is computed in a step
  XLA computes for a CPU again in each of its uses."""

  step: Array
  tokens_B: Array
  counts_B: Array
  stopped_B: Array
  cache: KVCache
  angles: tuple[Array, Array]
  draws: Draw
  expert_ids: Any


def _reported(routing: models.Routing | None, spec: ModelSpec, rows: int) -> Array:
  """[rows, T, L, A] in the smallest unsigned type. Raises ValueError if there are no experts."""
  if routing is None:
    raise ValueError("expert ids were asked of a model without experts")
  ids_MLA = models.pack_expert_ids(routing.expert_ids_LMA, spec.experts)
  return ids_MLA.reshape(rows, -1, *ids_MLA.shape[1:])
