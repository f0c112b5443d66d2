"""Choosing the next token, and the log-probs it was really chosen under."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vespo_jax.sampler.settings import Settings
from vespo_jax.types import Array


def truncate(logits_BV: Array, top_k: int, top_p: float) -> Array:
  """Logits with the tokens outside top-k and the top-p nucleus set to -inf.

  Ties at the k-th logit are all kept; the nucleus is the smallest set of likeliest tokens whose
  probability reaches `top_p`, after top-k. Source: Holtzman et al., arXiv 1904.09751.
  """
  if top_k and top_k < logits_BV.shape[-1]:
    kth_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf)
  if top_p < 1.0:
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV  # probability of strictly likelier tokens
    lowest_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV >= lowest_B1, logits_BV, -jnp.inf)
  return logits_BV


def next_token(logits_BV: Array, keys_B: Array, settings: Settings) -> tuple[Array, Array, Array]:
  """Draws one token per row, each row with its own key.

  Returns:
    tokens_B int32; behaviour_logprobs_B, under the tempered and truncated distribution that was
    sampled (0 when greedy); plain_logprobs_B, log-softmax at temperature 1. Both float32.
  """
  logits_BV = logits_BV.astype(jnp.float32)
  plain_BV = jax.nn.log_softmax(logits_BV, axis=-1)
  if settings.temperature == 0:
    tokens_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    behaviour_BV = jnp.zeros_like(plain_BV)
  else:
    tempered_BV = truncate(logits_BV / settings.temperature, settings.top_k, settings.top_p)
    tokens_B = jax.vmap(jax.random.categorical)(keys_B, tempered_BV).astype(jnp.int32)
    behaviour_BV = jax.nn.log_softmax(tempered_BV, axis=-1)
  behaviour_B, plain_B = (
    jnp.take_along_axis(x, tokens_B[:, None], axis=-1)[:, 0] for x in (behaviour_BV, plain_BV)
  )
  return tokens_B, behaviour_B, plain_B
