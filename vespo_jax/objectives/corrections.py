"""Rollout correction: weights and rejections for the mismatch between two policies.

The sampler's numerics are not the trainer's, so tokens come from a behaviour policy that differs
from the proximal policy the trainer believes it sampled from. With `log r_t` = log proximal - log
behaviour, a correction weighs tokens by (a bounded form of) their importance ratio, rejects those
whose statistics are out of bounds, or both. Weights are detached and multiply the objective's
coefficients (VESPO takes them into W); a rejected token leaves the loss and its denominator.

    correction = corrections.make("token_tis", cap=2.0)
    corrected, metrics = correction(log_ratio_BT, mask_BT)

Sources: verl `rollout_corr_helper.py` and `docs/algo/rollout_corr_math.md`; TRL's
`vllm_importance_sampling_mode` for the masked forms; IcePop (Ling team, 2025).
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from vespo_jax.objectives.base import (
  Metrics,
  at_least_float32,
  clip_log,
  fraction,
  lengths,
  ratio,
)
from vespo_jax.registry import Registry, check_option
from vespo_jax.types import Array

registry = Registry("correction")
names, defaults = registry.names, registry.defaults

LEVELS = ("none", "token", "sequence")
ACTIONS = ("truncate", "mask")
STATISTICS = tuple(
  f"{over}_{kind}"
  for over in ("token", "seq_sum", "seq_mean", "seq_max")
  for kind in ("k1", "k2", "k3")
  if (over, kind) != ("seq_max", "k1")
)
_MIN_WEIGHT = 1e-8  # of a masked token inside VESPO's W, as in the released code


class Corrected(NamedTuple):
  """weights [B, T]; mask [B, T] without what was rejected; log_weights_B, their log as a factor of
  the sequence weight W."""

  weights: Array
  mask: Array
  log_weights_B: Array


@dataclasses.dataclass(frozen=True)
class Rejection:
  """Rejects where a statistic of `log r` leaves its bounds.

  With k1 = -log r, k2 = (log r)^2 / 2 and k3 = r - 1 - log r: `token_*` rejects single tokens,
  `seq_sum_*`, `seq_mean_*` and `seq_max_*` whole sequences. k2 and k3 are bounded by `high`; k1 by
  log low <= k1 <= log high, the sign being verl's, and k1 alone is of a log ratio without a bound,
  so that what cancels in a sequence does.
  """

  statistic: str
  low: float
  high: float

  def keeps(self, log_ratio_BT: Array, mask_BT: Array) -> Array:
    """bool [B, T]: True at the tokens that stay."""
    over, kind = self.statistic.rsplit("_", 1)
    value_BT = {
      "k1": lambda x: -x,
      "k2": lambda x: 0.5 * clip_log(x) ** 2,
      "k3": lambda x: jnp.expm1(clip_log(x)) - clip_log(x),
    }[kind](log_ratio_BT)
    value_BT = jnp.where(mask_BT, value_BT, 0.0)
    if over == "seq_max":
      value = jnp.max(value_BT, axis=1, keepdims=True)
    elif over == "token":
      value = value_BT
    else:
      value = jnp.sum(value_BT, axis=1, keepdims=True)
      value = value / lengths(mask_BT)[:, None] if over == "seq_mean" else value
    if kind == "k1":
      keep = (value >= jnp.log(self.low)) & (value <= jnp.log(self.high))
    else:
      keep = value <= self.high
    return jnp.broadcast_to(keep, mask_BT.shape)


@dataclasses.dataclass(frozen=True)
class Correction:
  """One rollout correction.

  Attributes:
    name: the registered name.
    level: what the weights are: `none`, the `token` ratio, or the `sequence` ratio on every token.
    action: out of [low, high] a weight is cut to `high` (`truncate`) or is 0 (`mask`).
    low, high: bounds of the weight.
    normalize: divide by the mean weight, after the bounds.
    rejections: all must keep a token.
  """

  name: str
  level: Literal["none", "token", "sequence"] = "none"
  action: Literal["truncate", "mask"] = "truncate"
  low: float = 0.0
  high: float = 2.0
  normalize: bool = False
  rejections: tuple[Rejection, ...] = ()

  @property
  def has_weights(self) -> bool:
    """Whether it weighs what it does not reject."""
    return self.level != "none"

  def __call__(self, log_ratio_BT: Array, mask_BT: Array) -> tuple[Corrected, Metrics]:
    """Weights and mask of a minibatch.

    Args:
      log_ratio_BT: log of the policy corrected to minus log of the behaviour policy.
      mask_BT: bool, True at sampled tokens.

    Returns:
      The detached correction; and metrics `correction/weight_mean` (over tokens),
      `correction/out_of_bounds_fraction`, `correction/rejected_fraction`, `correction/kl` (k3
      estimate of KL(behaviour || corrected to) per token, in nats).
    """
    log_ratio_BT = jax.lax.stop_gradient(at_least_float32(log_ratio_BT))
    log_ratio_BT = jnp.where(mask_BT, log_ratio_BT, 0.0)
    keep_BT = mask_BT
    for rejection in self.rejections:
      keep_BT &= rejection.keeps(log_ratio_BT, mask_BT)
    weights_BT, out_BT = self._weights(log_ratio_BT, mask_BT)
    logs_BT = jnp.log(jnp.maximum(weights_BT, _MIN_WEIGHT))
    if self.level == "sequence":  # one weight, which every token repeats
      log_weights_B = jnp.min(jnp.where(mask_BT, logs_BT, jnp.inf), axis=1)
      log_weights_B = jnp.where(jnp.any(mask_BT, axis=1), log_weights_B, 0.0)
    else:
      log_weights_B = jnp.sum(jnp.where(keep_BT, logs_BT, 0.0), axis=1)
    k3_BT = jnp.where(mask_BT, jnp.expm1(clip_log(log_ratio_BT)) - clip_log(log_ratio_BT), 0.0)
    tokens = jnp.maximum(jnp.sum(mask_BT, dtype=jnp.float32), 1.0)
    metrics = {
      "correction/weight_mean": jnp.sum(jnp.where(mask_BT, weights_BT, 0.0)) / tokens,
      "correction/out_of_bounds_fraction": fraction(out_BT, mask_BT),
      "correction/rejected_fraction": fraction(~keep_BT, mask_BT),
      "correction/kl": jnp.sum(k3_BT) / tokens,
    }
    return Corrected(jnp.where(keep_BT, weights_BT, 0.0), keep_BT, log_weights_B), metrics

  def _weights(self, log_ratio_BT: Array, mask_BT: Array) -> tuple[Array, Array]:
    if self.level == "none":
      return jnp.ones_like(log_ratio_BT), jnp.zeros_like(mask_BT)
    log_w_BT = log_ratio_BT
    if self.level == "sequence":  # bounded once, as in verl: what cancels within it does
      log_w_B1 = jnp.sum(log_ratio_BT, axis=1, keepdims=True)
      log_w_BT = jnp.broadcast_to(log_w_B1, mask_BT.shape)
    raw_BT = ratio(log_w_BT)
    too_high_BT, too_low_BT = raw_BT > self.high, raw_BT < self.low
    if self.action == "mask":
      out_BT = too_high_BT | too_low_BT
      weights_BT = jnp.where(out_BT, 0.0, raw_BT)
    else:
      out_BT, weights_BT = too_high_BT, jnp.minimum(raw_BT, self.high)
    if self.normalize:
      weights_BT = weights_BT / jnp.maximum(self._mean(weights_BT, mask_BT), _MIN_WEIGHT)
    return weights_BT, out_BT

  def _mean(self, weights_BT: Array, mask_BT: Array) -> Array:
    """Over tokens, or over sequences where a sequence has one weight."""
    per_row_B = jnp.sum(jnp.where(mask_BT, weights_BT, 0.0), axis=1)
    if self.level == "sequence":
      per_row_B, count = per_row_B / lengths(mask_BT), jnp.sum(jnp.any(mask_BT, axis=1))
    else:
      count = jnp.sum(mask_BT)
    return jnp.sum(per_row_B) / jnp.maximum(count, 1)


def make(name: str, **kwargs: float | bool | str) -> Correction:
  """The correction registered as `name`. Raises ValueError naming the known names and options."""
  return registry.make(name, **kwargs)


@registry.register("none")
def none() -> Correction:
  """No correction: the mismatch is ignored."""
  return Correction("none")


@registry.register("token_tis")
def token_tis(*, cap: float = 2.0, normalize: bool = False) -> Correction:
  """Token-level truncated importance sampling: min(r_t, cap)."""
  return Correction("token_tis", "token", "truncate", 0.0, cap, normalize)


@registry.register("sequence_tis")
def sequence_tis(*, cap: float = 2.0, normalize: bool = False) -> Correction:
  """Sequence-level truncated importance sampling: min(prod_t r_t, cap)."""
  return Correction("sequence_tis", "sequence", "truncate", 0.0, cap, normalize)


@registry.register("token_mis")
def token_mis(*, cap: float = 3.0, normalize: bool = False) -> Correction:
  """Token-level masked importance sampling: r_t where it is at most `cap`, else 0."""
  return Correction("token_mis", "token", "mask", 0.0, cap, normalize)


@registry.register("sequence_mis")
def sequence_mis(*, cap: float = 3.0, normalize: bool = False) -> Correction:
  """Sequence-level masked importance sampling, TRL's default: prod_t r_t where at most `cap`."""
  return Correction("sequence_mis", "sequence", "mask", 0.0, cap, normalize)


