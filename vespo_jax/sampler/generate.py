"""Generation: prefill each prompt once, then decode all its samples together until all stop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax import models
from vespo_jax.models import ModelSpec
from vespo_jax.sampler.sampling import next_token
from vespo_jax.sampler.settings import Settings
from vespo_jax.types import Array, HostArray, Params, Rollout, TokenIds

PROMPT_BUCKET = 16  # prompts are padded to a multiple of this, so few shapes are ever compiled


@flax.struct.dataclass
class Samples:
  """Sampled rows, prompt-major (B = P * R), as arrays; after its end a row holds zeros.

  Expert ids are as in `models.pack_expert_ids`, None where they were not asked for. Every sampled
  token runs through the model, so the last one has its own; after the end of a row they are
  arbitrary.
  """

  tokens_BT: Array  # int32
  behaviour_logprobs_BT: Array  # float32
  plain_logprobs_BT: Array  # float32
  lengths_B: Array  # int32, the stop token included
  stopped_B: Array  # bool, False where `max_new_tokens` cut the response
  prompt_expert_ids_PSLA: Array | None = None
  expert_ids_BTLA: Array | None = None


def generate(
  params: Params,
  spec: ModelSpec,
  prompts: Sequence[TokenIds],
  key: Array,
  settings: Settings,
  *,
  group_ids: Sequence[int] | None = None,
  weight_version: int = 0,
) -> list[Rollout]:
  """Samples `settings.samples_per_prompt` responses to each prompt.

  The key of a sequence, `fold_in(key, group_id * samples_per_prompt + sample)`, depends on nothing
  it is batched with.

  Args:
    params: the weights to sample with; their type is the compute type.
    prompts: token ids of each prompt, none empty.
    key: of the whole call.
    group_ids: what names each prompt's group; None numbers them from 0.
    weight_version: recorded on every token.

  Returns:
    One `Rollout` per sample, prompt-major, with rewards unset.

  Raises:
    ValueError: if there is no prompt, one is empty, or a dense model is asked for expert ids.
  """
  if settings.expert_ids and not spec.experts:
    raise ValueError("expert ids were asked of a model without experts")
  if group_ids is None:
    group_ids = range(len(prompts))
  tokens_PS, mask_PS = pad_prompts(prompts)
  R = settings.samples_per_prompt
  seeds_B = (np.asarray(group_ids, np.int64)[:, None] * R + np.arange(R)).reshape(-1)
  samples = sample_batch(params, spec, tokens_PS, mask_PS, key, seeds_B.astype(np.uint32), settings)
  samples = jax.device_get(samples)
  rollouts = []
  for row, (seed, n) in enumerate(zip(seeds_B.tolist(), samples.lengths_B.tolist(), strict=True)):
    prompt = np.asarray(prompts[row // R], np.int32)
    rollouts.append(
      Rollout(
        prompt_ids=prompt,
        response_ids=samples.tokens_BT[row, :n],
        behaviour_logprobs=samples.behaviour_logprobs_BT[row, :n],
        plain_logprobs=samples.plain_logprobs_BT[row, :n],
        weight_versions=np.full(n, weight_version, np.int32),
        finish="stop" if samples.stopped_B[row] else "length",
        group_id=int(group_ids[row // R]),
        sample_seed=seed,
        expert_ids=_expert_ids(samples, row, R, len(prompt)),
      )
    )
  return rollouts


def _expert_ids(samples: Samples, row: int, R: int, prompt_length: int) -> np.ndarray | None:
  """[S + T, L, A] of the real tokens of a row of host arrays."""
  prompts_PSLA, ids_BTLA = samples.prompt_expert_ids_PSLA, samples.expert_ids_BTLA
  if prompts_PSLA is None or ids_BTLA is None:
    return None
  prompt = prompts_PSLA[row // R, -prompt_length:]
  return np.concatenate([prompt, ids_BTLA[row, : samples.lengths_B[row]]])


def pad_prompts(prompts: Sequence[TokenIds]) -> tuple[np.ndarray, np.ndarray]:
  """Prompts padded on the left to a common, bucketed width: int32 tokens and bool mask [P, S].

  Raises ValueError if there is no prompt, or one is empty.
  """
  if not prompts or not all(len(prompt) for prompt in prompts):
    raise ValueError("every call needs at least one prompt, and every prompt at least one token")
  longest = max(len(prompt) for prompt in prompts)
  width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
  tokens_PS = np.zeros((len(prompts), width), np.int32)
  mask_PS = np.zeros((len(prompts), width), bool)
  for row, prompt in enumerate(prompts):
    tokens_PS[row, width - len(prompt) :] = prompt
    mask_PS[row, width - len(prompt) :] = True
  return tokens_PS, mask_PS


@functools.partial(jax.jit, static_argnames=("spec", "settings"))
def sample_batch(
  params: Params,
  spec: ModelSpec,
  tokens_PS: HostArray,
  mask_PS: HostArray,
  key: Array,
  seeds_B: HostArray,
  settings: Settings,
) -> Samples:
  """The jitted body of `generate`: left-padded prompts and one seed per row in, `Samples` out.

  Prefill runs over the P prompts; decoding over all B = P * R rows, one token a step, in a loop
  that ends when every row has stopped.
  """
  R, T = settings.samples_per_prompt, settings.max_new_tokens
  P, S = tokens_PS.shape
  table_VD = models.head_table(params)
  keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, seeds_B)
  cache = models.init_cache(spec, P, S, table_VD.dtype)
  hidden_PSD, cache, routing = models.forward_routed(
    params, spec, tokens_PS, segments=mask_PS, cache=cache
  )
  ids_MLA = _reported(routing, spec, settings)
  logits_BV = jnp.repeat(hidden_PSD[:, -1] @ table_VD.T, R, axis=0)
  state = _Loop(
    step=jnp.int32(0),
    logits_BV=logits_BV,
    cache=models.fork(cache, spec, R, T),
    done_B=jnp.zeros((P * R,), bool),
    samples=Samples(
      tokens_BT=jnp.zeros((P * R, T), jnp.int32),
      behaviour_logprobs_BT=jnp.zeros((P * R, T), jnp.float32),
      plain_logprobs_BT=jnp.zeros((P * R, T), jnp.float32),
      lengths_B=jnp.zeros((P * R,), jnp.int32),
      stopped_B=jnp.zeros((P * R,), bool),
      prompt_expert_ids_PSLA=jax.tree.map(lambda x: x.reshape(P, S, *x.shape[1:]), ids_MLA),
      expert_ids_BTLA=jax.tree.map(lambda x: jnp.zeros((P * R, T, *x.shape[1:]), x.dtype), ids_MLA),
    ),
  )

  def step(state: _Loop) -> _Loop:
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.step)
    tokens_B, behaviour_B, plain_B = next_token(state.logits_BV, keys, settings)
    live_B = ~state.done_B
    stops_B = live_B & jnp.isin(tokens_B, jnp.array(settings.stop_ids, jnp.int32))
    tokens_B = jnp.where(live_B, tokens_B, 0)

    def write(out_BT: Array, column_B: Array) -> Array:
      return jax.lax.dynamic_update_slice_in_dim(out_BT, column_B[:, None], state.step, axis=1)

    hidden_B1D, cache, routing = models.forward_routed(
      params, spec, tokens_B[:, None], cache=state.cache
    )
    samples = dataclasses.replace(
      state.samples,
      tokens_BT=write(state.samples.tokens_BT, tokens_B),
      behaviour_logprobs_BT=write(
        state.samples.behaviour_logprobs_BT, jnp.where(live_B, behaviour_B, 0.0)
      ),
      plain_logprobs_BT=write(state.samples.plain_logprobs_BT, jnp.where(live_B, plain_B, 0.0)),
      lengths_B=state.samples.lengths_B + live_B,
      stopped_B=state.samples.stopped_B | stops_B,
      expert_ids_BTLA=jax.tree.map(
        write, state.samples.expert_ids_BTLA, _reported(routing, spec, settings)
      ),
    )
    return _Loop(
      step=state.step + 1,
      logits_BV=hidden_B1D[:, 0] @ table_VD.T,
      cache=cache,
      done_B=state.done_B | stops_B,
      samples=samples,
    )

  def unfinished(state: _Loop) -> Array:
    return (state.step < T) & ~jnp.all(state.done_B)

  return jax.lax.while_loop(unfinished, step, state).samples


def _reported(routing: models.Routing | None, spec: ModelSpec, settings: Settings) -> Array | None:
  """[M, L, A]: what was chosen for the tokens of one call, where it is asked for."""
  if routing is None or not settings.expert_ids:
    return None
  return models.pack_expert_ids(routing.expert_ids_LMA, spec.experts)


@flax.struct.dataclass
class _Loop:
  step: Array
  logits_BV: Array
  cache: models.KVCache
  done_B: Array
  samples: Samples
