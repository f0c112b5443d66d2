"""Whole batches, sampled or scored: every sequence has a slot of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vespo_jax.models import ModelSpec
from vespo_jax.sampler.engine import PROMPT_BUCKET, Engine, check_prompts
from vespo_jax.sampler.sequence import Decode, Sampling
from vespo_jax.sampler.settings import Settings
from vespo_jax.types import Array, Params, Rollout, TokenIds

STOP_STRING_STEPS = 32  # how often the text of responses is looked at where there are stop strings


def generate(
  params: Params,
  spec: ModelSpec,
  prompts: Sequence[TokenIds],
  key: Array,
  settings: Settings,
  *,
  group_ids: Sequence[int] | None = None,
  weight_version: int = 0,
  decode: Decode | None = None,
) -> list[Rollout]:
  """Samples `settings.samples_per_prompt` responses to each prompt.

  The key of a sequence, `fold_in(key, group_id * samples_per_prompt + sample)`, depends on nothing
  it is batched with.

  Args:
    params: the weights to sample with; their type is the compute type.
    prompts: token ids of each prompt, none empty.
    key: of the whole call, of JAX's default kind.
    group_ids: what names each prompt's group; None numbers them from 0.
    weight_version: recorded on every token.
    decode: token ids -> text; only stop strings need it.

  Returns:
    One `Rollout` per sample, prompt-major, with rewards unset.

  Raises:
    ValueError: if there is no prompt, one is empty, a dense model is asked for expert ids, or there
      are stop strings and no `decode`.
  """
  engine = _engine(spec, settings, prompts, len(prompts) * settings.samples_per_prompt, decode)
  engine.adopt(weight_version, params)
  sequences = engine.submit(key, prompts, range(len(prompts)) if group_ids is None else group_ids)
  return _finish(engine, sequences)


def score(
  params: Params, spec: ModelSpec, rollouts: Sequence[Rollout], settings: Settings
) -> list[Rollout]:
  """The rollouts as the engine would have reported them, had it sampled their tokens with `params`.

  It computes what `generate` computes, one token at a time through the cache. So of rollouts that
  a call of `generate` returned, scored together, the log-probs are equal to the bit under the
  weights and settings that sampled them, and under others differ by what those change.

  Returns:
    One record per rollout with its tokens, group, seed and `finish`; versions are 0, rewards unset.
    A token that `settings` could not have sampled has a behaviour log-prob of -inf.

  Raises:
    ValueError: as `Engine.replay`.
  """
  settings = dataclasses.replace(settings, stop_strings=())  # where responses end is given
  engine = _engine(spec, settings, [rollout.prompt_ids for rollout in rollouts], len(rollouts))
  engine.adopt(0, params)
  return _finish(engine, engine.replay(rollouts))


def _engine(
  spec: ModelSpec,
  settings: Settings,
  prompts: Sequence[TokenIds],
  slots: int,
  decode: Decode | None = None,
) -> Engine:
  check_prompts(prompts)
  return Engine(
    spec,
    settings,
    slots=slots,
    longest_prompt=max(map(len, prompts)),
    steps=STOP_STRING_STEPS if settings.stop_strings else settings.max_new_tokens,
    decode=decode,
  )


def _finish(engine: Engine, sequences: Sequence[Sampling]) -> list[Rollout]:
  while engine.busy:
    engine.advance()
  return [sequence.rollout() for sequence in sequences]


def pad_prompts(prompts: Sequence[TokenIds]) -> tuple[np.ndarray, np.ndarray]:
  """Prompts padded on the left to a common, bucketed width: int32 tokens and bool mask [P, S].

  Raises ValueError if there is no prompt, or one is empty.
  """
  check_prompts(prompts)
  longest = max(len(prompt) for prompt in prompts)
  width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
  tokens_PS = np.zeros((len(prompts), width), np.int32)
  mask_PS = np.zeros((len(prompts), width), bool)
  for row, prompt in enumerate(prompts):
    tokens_PS[row, width - len(prompt) :] = prompt
    mask_PS[row, width - len(prompt) :] = True
  return tokens_PS, mask_PS
