"""Where minibatches come from: prompts out to the sampler in order, graded rollouts back."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vespo_jax.learner.groups import NoSignal, Refill, Selection, success_rates
from vespo_jax.learner.ledger import Ledger, Portion
from vespo_jax.learner.shaping import Shaping
from vespo_jax.runtime import Sampler, Schedule, SharedGrader, Snapshot
from vespo_jax.sampler import Order, Result, Settings
from vespo_jax.tasks import Curricula, Example, Grader, Split, Stream, Task
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Plan, Rollout, TokenIds

TRAIN_STREAM, EVALUATION_STREAM = 0, 1  # what sampling keys are folded with


class Examples(Protocol):
  """Random access to problems."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Example: ...


class ProblemSet(Protocol):
  """Numbered problems and everything needed to ask and to grade them."""

  @property
  def names(self) -> Sequence[str]:
    """Of the tasks they are from, as graded rollouts have them."""
    ...

  @property
  def examples(self) -> Examples:
    """By number."""
    ...

  @property
  def tokenizer(self) -> Tokenizer:
    """Of prompts and answers."""
    ...

  @property
  def own_reward(self) -> bool:
    """Whether a function of the user's own scores."""
    ...

  def prompts(self, indices: Sequence[int] | np.ndarray) -> list[list[int]]:
    """Prompt ids of the examples at `indices`."""
    ...

  def solutions(self, indices: Sequence[int] | np.ndarray) -> list[tuple[str, str]]:
    """The question of each example at `indices`, and a response to imitate, or ""."""
    ...

  def grade(self, rollouts: Sequence[Rollout], indices: Sequence[int] | np.ndarray) -> None:
    """Sets task, example, reward and status of rollouts that answer `examples[indices]`."""
    ...

  def answer(self, rollout: Rollout) -> str:
    """A correct answer to what a graded rollout answers, or ""."""
    ...


def check_reward(problems: ProblemSet, rollouts: Sequence[Rollout]) -> None:
  """Raises OSError if a reward of the user's own has raised for all of these graded rollouts, which
  should be all there are of a minibatch or an evaluation."""
  statuses = {rollout.reward_status for rollout in rollouts}
  if problems.own_reward and statuses == {"error"}:
    raise OSError(
      f"task.reward fails on all of {len(rollouts)} answers; what it raised stands above"
    )


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Problems:
  """A task's problems and everything needed to ask and to grade them.

  Attributes:
    shaping: what is paid for beside being correct; None: nothing.
    max_failures: the fraction of answers graders may fail on (timeout, error) before `say` hears.
    own_reward: whether a function of the user's own scores.
  """

  task: Task
  examples: Split
  tokenizer: Tokenizer
  grader: Grader | SharedGrader
  shaping: Shaping | None = None
  max_failures: float = 1.0
  own_reward: bool = False
  say: Callable[[str], None] = _say

  @property
  def names(self) -> tuple[str, ...]:
    """Of the task."""
    return (self.task.name,)

  def prompts(self, indices: Sequence[int] | np.ndarray) -> list[list[int]]:
    """Prompt ids of the examples at `indices`."""
    return [self.tokenizer.encode_prompt(self.task.prompt(self.examples[int(i)])) for i in indices]

  def solutions(self, indices: Sequence[int] | np.ndarray) -> list[tuple[str, str]]:
    """The question of each example at `indices`, and a response to imitate, or ""."""
    examples = [self.examples[int(i)] for i in indices]
    return [(self.task.prompt(example), self.task.solution(example)) for example in examples]

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

  def answer(self, rollout: Rollout) -> str:
    """See `ProblemSet.answer`."""
    return self.examples[rollout.example_id].answer


@dataclasses.dataclass
class Minibatch:
  """The graded rollouts of one update, prompt-major, and where the time went.

  Attributes:
    rollouts: of all groups.
    workers: the sampler that made each rollout.
    sample_s: seconds of sampling, of the sampler that took longest, summed over rounds.
    metrics: what is said of groups and tasks, dropped groups included.
    sampled_tokens: of all responses, dropped ones included.
    waits: when the learner began to wait for samples, and when it had them, on the clock of
      `time.perf_counter`, round by round.
    sampler_wait_s: seconds a sampler had nothing to do before it began, the mean over samplers.
    queue_depth: orders under way or waiting when this minibatch was taken.
    replayed: whether another run sampled them, whose weights of a version are not this run's.
  """

  rollouts: list[Rollout]
  workers: list[int]
  sample_s: float
  metrics: Mapping[str, float]
  sampled_tokens: int
  waits: Sequence[tuple[float, float]] = ()
  sampler_wait_s: float = 0.0
  queue_depth: int = 0
  replayed: bool = False


