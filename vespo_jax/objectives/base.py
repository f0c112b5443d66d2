"""What every objective is: a map from log ratios and advantages to detached coefficients.

The gradient of every method is `sum_t c_t A grad log pi(y_t)` (up to its aggregation); methods
differ in the coefficient `c_t` alone. Products of ratios stay sums in log space, in float32 or
wider, until the last `exp`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from vespo_jax.registry import Registry
from vespo_jax.types import Array

MAX_LOG_RATIO = 20.0  # the bound on the log of a ratio that is taken, as in the public sources
_FAR = 1e30  # a log ratio beyond every bound, of which there may be as many as there are tokens

Metrics = dict[str, Array]
Extras = Mapping[str, Array]

registry = Registry("objective")


class Terms(NamedTuple):
  """What a method says of a minibatch, all detached.

  Attributes:
    coefficients_BT: c_t, the factor on A grad log pi(y_t).
    metrics: scalars of the method's own.
    losses_BT: the published loss of every token, of a method that differentiates through the ratio;
      it sets the reported value of the loss, never its gradient. None where that loss is
      `-c A log pi`.
    penalty_BT: a further term of the loss's gradient, `+ penalty_t grad log pi(y_t)`, that is not
      proportional to A. None for all but the penalised methods.
  """

  coefficients_BT: Array
  metrics: Metrics
  losses_BT: Array | None = None
  penalty_BT: Array | None = None

  def where(self, keep_BT: Array) -> Terms:
    """The same terms, with zeros at the tokens where `keep_BT` is False."""
    kept = lambda x_BT: jnp.where(keep_BT, x_BT, 0.0)
    return Terms(
      kept(self.coefficients_BT),
      self.metrics,
      None if self.losses_BT is None else kept(self.losses_BT),
      None if self.penalty_BT is None else kept(self.penalty_BT),
    )

  def constant_where(self, bounded_BT: Array) -> Terms:
    """The same losses, without a gradient at the tokens where `bounded_BT` is True: of a method
    whose source bounds the log ratio inside what it differentiates."""
    return self._replace(coefficients_BT=jnp.where(bounded_BT, 0.0, self.coefficients_BT))


TermsFn = Callable[[Array, Array, Array, Extras], Terms]


@dataclasses.dataclass(frozen=True)
class Objective:
  """One method: call it with arrays to get its coefficients.

  Attributes:
    name: the registered name.
    function: `(log_ratio_BT, advantages_B, mask_BT, extras) -> Terms`, given log ratios that are
      float32 or wider, detached and 0 where the mask is False. Of rows without any True only zeros
      are seen.
    aggregation: the method's own way to reduce token losses, one of `AGGREGATIONS`.
    batch_wide: whether a coefficient depends on other sequences of the minibatch, so that it must
      be computed on the whole of it even where the gradient is accumulated over pieces.
    correction: what a rollout correction does to it. `multiply`: its weights multiply the
      coefficients. `fold`: they become a factor of W. `refuse`: the method already corrects for
      the behaviour policy.
    has_ratio: whether the coefficients already correct for the denominator policy, so that weights
      against the same policy would count it twice.
    needs: keys that must be in `extras`.
  """

  name: str
  function: TermsFn
  aggregation: str
  batch_wide: bool = False
  correction: Literal["multiply", "fold", "refuse"] = "multiply"
  has_ratio: bool = True
  needs: tuple[str, ...] = ()

  def __call__(
    self, log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras | None = None
  ) -> tuple[Array, Metrics]:
    """The coefficient of every token, and the method's own metrics.

    Args:
      log_ratio_BT: log pi(y_t) - log mu(y_t), policy against the denominator, any float dtype.
      advantages_B: float, one per sequence.
      mask_BT: bool, True at sampled tokens.
      extras: further arrays some methods need; see `terms`.

    Returns:
      `coefficients_BT`, float32 or wider, detached, 0 where the mask is False; and scalar metrics.

    Raises:
      ValueError: if the method needs an extra that is not given.
    """
    terms = self.terms(log_ratio_BT, advantages_B, mask_BT, extras)
    return terms.coefficients_BT, terms.metrics

  def terms(
    self, log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras | None = None
  ) -> Terms:
    """All that the method says of the minibatch: `__call__` with the rest of `Terms`.

    `extras` may hold, by name: `policy_logprobs`, `behaviour_logprobs` and `proximal_logprobs`
    [B, T] (`policy_loss` gives those it has); `log_correction` [B], the log of a folded rollout
    correction; `topk_policy_logprobs` and `topk_denominator_logprobs` [B, T, K], at the K likeliest
    tokens of the denominator policy.
    """
    chex.assert_rank([log_ratio_BT, advantages_B, mask_BT], [2, 1, 2])
    chex.assert_equal_shape([log_ratio_BT, mask_BT])
    chex.assert_equal_shape_prefix([log_ratio_BT, advantages_B], 1)
    chex.assert_type(mask_BT, bool)
    extras = {key: jax.lax.stop_gradient(at_least_float32(x)) for key, x in (extras or {}).items()}
    missing = [key for key in self.needs if key not in extras]
    if missing:
      raise ValueError(f"objective {self.name!r} needs extras[{missing[0]!r}]")
    extras = {key: _masked(x, mask_BT) for key, x in extras.items()}
    log_ratio_BT, advantages_B = jax.lax.stop_gradient((log_ratio_BT, advantages_B))
    log_ratio_BT = _masked(at_least_float32(log_ratio_BT), mask_BT)
    advantages_B = _masked(at_least_float32(advantages_B), mask_BT)
    terms = self.function(log_ratio_BT, advantages_B, mask_BT, extras)
    return jax.lax.stop_gradient(terms.where(mask_BT))


def at_least_float32(x: Array) -> Array:
  """`x` in float32, or in its own type where that is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def clip_log(log_ratio: Array) -> Array:
  """A log ratio bounded to +-20, so that its exp is finite and positive."""
  return jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def ratio(log_ratio: Array) -> Array:
  """exp of a log ratio bounded to +-20."""
  return jnp.exp(clip_log(log_ratio))


