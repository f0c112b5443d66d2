"""Sequence-level importance sampling: the unbiased estimator, plain and truncated.

With W = prod_t pi(y_t) / mu(y_t), `E_mu[W A grad log pi]` is the exact policy gradient for any
behaviour policy; its variance grows exponentially in the length of the response.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms, registry, sequence_log_ratio
from vespo_jax.types import Array


@registry.register("sequence_is")
def sequence_is() -> Objective:
  """Coefficient W on every token, W within exp(+-20) as in verl; unbiased up to that bound.

  Source: Precup, Sutton and Singh (2000), for whole trajectories.
  """
  return _importance("sequence_is", None, "seq-mean-token-sum")


@registry.register("vcpo")
def vcpo(*, cap: float = 8.0) -> Objective:
  """VCPO's coefficient min(W, cap), detached (arXiv 2602.17616; mit-han-lab/vcpo).

  The method has two more parts, each with a place of its own: its minimum-variance baseline is
  `advantage.name = "vcpo"`, its step size by effective sample size `optimizer.ess_scaling`.
  Aggregation as in the released scripts.
  """
  return _importance("vcpo", cap, "seq-mean-token-mean")


def _importance(name: str, cap: float | None, aggregation: str) -> Objective:
  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del advantages_B, extras
    w_B = jnp.exp(sequence_log_ratio(log_ratio_BT, mask_BT))
    metrics = {}
    if cap is not None:
      valid_B = jnp.any(mask_BT, axis=1)
      count = jnp.maximum(jnp.sum(valid_B, dtype=jnp.float32), 1.0)
      metrics["objective/truncated_fraction"] = jnp.sum((w_B > cap) & valid_B) / count
      w_B = jnp.minimum(w_B, cap)
    return Terms(jnp.broadcast_to(w_B[:, None], mask_BT.shape), metrics)

  return Objective(name, terms, aggregation)
