"""Dynamic fine-tuning: cross entropy with each token's loss times its probability, detached.

    c_t = sg(pi(y_t)),    loss = -sg(pi(y_t)) log pi(y_t)

The gradient of cross entropy is that of a policy whose reward of a demonstration is 1 / pi: rare
tokens have no bound. Times pi, the reward is 1 whatever the token (arXiv 2508.05629 eq. 7-9).
It is a loss of demonstrations, whose advantage is 1, and no estimate of a policy gradient: it has
no place among the registered methods.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import Extras, Objective, Terms
from vespo_jax.types import Array


def dft() -> Objective:
  """Coefficient pi(y_t), detached. Source: arXiv 2508.05629; yongliang-wu/DFT."""

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    del log_ratio_BT, advantages_B, mask_BT
    return Terms(jnp.exp(extras["policy_logprobs"]), {})

  return Objective(
    "dft",
    terms,
    aggregation="token-mean",
    correction="refuse",
    has_ratio=False,
    needs=("policy_logprobs",),
  )
