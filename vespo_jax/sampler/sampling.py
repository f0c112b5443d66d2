"""Choosing the next token, and the log-probs it was really chosen under."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from vespo_jax.sampler.settings import Settings
from vespo_jax.types import Array

IMPOSSIBLE = -1e4  # the log-prob reported of a token that cannot be sampled: finite, so it travels


@flax.struct.dataclass
class Draw:
  """One token of each row.

  Attributes:
    tokens_B: int32.
    behaviour_logprobs_B: float32, under the tempered and truncated distribution that was sampled.
    plain_logprobs_B: float32, log-softmax at temperature 1.
    topk_ids_BK, topk_logprobs_BK: int32 and float32, the likeliest tokens of the distribution that
      was sampled, likeliest first; None where they were not asked for.
  """

  tokens_B: Array
  behaviour_logprobs_B: Array
  plain_logprobs_B: Array
  topk_ids_BK: Array | None = None
  topk_logprobs_BK: Array | None = None


def truncate(logits_BV: Array, top_k: int, top_p: float, min_p: float = 0.0) -> Array:
  """Logits with the tokens outside top-k, the top-p nucleus and min-p set to -inf, in this order.

  Ties at the k-th logit are all kept; the nucleus is the smallest set of likeliest tokens whose
  probability reaches `top_p`, after top-k, and what ties with the least likely of them; min-p keeps
  tokens at least `min_p` times as likely as the likeliest. Sources: Holtzman et al., arXiv
  1904.09751; Nguyen et al., arXiv 2407.01082.
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
  if min_p > 0.0:
    lowest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(min_p)
    logits_BV = jnp.where(logits_BV >= lowest_B1, logits_BV, -jnp.inf)
  return logits_BV


_BLOCK = 64  # tokens whose probabilities are first looked at together


def categorical(probs_BV: Array, bits_B: Array) -> Array:
  """Draws a token of each row by inverting its distribution at 32 random bits; int32.

  Probabilities are rounded down to multiples of 2^-31 and their sums are exact integers: a token of
  probability 0 is never drawn. One random number a row is less work than one a token, as Gumbel
  noise needs: a ninth of the time at a vocabulary of 512, a fourteenth at 49,152 (on a CPU). Where
  probabilities are NaN, some token is drawn.
  """
  B, V = probs_BV.shape
  counts_BV = (probs_BV * 2.0**31).astype(jnp.uint32)
  counts_BIJ = jnp.pad(counts_BV, [(0, 0), (0, -V % _BLOCK)]).reshape(B, -1, _BLOCK)
  until_BI = jnp.cumsum(jnp.sum(counts_BIJ, axis=-1, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)
  drawn_B = _scaled(bits_B, until_BI[:, -1])
  block_B = jnp.sum(until_BI <= drawn_B[:, None], axis=-1, dtype=jnp.int32)
  counts_BJ = jnp.take_along_axis(counts_BIJ, block_B[:, None, None], axis=1)[:, 0]
  until_B = jnp.take_along_axis(until_BI, block_B[:, None], axis=1)[:, 0]
  before_B = until_B - jnp.sum(counts_BJ, axis=-1, dtype=jnp.uint32)
  until_BJ = before_B[:, None] + jnp.cumsum(counts_BJ, axis=-1, dtype=jnp.uint32)
  inside_B = jnp.sum(until_BJ <= drawn_B[:, None], axis=-1, dtype=jnp.int32)
  return jnp.minimum(_BLOCK * block_B + inside_B, V - 1)


def _scaled(bits: Array, total: Array) -> Array:
  """floor(bits * total / 2^32) of uint32 numbers, in halves: there are no 64-bit integers here."""
  low = jnp.uint32(0xFFFF)
  a1, a0, b1, b0 = bits >> 16, bits & low, total >> 16, total & low
  middle = a1 * b0 + (a0 * b0 >> 16)
  return a1 * b1 + (middle >> 16) + (a0 * b1 + (middle & low) >> 16)


def next_token(logits_BV: Array, keys_B: Array, forced_B: Array, settings: Settings) -> Draw:
  """Draws one token per row, each row with its own key; greedy is a distribution of one token.

  Where `forced_B` (int32) is not negative it is the token, and what is reported of it is what
  drawing it would have reported; a token that could not have been drawn has log-prob -inf.
  """
  logits_BV = logits_BV.astype(jnp.float32)
  plain_BV = jax.nn.log_softmax(logits_BV, axis=-1)
  if settings.temperature == 0:
    tokens_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    only_BV = jax.nn.one_hot(tokens_B, logits_BV.shape[-1], dtype=bool)
    behaviour_BV = jnp.where(only_BV, 0.0, -jnp.inf)
  else:
    tempered_BV = truncate(
      logits_BV / settings.temperature, settings.top_k, settings.top_p, settings.min_p
    )
    behaviour_BV = jax.nn.log_softmax(tempered_BV, axis=-1)
    bits_B = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys_B)
    tokens_B = categorical(jnp.exp(behaviour_BV), bits_B)
  tokens_B = jnp.where(forced_B < 0, tokens_B, forced_B)
  behaviour_B, plain_B = (
    jnp.take_along_axis(x, tokens_B[:, None], axis=-1)[:, 0] for x in (behaviour_BV, plain_BV)
  )
  draw = Draw(tokens_B, behaviour_B, plain_B)
  if settings.topk_logprobs:
    logprobs_BK, ids_BK = jax.lax.top_k(behaviour_BV, settings.topk_logprobs)
    draw = dataclasses.replace(
      draw,
      topk_ids_BK=ids_BK.astype(jnp.int32),
      topk_logprobs_BK=jnp.maximum(logprobs_BK, IMPOSSIBLE),
    )
  return draw
