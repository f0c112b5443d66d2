"""What every objective is: a map from log ratios and advantages to detached coefficients.

The gradient of every method is `sum_t c_t A grad log pi(y_t)` (up to its aggregation); methods
differ in the coefficient `c_t` alone. Products of ratios stay sums in log space, in float32 or
wider, until the last `exp`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from vespo_jax.registry import Registry
from vespo_jax.types import Array

MAX_LOG_RATIO = 20.0  # the bound on a log ratio, per token and per sequence, of every public source

Metrics = dict[str, Array]
Extras = Mapping[str, Array] | None
CoefficientFn = Callable[[Array, Array, Array, Extras], tuple[Array, Metrics]]
SurrogateFn = Callable[[Array, Array], Array]

registry = Registry("objective")


@dataclasses.dataclass(frozen=True)
class Objective:
  """One method: call it with arrays to get its coefficients.

  Attributes:
    name: the registered name.
    coefficients: `(log_ratio_BT, advantages_B, mask_BT, extras) -> (coefficients_BT, metrics)`,
      given log ratios that are float32, detached and 0 where the mask is False.
    aggregation: the method's own way to reduce token losses, one of `AGGREGATIONS`.
    surrogate: the published per-token loss `(log_ratio_BT, advantages_B) -> [B, T]` of a method
      that differentiates through the ratio. It sets the reported value of the loss, never its
      gradient. None where the published loss is `-c A log pi`.
  """

  name: str
  coefficients: CoefficientFn
  aggregation: str
  surrogate: SurrogateFn | None = None

  def __call__(
    self, log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras = None
  ) -> tuple[Array, Metrics]:
    """The coefficient of every token, and the method's own metrics.

    Args:
      log_ratio_BT: log pi(y_t) - log mu(y_t), policy against the denominator, any float dtype.
      advantages_B: float, one per sequence.
      mask_BT: bool, True at sampled tokens.
      extras: further per-token arrays some methods need.

    Returns:
      `coefficients_BT`, float32 or wider, detached, 0 where the mask is False; and scalar metrics.
    """
    chex.assert_rank([log_ratio_BT, advantages_B, mask_BT], [2, 1, 2])
    chex.assert_equal_shape([log_ratio_BT, mask_BT])
    chex.assert_equal_shape_prefix([log_ratio_BT, advantages_B], 1)
    chex.assert_type(mask_BT, bool)
    log_ratio_BT, advantages_B = jax.lax.stop_gradient((log_ratio_BT, advantages_B))
    log_ratio_BT = jnp.where(mask_BT, at_least_float32(log_ratio_BT), 0.0)
    advantages_B = at_least_float32(advantages_B)
    coefficients_BT, metrics = self.coefficients(log_ratio_BT, advantages_B, mask_BT, extras)
    coefficients_BT = jnp.where(mask_BT, coefficients_BT, 0.0)
    return jax.lax.stop_gradient((coefficients_BT, metrics))


def at_least_float32(x: Array) -> Array:
  """`x` in float32, or in its own type where that is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def ratio(log_ratio: Array) -> Array:
  """exp of a log ratio bounded to +-20, so that it is finite and positive."""
  return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
