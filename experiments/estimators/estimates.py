"""What is estimated, from what, and how good an estimate is."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from experiments.estimators import policy
from experiments.estimators.tree import Tree
from vespo_jax.models import ModelSpec
from vespo_jax.types import Params

_CHUNK = 256  # responses whose scores are alive at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
  """A policy and its exact gradient.

  Attributes:
    logprobs_BT: float64, of the tokens of every response; 0 where masked.
    scores_YZ: grad log pi of every edge of the tree.
    gram_BTT: inner products of the scores of a response's tokens.
    gradient_Z: grad J = sum_y pi(y) R(y) grad log pi(y).
  """

  tree: Tree
  rewards_B: np.ndarray
  logprobs_BT: np.ndarray
  scores_YZ: np.ndarray
  gram_BTT: np.ndarray
  gradient_Z: np.ndarray

  @functools.cached_property
  def scores32_YZ(self) -> np.ndarray:
    """The scores in float32, for sampled batches."""
    return self.scores_YZ.astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """A target and the behaviour policy that sampled for it, as one point of a sweep."""

  sweep: str
  value: float | str
  target: Target
  behaviour_BT: np.ndarray  # log-probs, as in `Target`

  @functools.cached_property
  def probabilities_B(self) -> np.ndarray:
    """mu(y) of every response."""
    return np.exp(self.behaviour_BT.sum(axis=1))

  @functools.cached_property
  def advantages_B(self) -> np.ndarray:
    """R - E_mu[R]."""
    return self.target.rewards_B - self.probabilities_B @ self.target.rewards_B


def make_target(params: Params, spec: ModelSpec, tree: Tree, rewards_B: np.ndarray) -> Target:
  """Everything of a policy that the estimates need."""
  logprobs_BT = tree.along(policy.log_probs(params, spec, tree))
  scores_YZ = policy.scores(params, spec, tree)
  weights_B = np.exp(logprobs_BT.sum(axis=1)) * rewards_B
  gram = []
  for start in range(0, len(rewards_B), _CHUNK):
    rows = slice(start, start + _CHUNK)
    scores_BTZ = scores_YZ[tree.edges_BT[rows]]
    gram.append(scores_BTZ @ scores_BTZ.transpose(0, 2, 1))
  return Target(
    tree=tree,
    rewards_B=rewards_B,
    logprobs_BT=logprobs_BT,
    scores_YZ=scores_YZ,
    gram_BTT=np.concatenate(gram),
    gradient_Z=on_edges(tree, weights_B[:, None] * tree.mask_BT) @ scores_YZ,
  )


def on_edges(tree: Tree, weights_BT: np.ndarray) -> np.ndarray:
  """[Y]: the token weights of all responses, added up on the edges they stand on."""
  size = len(tree.prefixes_XT) * tree.vocab_size
  where = tree.mask_BT
  return np.bincount(tree.edges_BT[where], weights=weights_BT[where], minlength=size)


@dataclasses.dataclass(frozen=True)
class Moments:
  """What is needed of an estimator g^ of the gradient g: g . E g^, |E g^|^2, |E g^ - g|^2,
  E |g^|^2 and |g|^2. Of Monte Carlo estimates the squares are unbiased, so may be below 0."""

  dot: float
  mean_square: float
  bias_square: float
  second: float
  true_square: float

  def numbers(self) -> dict[str, float]:
    """Everything in units of the true gradient.

    `bias` = |E g^ - g| / |g|; `variance` = tr Cov(g^) / |g|^2; `mse` = E |g^ - g|^2 / |g|^2;
    `cosine` of E g^ to g, 0 where E g^ is lost in noise; `scale` = g . E g^ / |g|^2; and `signal` =
    (g . E g^)^2 / (|g|^2 E |g^|^2), the fraction of the squared step that is along g, with the sign
    of g . E g^: below 0 the step leads away. It is free of scale: 1 - signal is the least `mse` of
    c g^ over all step sizes c > 0, where it is not below 0.
    """
    true = self.true_square
    cosine = self.dot / np.sqrt(true * self.mean_square) if self.mean_square > 0 else 0.0
    return {
      "bias": float(np.sqrt(max(self.bias_square, 0.0) / true)),
      "variance": (self.second - self.mean_square) / true,
      "mse": (self.second - 2 * self.dot + true) / true,
      "cosine": float(np.clip(cosine, -1.0, 1.0)),
      "scale": self.dot / true,
      "signal": self.dot * abs(self.dot) / (true * max(self.second, 1e-300)),
    }


def conditions(setting: Setting) -> dict[str, float]:
  """How far the behaviour policy is from the policy, exactly.

  `ess_fraction` = (E_mu W)^2 / E_mu W^2, `log_w_std` under mu, `kl_per_token` = KL(mu || pi) over
  the mean length under mu, `bound_mass`: the probability under mu of |log W| > 20, where objectives
  bound it; and `reward`, `length`, `gradient_norm` of the policy.
  """
  target, mu_B = setting.target, setting.probabilities_B
  log_w_B = (target.logprobs_BT - setting.behaviour_BT).sum(axis=1)
  pi_B = np.exp(target.logprobs_BT.sum(axis=1))
  mean = mu_B @ log_w_B
  return {
    "ess_fraction": 1.0 / float(pi_B @ np.exp(log_w_B)),
    "log_w_std": float(np.sqrt(mu_B @ (log_w_B - mean) ** 2)),
    "kl_per_token": float(-mean / (mu_B @ target.tree.lengths_B)),
    "bound_mass": float(mu_B @ (np.abs(log_w_B) > 20)),
    "reward": float(pi_B @ target.rewards_B),
    "length": float(pi_B @ target.tree.lengths_B),
    "gradient_norm": float(np.linalg.norm(target.gradient_Z)),
  }