@registry.register("icepop")
def icepop(*, low: float = 0.5, high: float = 5.0, normalize: bool = False) -> Correction:
  """IcePop: r_t within [low, high], else 0."""
  return Correction("icepop", "token", "mask", low, high, normalize)


@registry.register("geometric_rejection")
def geometric_rejection(*, low: float = 0.999, high: float = 1.001) -> Correction:
  """Rejects sequences whose geometric mean ratio, inverted as in verl, is out of [low, high]."""
  return Correction("geometric_rejection", rejections=(Rejection("seq_mean_k1", low, high),))


@registry.register("k3_rejection")
def k3_rejection(*, high: float = 0.01) -> Correction:
  """Rejects sequences whose mean k3 divergence per token exceeds `high` nats."""
  return Correction("k3_rejection", rejections=(Rejection("seq_mean_k3", 0.0, high),))


@registry.register("sequence_tis_rejection")
def sequence_tis_rejection(
  *, cap: float = 2.0, low: float = 0.5, high: float = 2.0, normalize: bool = False
) -> Correction:
  """`sequence_tis` on the sequences whose ratio, inverted as in verl, is within [low, high]."""
  rejections = (Rejection("seq_sum_k1", low, high),)
  return Correction(
    "sequence_tis_rejection", "sequence", "truncate", 0.0, cap, normalize, rejections
  )


