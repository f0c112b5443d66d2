"""What the rewards of a group say, and which groups a minibatch is made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from vespo_jax.types import Rollout


@dataclasses.dataclass(frozen=True)
class Refill:
  """DAPO's dynamic sampling: groups without a signal are dropped, and others asked in their place.

  Attributes:
    max_rounds: of sampling for one minibatch, the first included.
    oversampling: prompts asked per group that is missing; what is over is not trained on.

  Source: arXiv 2503.14476 section 3.2; verl's `filter_groups` (with `metric=acc`, as in DAPO's own
  scripts), its `max_num_gen_batches` and `gen_batch_size / train_batch_size`.
  """

  max_rounds: int
  oversampling: float = 1.0

  def prompts(self, missing: int) -> int:
    """How many to ask for so many groups."""
    return math.ceil(missing * self.oversampling)


class NoSignal(RuntimeError):
  """The rounds of an update gave too few groups that can be trained on."""


def valid(rollouts: Sequence[Rollout]) -> np.ndarray:
  """bool [B]: those that can be trained on."""
  return np.array([r.finish != "aborted" and len(r.response_ids) > 0 for r in rollouts], bool)


def zero_variance(rewards_PR: np.ndarray, valid_PR: np.ndarray) -> np.ndarray:
  """bool [P]: groups of two or more valid samples whose rewards are all equal."""
  low_P = np.where(valid_PR, rewards_PR, np.inf).min(axis=1)
  high_P = np.where(valid_PR, rewards_PR, -np.inf).max(axis=1)
  return (low_P >= high_P) & (valid_PR.sum(axis=1) > 1)


def has_signal(rollouts: Sequence[Rollout], samples_per_prompt: int) -> np.ndarray:
  """bool [P]: groups that a filter keeps: neither of equal correctness nor without a valid sample.

  What a shaped reward pays beside that (format, length) is no signal: answers that are all right,
  or all wrong, differ in it too. A single valid sample, of a group whose others were aborted, keeps
  its group, as in verl.
  """
  correct_PR = np.float32(_correct(rollouts)).reshape(-1, samples_per_prompt)
  valid_PR = valid(rollouts).reshape(correct_PR.shape)
  return ~zero_variance(correct_PR, valid_PR) & valid_PR.any(axis=1)


def _correct(rollouts: Sequence[Rollout]) -> np.ndarray:
  """float64 [B]: what each is paid for being correct."""
  return np.array([r.reward if r.reward_parts is None else r.reward_parts[0] for r in rollouts])


def success_rates(rollouts: Sequence[Rollout], samples_per_prompt: int) -> np.ndarray:
  """float64 [P]: the mean of what is paid for being correct, which is the share of correct answers
  where that is 0 or 1, over the valid ones that could be graded; NaN if there are none."""
  shape = (-1, samples_per_prompt)
  graded_PR = (valid(rollouts) & [r.reward_status != "error" for r in rollouts]).reshape(shape)
  sums_P = np.where(graded_PR, _correct(rollouts).reshape(shape), 0.0).sum(axis=1)
  counts_P = graded_PR.sum(axis=1)
  return np.where(counts_P, sums_P, np.nan) / np.maximum(counts_P, 1)


def group_metrics(rollouts: Sequence[Rollout], samples_per_prompt: int) -> dict[str, float]:
  """Shares of the groups of which all answers are correct, none is, and some are."""
  rates_P = success_rates(rollouts, samples_per_prompt)
  solved, failed = float((rates_P == 1).mean()), float((rates_P == 0).mean())
  mixed = float(((rates_P > 0) & (rates_P < 1)).mean())
  return {
    "group/solved_fraction": solved,
    "group/failed_fraction": failed,
    "group/mixed_fraction": mixed,
  }


@dataclasses.dataclass
class Selection:
  """The groups of one minibatch as its rounds bring them: kept in their order until it is full.

  Attributes:
    groups: of a whole minibatch.
    samples_per_prompt: rollouts of each.
    everything: keep groups without a signal too.
    asked: all rollouts so far, prompt-major.
    rounds: so far.
  """

  groups: int
  samples_per_prompt: int
  everything: bool
  asked: list[Rollout] = dataclasses.field(default_factory=list)
  rounds: int = 0
  _workers: list[int] = dataclasses.field(default_factory=list)
  _signal: list[bool] = dataclasses.field(default_factory=list)

  def add(self, rollouts: Sequence[Rollout], workers: Sequence[int]) -> None:
    """Takes the graded rollouts of a round, and the worker of each."""
    signal = has_signal(rollouts, self.samples_per_prompt).tolist()
    self._signal += [self.everything or good for good in signal]
    self.asked += rollouts
    self._workers += workers
    self.rounds += 1

  @property
  def missing(self) -> int:
    """Groups that the minibatch still lacks."""
    return max(self.groups - sum(self._signal), 0)

  def kept(self) -> tuple[list[Rollout], list[int]]:
    """What is trained on, and the worker of each rollout."""
    R = self.samples_per_prompt
    chosen = np.flatnonzero(self._signal)[: self.groups]
    rows = [row for group in chosen.tolist() for row in range(group * R, (group + 1) * R)]
    return [self.asked[row] for row in rows], [self._workers[row] for row in rows]

  def metrics(self) -> dict[str, float]:
    """`group_metrics` of all that was asked; the groups without a signal that were `dropped`, those
    beyond a full minibatch (`surplus`), and the `rounds`."""
    signal = sum(self._signal)
    return {
      **group_metrics(self.asked, self.samples_per_prompt),
      "group/dropped": len(self._signal) - signal,
      "group/surplus": max(signal - self.groups, 0),
      "group/rounds": self.rounds,
    }

  def task_metrics(self) -> dict[str, float]:
    """By task: mean reward and length of what is trained on, if there is any; the groups that were
    `asked`, and the share of them in which some answers are correct."""
    metrics: dict[str, float] = {}
    for task, mine in _by_task(self.kept()[0]):
      rewards = [r.reward for r, good in zip(mine, valid(mine), strict=True) if good]
      metrics[f"reward/mean/{task}"] = float(np.mean(rewards)) if rewards else 0.0
      metrics[f"response/length/{task}"] = float(np.mean([len(r.response_ids) for r in mine]))
    for task, mine in _by_task(self.asked):
      mixed = group_metrics(mine, self.samples_per_prompt)["group/mixed_fraction"]
      metrics[f"group/mixed_fraction/{task}"] = mixed
      metrics[f"group/asked/{task}"] = len(mine) // self.samples_per_prompt
    return metrics


def _by_task(rollouts: Sequence[Rollout]) -> list[tuple[str, list[Rollout]]]:
  tasks = sorted({rollout.task for rollout in rollouts})
  return [(task, [rollout for rollout in rollouts if rollout.task == task]) for task in tasks]
