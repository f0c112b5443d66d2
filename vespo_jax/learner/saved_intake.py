"""Minibatches that another run has sampled, in the place of those that are ordered."""

from __future__ import annotations

from typing import Any

import numpy as np

from vespo_jax.learner.groups import Selection
from vespo_jax.learner.intake import Minibatch, ProblemSet, group_metrics
from vespo_jax.learner.saved import SavedRollouts
from vespo_jax.runtime import Sampler, Snapshot


class SavedIntake:
  """The minibatches that another run saved, in the place of an `Intake`: the sampler only
  evaluates.

  Args:
    saved: the minibatches.
    sampler: of the run.
    problems: the training problems.
    samples: of each prompt.
    longest: response in tokens that is trained on.
  """

  def __init__(
    self,
    saved: SavedRollouts,
    sampler: Sampler,
    problems: ProblemSet,
    samples: int,
    longest: int,
  ):
    self._saved, self._sampler, self._problems = saved, sampler, problems
    self._samples, self._longest = samples, longest

  def order(self, version: int) -> None:
    """Nothing is ordered."""

  def snapshot(self, newest: bool, version: int) -> Snapshot:
    """The newest weights, if they are wanted."""
    return self._sampler.snapshot(newest)

  def state(self) -> dict[str, Any]:
    """Nothing was given out."""
    return {}

  def rates(self) -> dict[str, np.ndarray]:
    """There are none."""
    return {}

  def get(self, update: int) -> Minibatch:
    """The graded minibatch of `update`. Raises OSError if its file cannot be trained on."""
    try:
      rollouts = self._saved.read(update + 1)
    except ValueError as error:  # the first was read before the run began; this one is damaged
      raise OSError(str(error)) from error
    longest = max(len(rollout.response_ids) for rollout in rollouts)
    if longest > self._longest:
      raise OSError(
        f"update {update + 1} would train on a response of {longest} tokens that another run "
        f"sampled, more than sampler.max_new_tokens={self._longest}"
      )
    workers = [0] * len(rollouts)
    selection = Selection(len(rollouts) // self._samples, self._samples, everything=True)
    selection.add(rollouts, workers)
    return Minibatch(
      rollouts,
      workers,
      sample_s=0.0,
      metrics=group_metrics(selection, self._problems),
      sampled_tokens=sum(len(rollout.response_ids) for rollout in rollouts),
      replayed=True,
    )
