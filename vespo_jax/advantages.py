"""Rewards of a group -> advantages. Pure functions of arrays, registered by name.

    advantage = advantages.make("grpo", normalize_std=False)
    advantages_PR, zero_variance_P = advantage(rewards_PR, valid_PR)

A group whose valid rewards are all equal says nothing about what to prefer. Every estimator that is
relative to the group gives it exactly 0; `reinforce_plus_plus` is relative to the batch and does
not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from vespo_jax.registry import Registry, check_option
from vespo_jax.types import Array

registry = Registry("advantage")
names, defaults = registry.names, registry.defaults

Extras = Mapping[str, Array]
SCORES = ("exact", "logit")


@dataclasses.dataclass(frozen=True)
class Advantage:
  """One estimator.

  Attributes:
    name: the registered name.
    function: `(rewards_PR, valid_PR, extras) -> advantages_PR`, given rewards that are float32, and
      0 where invalid.
    needs: keys that must be in `extras`, [P, R] each: `lengths`, sampled tokens; `log_w`, log of
      the sequence weight W, policy against behaviour; `log_score`, log of the norm of
      `grad log pi(y)`.
    score: where `log_score` is needed, how to get it: `exact`, one backward pass per sequence, or
      `logit`, the norm of the gradient with respect to the logits, which one forward pass gives.
    group_relative: whether a group without variance has no signal.
  """

  name: str
  function: Callable[[Array, Array, Extras], Array]
  needs: tuple[str, ...] = ()
  score: str = ""
  group_relative: bool = True

  def __call__(
    self, rewards_PR: Array, valid_PR: Array, extras: Extras | None = None
  ) -> tuple[Array, Array]:
    """Advantages of every sample and a flag per group.

    Args:
      rewards_PR: float rewards, one row per prompt.
      valid_PR: bool; samples that are False are left out of every statistic and get 0.
      extras: what `needs` names; nothing of it is differentiated.

    Returns:
      `advantages_PR` float32, and `zero_variance_P` bool, True where all valid rewards of a group
      of two or more are equal.

    Raises:
      ValueError: if something needed is not in `extras`.
    """
    chex.assert_rank([rewards_PR, valid_PR], 2)
    chex.assert_equal_shape([rewards_PR, valid_PR])
    chex.assert_type(valid_PR, bool)
    extras = jax.lax.stop_gradient(dict(extras or {}))
    missing = [key for key in self.needs if key not in extras]
    if missing:
      raise ValueError(f"advantage {self.name!r} needs extras[{missing[0]!r}]")
    rewards_PR = jnp.where(valid_PR, rewards_PR.astype(jnp.float32), 0.0)
    zero_variance_P = zero_variance(rewards_PR, valid_PR)
    keep_PR = valid_PR
    if self.group_relative:
      keep_PR &= ~zero_variance_P[:, None]
    advantages_PR = self.function(rewards_PR, valid_PR, extras)
    return jnp.where(keep_PR, advantages_PR, 0.0), zero_variance_P


def zero_variance(rewards_PR: Array, valid_PR: Array) -> Array:
  """[P], bool: whether all valid rewards of a group are equal, and there are two or more."""
  low_P = jnp.min(jnp.where(valid_PR, rewards_PR, jnp.inf), axis=1)
  high_P = jnp.max(jnp.where(valid_PR, rewards_PR, -jnp.inf), axis=1)
  return (low_P >= high_P) & (jnp.sum(valid_PR, axis=1) > 1)


def make(name: str, **kwargs: float | bool | str) -> Advantage:
  """The estimator registered as `name`. Raises ValueError naming the known names and options."""
  return registry.make(name, **kwargs)


@registry.register("grpo")
def grpo(*, normalize_std: bool = True, epsilon: float = 1e-6) -> Advantage:
  """(R - mean) / (std + epsilon) within the group, std with Bessel's correction (ddof = 1).

  A group of one valid sample has mean 0 and std 1, as in verl.
  Source: arXiv 2402.03300 section 4.1.2; verl `compute_grpo_outcome_advantage`.
  """

  def function(rewards_PR: Array, valid_PR: Array, extras: Extras) -> Array:
    del extras
    centred_PR = _centred(rewards_PR, valid_PR)
    if not normalize_std:
      return centred_PR
    return centred_PR / (_std(rewards_PR, valid_PR, ddof=1) + epsilon)

  return Advantage("grpo", function)


@registry.register("dr_grpo")
def dr_grpo() -> Advantage:
  """R - mean of the group: GRPO without the division that favours easy and hard prompts.

  Source: arXiv 2503.20783; also the advantage of MiniRL, DPPO and VESPO's equations.
  """
  return dataclasses.replace(grpo(normalize_std=False), name="dr_grpo")


@registry.register("constant")
def constant(*, baseline: float = 0.5, scale: float = 2.0) -> Advantage:
  """scale (R - baseline) whatever the group: with the defaults, rewards 0 and 1 count as -1 and 1.

  A group whose samples all fail, or all succeed, is learned from too. Source: TOPR's rewards
  without a baseline, arXiv 2503.14286.
  """

  def function(rewards_PR: Array, valid_PR: Array, extras: Extras) -> Array:
    del valid_PR, extras
    return scale * (rewards_PR - baseline)

  return Advantage("constant", function, group_relative=False)


@registry.register("rloo")
def rloo() -> Advantage:
  """R - mean of the group's other samples, = n / (n - 1) (R - mean); a single sample keeps R.

  Source: arXiv 2402.14740; verl `compute_rloo_outcome_advantage`.
  """

  def function(rewards_PR: Array, valid_PR: Array, extras: Extras) -> Array:
    del extras
    n_P1 = _count(valid_PR)
    return _centred(rewards_PR, valid_PR) * n_P1 / jnp.maximum(n_P1 - 1, 1.0)

  return Advantage("rloo", function)


@registry.register("reinforce_plus_plus")
def reinforce_plus_plus() -> Advantage:
  """R whitened over all tokens of the batch: (R - mean) / sqrt(var + 1e-8), no group.

  The reward stands at the end of the response and is not discounted, so that the return is R at
  every token. Source: arXiv 2501.03262; verl `compute_reinforce_plus_plus_outcome_advantage`.
  """

  def function(rewards_PR: Array, valid_PR: Array, extras: Extras) -> Array:
    return _whitened(rewards_PR, valid_PR, extras["lengths"])

  return Advantage("reinforce_plus_plus", function, needs=("lengths",), group_relative=False)


@registry.register("reinforce_plus_plus_baseline")
def reinforce_plus_plus_baseline() -> Advantage:
  """R - mean of the group, then whitened over all tokens of the batch.

  A group without variance gets 0, not the small number that verl's whitening leaves it.
  Source: arXiv 2501.03262; verl `compute_reinforce_plus_plus_baseline_outcome_advantage`.
  """

  def function(rewards_PR: Array, valid_PR: Array, extras: Extras) -> Array:
    return _whitened(_centred(rewards_PR, valid_PR), valid_PR, extras["lengths"])

  return Advantage("reinforce_plus_plus_baseline", function, needs=("lengths",))


@registry.register("opo")
def opo() -> Advantage:
  """R - b with b = sum L R / sum L over the group, L the length: the best baseline if the score's
  square norm grows with the length. A single sample keeps R.

  Source: arXiv 2505.23585 eq. 6; verl `compute_opo_outcome_advantage`.
  """

  def function(rewards_PR: Array, valid_PR: Array, extras: Extras) -> Array:
    lengths_PR = jnp.where(valid_PR, extras["lengths"], 0.0)
    total_P1 = jnp.sum(lengths_PR, axis=1, keepdims=True)
    mean_P1 = jnp.sum(lengths_PR * rewards_PR, axis=1, keepdims=True) / jnp.maximum(total_P1, 1.0)
    return rewards_PR - jnp.where(_count(valid_PR) > 1, mean_P1, 0.0)

  return Advantage("opo", function, needs=("lengths",))


@registry.register("gpg")
def gpg(*, f_norm: float = 1.0) -> Advantage:
  """alpha (R - mean of the group) / f_norm with alpha = samples / samples of non-zero reward.

  Source: arXiv 2504.02546 eq. 6; verl `compute_gpg_outcome_advantage`.
  """

  def function(rewards_PR: Array, valid_PR: Array, extras: Extras) -> Array:
    del extras
    alpha = jnp.sum(valid_PR) / jnp.maximum(jnp.sum(rewards_PR != 0), 1)
    return alpha * _centred(rewards_PR, valid_PR) / f_norm

  return Advantage("gpg", function)


@registry.register("pass_at_k")
def pass_at_k(*, normalize_std: bool = True, epsilon: float = 1e-6) -> Advantage:
  """The best sample of a group gets its lead over the second best, all others 0: the gradient of
  the group's best reward, pass@k where the group is k.

  Divided by the group's std + epsilon unless turned off; a single sample gets 0.
  Source: arXiv 2503.19595; verl `compute_grpo_passk_outcome_advantage`.
  """

  def function(rewards_PR: Array, valid_PR: Array, extras: Extras) -> Array:
    del extras
    ranked_PR = jnp.where(valid_PR, rewards_PR, -jnp.inf)
    best_P1 = jnp.argmax(ranked_PR, axis=1, keepdims=True)
    is_best_PR = jnp.arange(rewards_PR.shape[1]) == best_P1
    first_P1 = jnp.max(ranked_PR, axis=1, keepdims=True)
    second_P1 = jnp.max(jnp.where(is_best_PR, -jnp.inf, ranked_PR), axis=1, keepdims=True)
    lead_P1 = jnp.where(_count(valid_PR) > 1, first_P1 - second_P1, 0.0)
    if normalize_std:
      lead_P1 = lead_P1 / (_std(rewards_PR, valid_PR, ddof=1) + epsilon)
    return jnp.where(is_best_PR, lead_P1, 0.0)

  return Advantage("pass_at_k", function)


@registry.register("vcpo")
def vcpo(
  *,
  normalize_std: bool = True,
  score: str = "exact",
  double_weight: bool = False,
  cap: float = 8.0,
) -> Advantage:
  """R - b with VCPO's minimum-variance baseline of the group,

      b = sum W^2 ||grad log pi||^2 R / sum W^2 ||grad log pi||^2,

  the scalar that minimises E ||W (R - b) grad log pi||^2; a single sample keeps R.

  Args:
    normalize_std: divide by the group's std (ddof = 0) where it exceeds 1e-8, as the scripts do.
    score: `exact` takes every sequence's own gradient norm, at one backward pass each; `logit` the
      norm with respect to the logits, sum_t (1 - 2 pi(y_t) + sum_v pi(v)^2), from one forward pass.
    double_weight: weigh by min(W, cap)^2 W^2 ||grad log pi||^2, as the released code does, whose
      gradient norms already contain the truncated weight.
    cap: of that truncation.

  Raises ValueError for another `score`. Source: arXiv 2602.17616; mit-han-lab/vcpo
  `compute_opob_baseline`; the proxy is verl's `compute_multi_turn_optimal_token_baseline` term.
  """
  check_option("score", score, SCORES)

  def function(rewards_PR: Array, valid_PR: Array, extras: Extras) -> Array:
    log_w_PR = extras["log_w"]
    logits_PR = 2 * (log_w_PR + extras["log_score"])
    if double_weight:
      logits_PR += 2 * jnp.minimum(log_w_PR, jnp.log(cap))
    logits_PR = jnp.where(valid_PR, jnp.maximum(logits_PR, -1e30), -jnp.inf)
    share_PR = jnp.where(valid_PR, jax.nn.softmax(logits_PR, axis=1), 0.0)
    baseline_P1 = jnp.sum(share_PR * rewards_PR, axis=1, keepdims=True)
    advantages_PR = rewards_PR - jnp.where(_count(valid_PR) > 1, baseline_P1, 0.0)
    if not normalize_std:
      return advantages_PR
    std_P1 = _std(rewards_PR, valid_PR, ddof=0)
    return advantages_PR / jnp.where(std_P1 > 1e-8, std_P1, 1.0)

  return Advantage("vcpo", function, needs=("log_w", "log_score"), score=score)


def _count(valid_PR: Array) -> Array:
  return jnp.sum(valid_PR, axis=1, keepdims=True, dtype=jnp.float32)


def _centred(rewards_PR: Array, valid_PR: Array) -> Array:
  """R - mean of the group; a single sample keeps R."""
  n_P1 = _count(valid_PR)
  mean_P1 = jnp.sum(rewards_PR, axis=1, keepdims=True) / jnp.maximum(n_P1, 1.0)
  return jnp.where(valid_PR, rewards_PR - jnp.where(n_P1 > 1, mean_P1, 0.0), 0.0)


def _std(rewards_PR: Array, valid_PR: Array, ddof: int) -> Array:
  """[P, 1]: the group's standard deviation; 1 for a single sample."""
  n_P1 = _count(valid_PR)
  squares_P1 = jnp.sum(_centred(rewards_PR, valid_PR) ** 2, axis=1, keepdims=True)
  return jnp.where(n_P1 > 1, jnp.sqrt(squares_P1 / jnp.maximum(n_P1 - ddof, 1.0)), 1.0)


def _whitened(values_PR: Array, valid_PR: Array, lengths_PR: Array) -> Array:
  """Zero mean and unit variance (ddof = 1) over the tokens of the batch."""
  tokens_PR = jnp.where(valid_PR, lengths_PR, 0.0)
  n = jnp.maximum(jnp.sum(tokens_PR), 1.0)
  mean = jnp.sum(tokens_PR * values_PR) / n
  variance = jnp.sum(tokens_PR * (values_PR - mean) ** 2) / jnp.maximum(n - 1, 1.0)
  return (values_PR - mean) * jax.lax.rsqrt(variance + 1e-8)
