"""Asking a sampler held-out problems, in orders that never change what a run samples."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from vespo_jax.evaluation.accuracy import Evaluation, summarise
from vespo_jax.learner.intake import EVALUATION_STREAM, ProblemSet, check_reward
from vespo_jax.runtime import Sampler
from vespo_jax.sampler import Order, Settings
from vespo_jax.types import Rollout


class Evaluator:
  """Asks a sampler a fixed set of held-out problems.

  The problems and the sampling keys are the same at every call, and the keys are a stream of their
  own, so that an evaluation never changes what the run samples.

  Args:
    problems: the held-out problems; the first `count` are asked.
    count: how many.
    settings: how to sample, `samples_per_prompt` being the samples per problem.
    seed: of the run.
    timeout_s: the longest wait without a result of any order.
    prompts_per_order: how many problems are sampled at once.
    ahead: orders given at a time, so that several samplers share them.
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
    ahead: int = 2,
  ):
    self.problems = problems
    self._count, self._settings, self._seed = count, settings, seed
    self._timeout_s, self._chunk, self._ahead = timeout_s, prompts_per_order, ahead

  @functools.cached_property
  def longest_prompt(self) -> int:
    """Tokens of the longest prompt that is asked."""
    return max(map(len, self.problems.prompts(range(self._count))))

  def run(self, sampler: Sampler, weight_version: int) -> Evaluation:
    """Accuracy of the weights published as `weight_version`, once the sampler gets to it.

    Raises what the sampler's channels, the grader and `check_reward` raise.
    """
    asked = self.ask(sampler, weight_version, range(self._count), self._seed)
    return summarise(np.array([[rollout.reward for rollout in group] for _, group in asked]))

  def ask(
    self, sampler: Sampler, weight_version: int, indices: Sequence[int], seed: int
  ) -> Iterator[tuple[int, list[Rollout]]]:
    """The index and the graded responses of each of the problems at `indices`, in this order.

    While one order is graded others are being sampled. With a reward of the user's own, nothing
    comes before one answer could be graded: an evaluation of none is not to be kept. Raises as
    `run`.
    """
    # an evaluation of which a part is asked goes on, so that it has been judged
    judged, held = not self.problems.own_reward or len(indices) < self._count, []
    for index, group in self._ask(sampler, weight_version, indices, seed):
      held.append((index, group))
      judged = judged or any(rollout.reward_status != "error" for rollout in group)
      if judged:
        yield from held
        held = []
    check_reward(self.problems, [rollout for _, group in held for rollout in group])

  def _ask(
    self, sampler: Sampler, weight_version: int, indices: Sequence[int], seed: int
  ) -> Iterator[tuple[int, list[Rollout]]]:
    chunks = [indices[start : start + self._chunk] for start in range(0, len(indices), self._chunk)]
    given = 0
    for number, chunk in enumerate(chunks):
      while given < min(number + self._ahead, len(chunks)):
        sampler.put(self._order(given, chunks[given], weight_version, seed))
        given += 1
      rollouts = sampler.get(self._timeout_s, _order_id(number)).rollouts
      samples = self._settings.samples_per_prompt
      self.problems.grade(rollouts, np.repeat(np.array(chunk), samples))
      for i, index in enumerate(chunk):
        yield index, rollouts[i * samples : (i + 1) * samples]

  def _order(self, number: int, indices: Sequence[int], weight_version: int, seed: int) -> Order:
    return Order(
      order_id=_order_id(number),
      weight_version=weight_version,
      seed=seed,
      stream=EVALUATION_STREAM,
      prompts=self.problems.prompts(indices),
      group_ids=indices,
      settings=self._settings,
      plan=((0, weight_version),),
      longest_prompt=self.longest_prompt,
      noisy=False,
    )


def _order_id(number: int) -> int:
  return -1 - number  # of its own, beside training orders under way
