"""Where minibatches come from: prompts out to the sampler in order, graded rollouts back."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from vespo_jax.runtime import Sampler, SyncSchedule
from vespo_jax.sampler import Order, Settings
from vespo_jax.tasks import Grader, PromptStream, Split, Task
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Rollout

TRAIN_STREAM, EVALUATION_STREAM = 0, 1  # what sampling keys are folded with
ORDERS_AHEAD = 2  # orders a sampler holds, so that it never waits for the learner


@dataclasses.dataclass(frozen=True)
class Problems:
  """A task's problems and everything needed to ask and to grade them."""

  task: Task
  examples: Split
  tokenizer: Tokenizer
  grader: Grader

  def prompts(self, indices: Sequence[int] | np.ndarray) -> list[list[int]]:
    """Prompt ids of the examples at `indices`."""
    return [self.tokenizer.encode_prompt(self.task.prompt(self.examples[int(i)])) for i in indices]

  def grade(self, rollouts: Sequence[Rollout], indices: Sequence[int] | np.ndarray) -> None:
    """Sets task, example, reward and status of rollouts that answer `examples[indices]`."""
    examples = [self.examples[int(i)] for i in indices]
    texts = [self.tokenizer.decode(rollout.response_ids) for rollout in rollouts]
    scores = self.grader.grade(examples, texts)
    for rollout, example, score in zip(rollouts, examples, scores, strict=True):
      rollout.task, rollout.example_id = self.task.name, example.id
      rollout.reward, rollout.reward_status = score.reward, score.status


@dataclasses.dataclass
class Minibatch:
  """The graded rollouts of one update, prompt-major, and where the time went, in seconds."""

  rollouts: list[Rollout]
  sample_s: float
  wait_s: float


class Intake:
  """Orders the minibatches of a run and collects them in order.

  What an update trains on is a function of the update number, the seed and the weights alone:
  prompt `position(update) + i` of the stream, whose number is also its group id.

  Args:
    sampler: both channels of the sampler.
    problems: the training problems.
    schedule: which version samples which update.
    settings: how to sample.
    seed: of the run.
    updates: of the run; no order goes beyond them.
    timeout_s: the longest wait for one minibatch.
  """

  def __init__(
    self,
    sampler: Sampler,
    problems: Problems,
    schedule: SyncSchedule,
    settings: Settings,
    *,
    seed: int,
    updates: int,
    timeout_s: float,
  ):
    self._sampler, self._problems, self._schedule = sampler, problems, schedule
    self._settings, self._seed, self._updates = settings, seed, updates
    self._timeout_s = timeout_s
    self._stream = PromptStream(len(problems.examples), seed)
    self._ordered: int | None = None  # the next update to order; None until the first `get`

  def get(self, update: int) -> Minibatch:
    """The minibatch of `update`. At a boundary its weights must have been published.

    Raises SamplersFailed, TimeoutError, and what the grader raises.
    """
    version = self._schedule.weight_version(update)
    if self._ordered is None:
      self._ordered = update
    batch_end = min(version + self._schedule.minibatches, self._updates)
    while self._ordered < min(update + ORDERS_AHEAD, batch_end):
      self._order(self._ordered)
      self._ordered += 1
    started = time.perf_counter()
    result = self._sampler.get(self._timeout_s)
    wait_s = time.perf_counter() - started
    indices = np.repeat(self._indices(update), self._settings.samples_per_prompt)
    self._problems.grade(result.rollouts, indices)
    return Minibatch(result.rollouts, result.sample_s, wait_s)

  def _indices(self, update: int) -> np.ndarray:
    return self._stream.indices(self._schedule.position(update), self._schedule.prompts)

  def _order(self, update: int) -> None:
    position = self._schedule.position(update)
    self._sampler.put(
      Order(
        order_id=update,
        weight_version=self._schedule.weight_version(update),
        seed=self._seed,
        stream=TRAIN_STREAM,
        prompts=self._problems.prompts(self._indices(update)),
        group_ids=range(position, position + self._schedule.prompts),
        settings=self._settings,
      )
    )
