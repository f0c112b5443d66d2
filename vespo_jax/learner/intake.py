"""Where minibatches come from: prompts out to the sampler in order, graded rollouts back."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from vespo_jax.learner.saved import SavedRollouts
from vespo_jax.learner.shaping import Shaping
from vespo_jax.runtime import Sampler, Schedule, Snapshot
from vespo_jax.sampler import Order, Result, Settings
from vespo_jax.tasks import Grader, PromptStream, Split, Task
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Rollout

TRAIN_STREAM, EVALUATION_STREAM = 0, 1  # what sampling keys are folded with


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Problems:
  """A task's problems and everything needed to ask and to grade them.

  Attributes:
    shaping: what is paid for beside being correct; None: nothing.
    max_failures: the fraction of answers graders may fail on (timeout, error) before `say` hears.
  """

  task: Task
  examples: Split
  tokenizer: Tokenizer
  grader: Grader
  shaping: Shaping | None = None
  max_failures: float = 1.0
  say: Callable[[str], None] = _say

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
    self._tell_failures(Counter(score.status for score in scores))
    if self.shaping is not None:
      for rollout, text in zip(rollouts, texts, strict=True):
        parts = self.shaping.parts(rollout.reward, text, len(rollout.response_ids))
        rollout.reward, rollout.reward_parts = self.shaping.total(parts), parts

  def _tell_failures(self, statuses: Counter[str]) -> None:
    failed = statuses["timeout"] + statuses["error"]
    if failed > self.max_failures * statuses.total():
      self.say(
        f"WARNING: the graders of {self.task.name} failed on {failed} of {statuses.total()} answers"
        f" ({statuses['timeout']} timeout, {statuses['error']} error), which count as 0 whatever "
        f"they are worth; task.max_grade_failures={self.max_failures:g}"
      )


@dataclasses.dataclass
class Minibatch:
  """The graded rollouts of one update, prompt-major, and where the time went.

  Attributes:
    rollouts: of all groups.
    workers: the sampler that made each rollout.
    sample_s: seconds of sampling, of the sampler that took longest.
    wait_s: seconds the learner waited.
    sampler_wait_s: seconds a sampler had nothing to do before it began, the mean over samplers.
    queue_depth: orders under way or waiting when this minibatch was taken.
  """

  rollouts: list[Rollout]
  workers: list[int]
  sample_s: float
  wait_s: float = 0.0
  sampler_wait_s: float = 0.0
  queue_depth: int = 0


class Intake:
  """Orders the minibatches of a run as the schedule allows, and collects them in order.

  What an update trains on is prompt `position(update) + i` of the stream, whose number is also its
  group id, sampled by weights that the schedule chose. A minibatch is ordered in `parts` equal
  pieces (the last may be smaller), so that several samplers share it.

  Args:
    sampler: of the run.
    problems: the training problems.
    schedule: when to order, and which version samples what.
    settings: how to sample.
    seed: of the run.
    updates: of the run; no order goes beyond them.
    timeout_s: the longest wait for one minibatch.
    parts: orders of a minibatch.
    finished: results that a run before this one had and did not train on.
  """

  def __init__(
    self,
    sampler: Sampler,
    problems: Problems,
    schedule: Schedule,
    settings: Settings,
    *,
    seed: int,
    updates: int,
    timeout_s: float,
    parts: int = 1,
    finished: Sequence[Result] = (),
  ):
    self._sampler, self._problems, self._schedule = sampler, problems, schedule
    self._settings, self._seed, self._updates = settings, seed, updates
    self._timeout_s = timeout_s
    self._stream = PromptStream(len(problems.examples), seed)
    self._starts = np.unique(np.linspace(0, schedule.prompts, parts + 1, dtype=int)[:-1]).tolist()
    self._ordered = -1  # the next update to order, once it is known
    self._finished = {result.order_id: result for result in finished}

  def order(self, version: int) -> None:
    """Places the orders that are allowed once `version` updates are committed and, if the schedule
    publishes it, published."""
    if self._ordered < 0:
      self._ordered = version
    while self._ordered < self._updates and self._schedule.may_order(self._ordered, version):
      for part in range(len(self._starts)):
        order = self._order(self._ordered, part)
        if order.order_id not in self._finished:
          self._sampler.put(order)
      self._ordered += 1

  def get(self, update: int) -> Minibatch:
    """The minibatch of `update`, which must have been ordered.

    Raises:
      SamplersFailed, ChildDied, TimeoutError, Preempted: if it does not come, or cannot be graded.
    """
    queue_depth = self._sampler.health()["pending"]
    started = time.perf_counter()
    parts = len(self._starts)
    results = [self._get(update * parts + part) for part in range(parts)]
    wait_s = time.perf_counter() - started
    for result in results:  # only now: if waiting for a later one is interrupted, none is lost
      del self._finished[result.order_id]
    rollouts = [rollout for result in results for rollout in result.rollouts]
    indices = np.repeat(self._indices(update), self._settings.samples_per_prompt)
    self._problems.grade(rollouts, indices)
    return Minibatch(
      rollouts,
      workers=[result.worker for result in results for _ in result.rollouts],
      sample_s=max(result.sample_s for result in results),
      wait_s=wait_s,
      sampler_wait_s=sum(result.wait_s for result in results) / len(results),
      queue_depth=queue_depth,
    )

  def snapshot(self, newest: bool) -> Snapshot:
    """What is to be saved between two updates, besides what they made: see `Sampler.snapshot`."""
    samplers = self._sampler.snapshot(newest)
    return dataclasses.replace(samplers, results=[*self._finished.values(), *samplers.results])

  def _get(self, order_id: int) -> Result:
    if order_id not in self._finished:
      self._finished[order_id] = self._sampler.get(self._timeout_s, order_id)
    return self._finished[order_id]

  def _indices(self, update: int) -> np.ndarray:
    return self._stream.indices(self._schedule.position(update), self._schedule.prompts)

  def _order(self, update: int, part: int) -> Order:
    schedule, tokens = self._schedule, self._settings.max_new_tokens
    start, *ends = [*self._starts[part : part + 2], schedule.prompts]
    position = schedule.position(update)
    return Order(
      order_id=update * len(self._starts) + part,
      weight_version=schedule.oldest_version(update),
      seed=self._seed,
      stream=TRAIN_STREAM,
      prompts=self._problems.prompts(self._indices(update)[start : ends[0]]),
      group_ids=range(position + start, position + ends[0]),
      settings=self._settings,
      plan=schedule.plan(update, tokens),
    )


class SavedIntake:
  """The minibatches that another run saved, in the place of an `Intake`: the sampler only
  evaluates."""

  def __init__(self, saved: SavedRollouts, sampler: Sampler):
    self._saved, self._sampler = saved, sampler

  def order(self, version: int) -> None:
    """Nothing is ordered."""

  def snapshot(self, newest: bool) -> Snapshot:
    """The newest weights, if they are wanted."""
    return self._sampler.snapshot(newest)

  def get(self, update: int) -> Minibatch:
    """The graded minibatch of `update`. Raises ValueError if its file cannot be trained on."""
    rollouts = self._saved.read(update + 1)
    return Minibatch(rollouts, workers=[0] * len(rollouts), sample_s=0.0)
