"""Generation of a whole batch: every sample of every prompt has a slot of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vespo_jax.models import ModelSpec
from vespo_jax.sampler.engine import PROMPT_BUCKET, Engine, check_prompts
from vespo_jax.sampler.sequence import Decode
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
  check_prompts(prompts)
  engine = Engine(
    spec,
    settings,
    slots=len(prompts) * settings.samples_per_prompt,
    longest_prompt=max(map(len, prompts)),
    steps=STOP_STRING_STEPS if settings.stop_strings else settings.max_new_tokens,
    decode=decode,
  )
  engine.adopt(weight_version, params)
  sequences = engine.submit(key, prompts, range(len(prompts)) if group_ids is None else group_ids)
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
