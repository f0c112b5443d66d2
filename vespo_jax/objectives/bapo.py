"""BAPO: PPO's clip with bounds that balance good and bad samples (arXiv 2510.18927).

The bounds [low, high] on the ratio start narrow. While the positive advantages contribute less than
`target` times what the negative ones do, `low` is raised to its end, then `high`:

    sum_{A >= 0} min(r, high) A   against   sum_{A < 0} max(r, low) |A|        over all tokens
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms, out_of_bounds, ratio, registry
from vespo_jax.objectives.grpo import clipped
from vespo_jax.types import Array

_EPSILON = 1e-8
_MOST_STEPS = 100  # each is a sum over the minibatch


@registry.register("bapo")
def bapo(
  *,
  low_start: float = 0.6,
  low_end: float = 0.8,
  high_start: float = 1.2,
  high_end: float = 2.0,
  step: float = 0.05,
  target: float = 1.0,
  dual_clip: float = 3.0,
) -> Objective:
  """BAPO, with bounds on the ratio itself.

  `target` is the wanted ratio of positive to negative contribution; the README's rho0 = 0.5 of the
  total is the same thing. Raises ValueError if an end is below its start, or more than
  `_MOST_STEPS` away. Source: arXiv 2510.18927 algorithm 1; WooooDyy/BAPO
  recipe/bapo/policy_loss.py.
  """
  lows = _steps("low", low_start, low_end, step)
  highs = _steps("high", high_start, high_end, step)
  pairs = [(i, 0) for i in range(len(lows))] + [(len(lows) - 1, j) for j in range(1, len(highs))]

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del extras
    low_index, high_index = jnp.asarray(pairs).T
    r_BT, a_B1 = ratio(log_ratio_BT), jnp.where(mask_BT, advantages_B[:, None], 0.0)
    good_BT, bad_BT = jnp.maximum(a_B1, 0.0), jnp.maximum(-a_B1, 0.0)
    good = jnp.stack([jnp.sum(jnp.minimum(r_BT, high) * good_BT) for high in highs])[high_index]
    bad = jnp.stack([jnp.sum(jnp.maximum(r_BT, low) * bad_BT) for low in lows])[low_index]
    balance = jnp.where(bad > 0, good / (bad + _EPSILON), jnp.inf)
    reached = balance >= target
    chosen = jnp.where(jnp.any(reached), jnp.argmax(reached), len(pairs) - 1)
    low, high = jnp.asarray(lows)[low_index[chosen]], jnp.asarray(highs)[high_index[chosen]]
    terms = clipped(r_BT, advantages_B, mask_BT, low, high, dual_clip)
    terms.metrics.update({"objective/ratio_low": low, "objective/ratio_high": high})
    return terms.constant_where(out_of_bounds(log_ratio_BT))

  return Objective("bapo", terms, aggregation="token-mean", batch_wide=True)


def _steps(bound: str, start: float, end: float, step: float) -> list[float]:
  """start, start + step, .. up to and including end."""
  if end < start:
    raise ValueError(f"{bound}_start={start} must be at most {bound}_end={end}")
  if not end - start <= _MOST_STEPS * step:
    raise ValueError(
      f"step={step} must be above 0 and lead from {bound}_start={start} to {bound}_end={end} in at "
      f"most {_MOST_STEPS} steps"
    )
  values = [start]
  while values[-1] < end:
    values.append(min(values[-1] + step, end))
  return values
