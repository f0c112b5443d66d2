"""Accuracy on held-out problems, with an interval that knows samples of a problem are alike."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from vespo_jax.learner.intake import EVALUATION_STREAM, ProblemSet
from vespo_jax.runtime import Sampler
from vespo_jax.sampler import Order, Settings

_Z = 1.959964  # two-sided 95 % of the standard normal


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Mean correctness, its 95 % interval, and what it was measured on."""

  accuracy: float
  low: float
  high: float
  problems: int
  samples_per_problem: int

  def to_dict(self) -> dict[str, float | int]:
    """Plain values, as in `result.json`."""
    return dataclasses.asdict(self)

  def __str__(self) -> str:
    return (
      f"{self.accuracy:.1%} [{self.low:.1%}, {self.high:.1%}] "
      f"({self.problems} problems x {self.samples_per_problem} samples)"
    )


def summarise(correct_PR: np.ndarray) -> Evaluation:
  """The `Evaluation` of a matrix of correctness in {0, 1}, one row per problem.

  The interval is Wilson's for the effective number of independent samples, p (1 - p) / SE^2, where
  SE is the standard error of the mean over problems: samples of one problem are not independent.
  At 0 % and 100 %, where SE vanishes, each problem counts once. Source: Wilson (1927).
  """
  problems, samples = correct_PR.shape
  per_problem_P = correct_PR.mean(axis=1)
  p = float(per_problem_P.mean())
  variance = float(per_problem_P.var(ddof=1)) / problems if problems > 1 else 0.0
  n = p * (1 - p) / variance if variance > 0 else float(problems)
  centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
  half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
  return Evaluation(p, max(centre - half, 0.0), min(centre + half, 1.0), problems, samples)


class Evaluator:
  """Asks a sampler a fixed set of held-out problems.

  The problems and the sampling keys are the same at every call, and the keys are a stream of their
  own, so that an evaluation never changes what the run samples.

  Args:
    problems: the held-out problems; the first `count` are asked.
    count: how many.
    settings: how to sample, `samples_per_prompt` being the samples per problem.
    seed: of the run.
    timeout_s: the longest wait for one order.
    prompts_per_order: how many problems are sampled at once.
  """

  def __init__(
    self,
    problems: ProblemSet,
    count: int,
    settings: Settings,
    *,
    seed: int,
    timeout_s: float,
    prompts_per_order: int,
  ):
    self._problems, self._count, self._settings = problems, count, settings
    self._seed, self._timeout_s, self._chunk = seed, timeout_s, prompts_per_order

  def run(self, sampler: Sampler, weight_version: int) -> Evaluation:
    """Accuracy of the weights published as `weight_version`, once the sampler gets to it.

    Raises what the sampler's channels raise.
    """
    starts = range(0, self._count, self._chunk)
    correct = []
    for start in starts:
      indices = range(start, min(start + self._chunk, self._count))
      sampler.put(
        Order(
          order_id=-1 - start,  # of its own, beside training orders under way
          weight_version=weight_version,
          seed=self._seed,
          stream=EVALUATION_STREAM,
          prompts=self._problems.prompts(indices),
          group_ids=indices,
          settings=self._settings,
          plan=((0, weight_version),),
        )
      )
      rollouts = sampler.get(self._timeout_s, -1 - start).rollouts
      samples = self._settings.samples_per_prompt
      self._problems.grade(rollouts, np.repeat(np.array(indices), samples))
      correct += [rollout.reward for rollout in rollouts]
    return summarise(np.array(correct).reshape(self._count, -1))
