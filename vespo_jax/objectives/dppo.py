"""DPPO: a trust region by divergence of distributions in place of the ratio (arXiv 2602.04879).

    c_t = M_t min(r_t, cap),   M_t = 0 where the step would go on away from mu (A > 0 and r > 1, or
                               A < 0 and r < 1) and D_t > delta

D is a divergence between the next-token distributions of mu and pi: of the sampled token against
all others (`binary`), or over mu's likeliest K tokens, the sampled one and the rest (`topk`). Both
are lower bounds of the true divergence. mu is the denominator of the ratio: the behaviour policy by
default, as the paper insists; with a proximal policy it is the paper's `recompute` ablation.
"""

from __future__ import annotations

import jax.numpy as jnp

from vespo_jax.objectives.base import (
  Extras,
  Objective,
  Terms,
  fraction,
  ratio,
  registry,
)
from vespo_jax.registry import check_option
from vespo_jax.types import Array

_TINY = 1e-8  # inside the logarithm of the rest's probability, as in the source
_REST_FLOOR = 1e-12


@registry.register("dppo_tv")
def dppo_tv(
  *, delta: float = 0.15, ratio_cap: float = 0.0, divergence: str = "binary"
) -> Objective:
  """DPPO with total variation; `ratio_cap` = 0 is none, `divergence` is `binary` or `topk`.

  The paper's delta is 0.15 for stability and 0.2 for scaling, where the cap is 5. verl applies a
  cap of 3 unless told otherwise. Source: arXiv 2602.04879 eq. 12; sail-sg/Stable-RL core_algos.py.
  """
  return _dppo("dppo_tv", delta, ratio_cap, divergence)


@registry.register("dppo_kl")
def dppo_kl(
  *, delta: float = 0.05, ratio_cap: float = 0.0, divergence: str = "binary"
) -> Objective:
  """DPPO with KL(mu || pi); options and source as `dppo_tv`."""
  return _dppo("dppo_kl", delta, ratio_cap, divergence)


def _dppo(name: str, delta: float, ratio_cap: float, divergence: str) -> Objective:
  check_option("divergence", divergence, ("binary", "topk"))
  kl = name == "dppo_kl"

  def terms(log_ratio_BT: Array, advantages_B: Array, mask_BT: Array, extras: Extras) -> Terms:
    log_pi_BT = extras["policy_logprobs"]
    log_mu_BT = log_pi_BT - log_ratio_BT
    if divergence == "binary":
      distance_BT = (_binary_kl if kl else _binary_tv)(log_mu_BT, log_pi_BT)
    else:
      log_mu_BTK = extras["topk_denominator_logprobs"]
      log_pi_BTK = extras["topk_policy_logprobs"]
      p_BTK, q_BTK = (_with_rest(x) for x in (log_mu_BTK, log_pi_BTK))
      if kl:
        distance_BT = jnp.sum(p_BTK * (jnp.log(p_BTK) - jnp.log(q_BTK)), axis=-1)
      else:
        distance_BT = 0.5 * jnp.sum(jnp.abs(p_BTK - q_BTK), axis=-1)
    a_B1 = advantages_B[:, None]
    away_BT = ((a_B1 > 0) & (log_ratio_BT > 0)) | ((a_B1 < 0) & (log_ratio_BT < 0))
    masked_BT = away_BT & (distance_BT > delta)
    r_BT = ratio(log_ratio_BT)
    r_BT = jnp.minimum(r_BT, ratio_cap) if ratio_cap else r_BT
    tokens = jnp.maximum(jnp.sum(mask_BT, dtype=jnp.float32), 1.0)
    metrics = {
      "objective/clip_fraction": fraction(masked_BT, mask_BT),
      "objective/divergence_mean": jnp.sum(jnp.where(mask_BT, distance_BT, 0.0)) / tokens,
    }
    return Terms(jnp.where(masked_BT, 0.0, r_BT), metrics)

  needs = ("policy_logprobs",)
  if divergence == "topk":
    needs += ("topk_denominator_logprobs", "topk_policy_logprobs")
  return Objective(name, terms, aggregation="token-mean", needs=needs)


def _binary_tv(log_mu_BT: Array, log_pi_BT: Array) -> Array:
  return jnp.abs(jnp.exp(log_mu_BT) - jnp.exp(log_pi_BT))


def _binary_kl(log_mu_BT: Array, log_pi_BT: Array) -> Array:
  mu_BT = jnp.exp(log_mu_BT)
  rest_mu_BT, rest_pi_BT = -jnp.expm1(log_mu_BT), -jnp.expm1(log_pi_BT)
  rest_BT = rest_mu_BT * (jnp.log(rest_mu_BT + _TINY) - jnp.log(rest_pi_BT + _TINY))
  own_BT = jnp.where(mu_BT > 0, mu_BT * (log_mu_BT - log_pi_BT), 0.0)  # 0 log 0 = 0
  return own_BT + rest_BT


def _with_rest(logprobs_BTK: Array) -> Array:
  """Probabilities of K tokens and, last, of all others together."""
  p_BTK = jnp.maximum(jnp.exp(logprobs_BTK), _REST_FLOOR)
  rest_BT1 = jnp.maximum(1.0 - jnp.sum(p_BTK, axis=-1, keepdims=True), _REST_FLOOR)
  return jnp.concatenate([p_BTK, rest_BT1], axis=-1)