class Intake:
  """Orders the minibatches of a run as the schedule allows, and collects them in order.

  What an update trains on are the next prompts of the stream when it is ordered; their positions
  are their group ids. They are sampled by weights that the schedule chose, and ordered in `parts`
  equal pieces (the last may be smaller), so that several samplers share them.

  With `refill`, groups without a signal are dropped once all of a minibatch is there, and the next
  prompts of the stream are ordered in their place, to be sampled by the same weights. Everything is
  decided by the learner, between two updates and in their order: where orders say which weights
  sample them, what is asked is a function of the seed.

  Args:
    sampler: of the run.
    problems: the training problems.
    stream: their order.
    schedule: when to order, and which version samples what.
    settings: how to sample.
    seed: of the run.
    updates: of the run; no order goes beyond them.
    timeout_s: the longest wait for one order.
    parts: orders of a round.
    refill: None to train on every group.
    curricula: of the stream, to be told how often prompts were solved; None if there are none.
    longest_prompt: tokens of the longest prompt that the sampler is asked beside these.
    finished: results that a run before this one had and did not train on.
    saved: `state` of that run.
  """

  def __init__(
    self,
    sampler: Sampler,
    problems: ProblemSet,
    stream: Stream,
    schedule: Schedule,
    settings: Settings,
    *,
    seed: int,
    updates: int,
    timeout_s: float,
    parts: int = 1,
    refill: Refill | None = None,
    curricula: Curricula | None = None,
    longest_prompt: int = 0,
    finished: Sequence[Result] = (),
    saved: Mapping[str, Any] | None = None,
  ):
    self._sampler, self._problems, self._schedule = sampler, problems, schedule
    self._settings, self._seed, self._updates = settings, seed, updates
    self._timeout_s, self._parts, self._refill = timeout_s, parts, refill
    self._curricula = curricula
    self._ledger = Ledger(stream, longest_prompt, saved)
    self._ordered = -1  # the next update to order, once it is known
    self._finished = {result.order_id: result for result in finished}

  def order(self, version: int) -> None:
    """Places the orders that are allowed once `version` updates are committed and, if the schedule
    publishes it, published."""
    if self._ordered < 0:
      for update in self._ledger.open():  # what a run before this one had ordered
        for portion in self._ledger.rounds(update):
          self._put(update, portion, self._problems.prompts(portion.indices))
      self._ordered = version + len(self._ledger.open())
    while self._ordered < self._updates and self._schedule.may_order(self._ordered, version):
      prompts = self._schedule.prompts
      self._ask(self._ordered, self._refill.prompts(prompts) if self._refill else prompts)
      self._ordered += 1

  def get(self, update: int) -> Minibatch:
    """The minibatch of `update`, which must have been ordered.

    Raises:
      NoSignal: if the last round leaves it without enough groups.
      SamplersFailed, ChildDied, TimeoutError, Preempted: if it does not come, or cannot be graded.
      OSError: as `check_reward`.
    """
    queue_depth = self._sampler.health()["pending"]
    samples = self._settings.samples_per_prompt
    selection = Selection(self._schedule.prompts, samples, everything=self._refill is None)
    portions: list[Portion] = []
    results: list[Result] = []
    waits, sample_s = [], 0.0
    while not portions or selection.missing:
      portion = self._portion(update, selection)
      started = time.perf_counter()
      came = [self._get(piece.position) for piece in self._pieces(portion)]
      waits.append((started, time.perf_counter()))
      sample_s += max(result.sample_s for result in came)
      rollouts = [rollout for result in came for rollout in result.rollouts]
      self._problems.grade(rollouts, np.repeat(portion.indices, samples))
      selection.add(rollouts, [result.worker for result in came for _ in result.rollouts])
      check_reward(self._problems, selection.asked)
      portions.append(portion)
      results += came
    for result in results:  # only now: if waiting for a later one is interrupted, none is lost
      del self._finished[result.order_id]
    self._ledger.close(update)
    metrics = group_metrics(selection, self._problems)
    if self._curricula is not None:
      indices = [index for portion in portions for index in portion.indices]
      self._curricula.measure(indices, success_rates(selection.asked, samples).tolist())
      metrics["curriculum/success_mean"] = self._curricula.mean
    kept, workers = selection.kept()
    return Minibatch(
      kept,
      workers,
      sample_s,
      metrics=metrics,
      sampled_tokens=sum(len(rollout.response_ids) for rollout in selection.asked),
      waits=waits,
      sampler_wait_s=sum(result.wait_s for result in results) / len(results),
      queue_depth=queue_depth,
    )

  def snapshot(self, newest: bool, version: int) -> Snapshot:
    """What is to be saved once `version` updates are committed, besides what they made: see
    `Sampler.snapshot`. Weights that a longer run could order by now are among it."""
    updates = set(self._ledger.open()) if self._refill is not None else set()
    beyond, recorded = max(self._ordered, self._updates), self._schedule.recorded
    while self._schedule.may_order(beyond, version) and (recorded is None or beyond in recorded):
      updates.add(beyond)
      beyond += 1
    wanted = {needed for update in updates for _, needed in self._plan(update)}
    samplers = self._sampler.snapshot(newest, wanted)
    return dataclasses.replace(samplers, results=[*self._finished.values(), *samplers.results])

  def state(self) -> dict[str, Any]:
    """What of the stream was given out, as plain values for JSON."""
    return self._ledger.to_dict()

  def rates(self) -> dict[str, np.ndarray]:
    """The curricula's success rates; nothing if there are none."""
    return self._curricula.rates if self._curricula else {}

  def _portion(self, update: int, selection: Selection) -> Portion:
    """What the next round of an update asks. Raises NoSignal if there may be none."""
    asked = self._ledger.rounds(update)
    if selection.rounds < len(asked):
      return asked[selection.rounds]
    assert self._refill is not None, "without a filter no group is missing"
    if selection.rounds >= self._refill.max_rounds:
      groups = selection.metrics()
      raise NoSignal(
        f"update {update + 1} lacks {selection.missing} of {selection.groups} groups after "
        f"{selection.rounds} rounds, batch.dynamic.max_rounds={self._refill.max_rounds}: of "
        f"{len(selection.asked) // self._settings.samples_per_prompt} prompts "
        f"{groups['group/solved_fraction']:.0%} were solved by every sample and "
        f"{groups['group/failed_fraction']:.0%} by none. Train on other prompts, or give the same "
        "command with more rounds"
      )
    return self._ask(update, self._refill.prompts(selection.missing))

  def _ask(self, update: int, prompts: int) -> Portion:
    """Orders the next prompts of the stream."""
    indices = self._ledger.next(prompts)
    encoded = self._problems.prompts(indices)
    portion = self._ledger.give(update, indices, max(map(len, encoded)))
    self._put(update, portion, encoded)
    return portion

  def _put(self, update: int, portion: Portion, prompts: Sequence[TokenIds]) -> None:
    for piece in self._pieces(portion):
      if piece.position not in self._finished:
        start = piece.position - portion.position
        order = Order(
          order_id=piece.position,
          weight_version=self._schedule.oldest_version(update),
          seed=self._seed,
          stream=TRAIN_STREAM,
          prompts=prompts[start : start + len(piece.indices)],
          group_ids=piece.group_ids,
          settings=self._settings,
          plan=self._plan(update),
          longest_prompt=piece.longest_prompt,
        )
        self._sampler.put(order)

  def _pieces(self, portion: Portion) -> list[Portion]:
    """Its orders; the id of each is its position."""
    size = len(portion.indices)
    starts = np.unique(np.linspace(0, size, self._parts + 1, dtype=int)[:-1]).tolist()
    return [portion[start:end] for start, end in zip(starts, [*starts[1:], size], strict=True)]

  def _get(self, order_id: int) -> Result:
    if order_id not in self._finished:
      self._finished[order_id] = self._sampler.get(self._timeout_s, order_id)
    return self._finished[order_id]

  def _plan(self, update: int) -> Plan:
    return self._schedule.plan(update, self._settings.max_new_tokens)


def group_metrics(selection: Selection, problems: ProblemSet) -> dict[str, float]:
  """Of the groups, by task too where there are several."""
  several = len(problems.names) > 1
  return selection.metrics() | (selection.task_metrics() if several else {})