def out_of_bounds(log_ratio: Array) -> Array:
  """bool: where `ratio` is that of a bound."""
  return jnp.abs(log_ratio) > MAX_LOG_RATIO


def lengths(mask_BT: Array) -> Array:
  """float32 [B]: the sampled tokens of every row, at least 1."""
  return jnp.maximum(jnp.sum(mask_BT, axis=1, dtype=jnp.float32), 1.0)


LENGTH_NORMS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # log W is divided by T to this power


def sequence_log_ratio(
  log_ratio_BT: Array,
  mask_BT: Array,
  length_norm: str = "none",
  log_factor_B: Array | float = 0.0,
) -> Array:
  """[B]: log W = sum_t log r_t of every row (+ `log_factor_B`), over T or sqrt(T) for `linear` and
  `sqrt`; within +-20. What cancels in the sum does: only VESPO bounds its summands too."""
  log_w_B = jnp.sum(jnp.clip(log_ratio_BT, -_FAR, _FAR), axis=1) + log_factor_B
  lengths_B = lengths(mask_BT).astype(log_w_B.dtype)
  return clip_log(log_w_B / lengths_B ** LENGTH_NORMS[length_norm])


def fraction(condition_BT: Array, mask_BT: Array) -> Array:
  """The fraction of the mask's tokens at which the condition holds, float32; 0 of none."""
  hits = jnp.sum(condition_BT & mask_BT, dtype=jnp.float32)
  return hits / jnp.maximum(jnp.sum(mask_BT, dtype=jnp.float32), 1.0)


def largest(values_BT: Array, count: Array) -> Array:
  """bool [B, T]: True at the `count` largest values, the first in order among equals."""
  descending = jnp.argsort(-values_BT.reshape(-1), stable=True)
  rank = jnp.zeros_like(descending).at[descending].set(jnp.arange(descending.size))
  return (rank < count).reshape(values_BT.shape)


def _masked(x: Array, mask_BT: Array) -> Array:
  """`x`, of shape [B], [B, T] or [B, T, ..], with zeros in rows and at tokens that do not count."""
  keep = jnp.any(mask_BT, axis=1) if x.ndim == 1 else mask_BT
  return jnp.where(keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim)), x, 0.0)
