"""The mathematics: every method is a detached coefficient on `A grad log pi`, one short file each.

objective = objectives.make("vespo", k_pos=2.0)
coefficients_BT, metrics = objective(log_ratio_BT, advantages_B, mask_BT)
loss, metrics = objectives.policy_loss(objective, policy_logprobs=..., behaviour_logprobs=...,
                                       advantages=..., mask=...)
"""

from vespo_jax.objectives import grpo as _grpo  # noqa: F401  (importing a method registers it)
from vespo_jax.objectives import reinforce as _reinforce  # noqa: F401
from vespo_jax.objectives import vespo as _vespo  # noqa: F401
from vespo_jax.objectives.aggregation import AGGREGATIONS, aggregate, count
from vespo_jax.objectives.base import Objective, registry
from vespo_jax.objectives.loss import policy_loss

names = registry.names
defaults = registry.defaults
make = registry.make

__all__ = [
  "AGGREGATIONS",
  "Objective",
  "aggregate",
  "count",
  "defaults",
  "make",
  "names",
  "policy_loss",
  "registry",
]