@registry.register("custom")
def custom(
  *,
  level: str = "token",
  action: str = "truncate",
  low: float = 0.0,
  high: float = 2.0,
  normalize: bool = False,
  reject: str = "",
) -> Correction:
  """Any combination: weights by `level`, `action`, `low`, `high`; rejections by `reject`.

  `reject` lists `statistic:high` (k2, k3) or `statistic:low_high` (k1) with commas between them,
  for instance `"seq_mean_k1:0.999_1.001,token_k3:0.1"`. Raises ValueError if it does not, for a
  `low` that cuts nothing, since truncation is from above, and for what neither weighs nor rejects.
  """
  check_option("level", level, LEVELS)
  check_option("action", action, ACTIONS)
  if low and action != "mask":
    raise ValueError(f"low={low} is of action='mask': {action!r} is from above alone")
  rejections = tuple(_parse_rejection(part) for part in reject.split(",") if part)
  if level == "none" and not rejections:
    raise ValueError("level='none' without a rejection in reject corrects nothing")
  return Correction("custom", level, action, low, high, normalize, rejections)  # pyrefly: ignore


def _parse_rejection(text: str) -> Rejection:
  statistic, _, bounds = text.strip().partition(":")
  if statistic not in STATISTICS:
    raise ValueError(f"reject={text!r}: the statistic must be one of {', '.join(STATISTICS)}")
  try:
    numbers = [float(bound) for bound in bounds.split("_")]
  except ValueError as error:
    raise ValueError(f"reject={text!r}: the bounds must be numbers") from error
  wanted = 2 if statistic.endswith("k1") else 1
  if len(numbers) != wanted or not all(n > 0 for n in numbers) or numbers != sorted(numbers):
    form = "low_high, ratios above 0" if wanted == 2 else "one number above 0"
    raise ValueError(f"reject={text!r}: the bounds of {statistic} are {form}")
  return Rejection(statistic, numbers[0] if wanted == 2 else 0.0, numbers[-1])
