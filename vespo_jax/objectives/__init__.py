"""The mathematics: every method is a detached coefficient on `A grad log pi`, one short file each.

objective = objectives.make("vespo", k_pos=2.0)
coefficients_BT, metrics = objective(log_ratio_BT, advantages_B, mask_BT)
loss, metrics = objectives.policy_loss(objective, policy_logprobs=..., behaviour_logprobs=...,
                                       advantages=..., mask=...)
"""

# importing a method registers it
from vespo_jax.objectives import (  # noqa: F401
  bapo,
  cispo,
  corrections,
  covariance,
  dppo,
  gmpo,
  grpo,
  gspo,
  m2po,
  minirl,
  minpro,
  reinforce,
  sapo,
  sequence_is,
  topr,
  vespo,
)
from vespo_jax.objectives.aggregation import AGGREGATIONS, aggregate, count
from vespo_jax.objectives.base import Objective, Terms, registry
from vespo_jax.objectives.corrections import Correction
from vespo_jax.objectives.dft import dft
from vespo_jax.objectives.loss import (
  TokenWeights,
  check_correction,
  policy_loss,
  token_weights,
  weighted_loss,
)
from vespo_jax.objectives.opsm import mask_off_policy
from vespo_jax.objectives.regularizers import (
  DIVERGENCES,
  KL_ESTIMATORS,
  kl_estimate,
  proximal_divergence,
)

names = registry.names
defaults = registry.defaults
make = registry.make

__all__ = [
  "AGGREGATIONS",
  "DIVERGENCES",
  "KL_ESTIMATORS",
  "Correction",
  "Objective",
  "Terms",
  "TokenWeights",
  "aggregate",
  "check_correction",
  "corrections",
  "count",
  "defaults",
  "dft",
  "kl_estimate",
  "make",
  "mask_off_policy",
  "names",
  "policy_loss",
  "proximal_divergence",
  "registry",
  "token_weights",
  "weighted_loss",
]
