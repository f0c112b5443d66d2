"""What is ordered from the samplers, when, and against which problems it is graded."""

import numpy as np
import pytest

from vespo_jax.learner.intake import TRAIN_STREAM, Intake
from vespo_jax.runtime import Preempted, Snapshot
from vespo_jax.runtime.schedule import Schedule
from vespo_jax.sampler import Result, Settings
from vespo_jax.tasks import PromptStream


class Problems:
  examples = range(10)

  def prompts(self, indices):
    return [[100 + int(i)] for i in indices]

  def grade(self, rollouts, indices):
    self.graded = [(rollout, 100 + int(i)) for rollout, i in zip(rollouts, indices, strict=True)]


class Sampler:
  """Notes its orders; the rollouts of an order are the prompts they answer."""

  def __init__(self):
    self.orders, self.taken, self.interrupted_at = [], 0, None

  def snapshot(self, newest):
    return Snapshot([Result(99, [], 0.5)], {})

  def put(self, order):
    self.orders.append(order)

  def get(self, timeout_s, order_id):
    if order_id == self.interrupted_at:
      raise Preempted
    (order,) = [order for order in self.orders if order.order_id == order_id]
    self.taken += 1
    rollouts = [p for (p,) in order.prompts for _ in range(order.settings.samples_per_prompt)]
    return Result(order_id, rollouts, 0.5 + order_id % 2, wait_s=0.25, worker=order_id % 2)

  def health(self):
    return {"pending": len(self.orders) - self.taken}


def run(schedule, updates, start=0, **kwargs):
  sampler, problems = Sampler(), Problems()
  settings = Settings(max_new_tokens=4, samples_per_prompt=2)
  intake = Intake(
    sampler, problems, schedule, settings, seed=7, updates=updates, timeout_s=1.0, **kwargs
  )
  minibatches, ahead = [], []
  for update in range(start, updates):
    intake.order(update)
    minibatches.append(intake.get(update))
    ahead.append(len(sampler.orders) // kwargs.get("parts", 1) - (update - start) - 1)
    assert [prompt for _, prompt in problems.graded] == minibatches[-1].rollouts
    assert all(answered == prompt for answered, prompt in problems.graded)
  return sampler.orders, minibatches, ahead


def test_sync_orders_a_rollout_batch_and_ends_with_the_run():
  orders, minibatches, ahead = run(Schedule.sync(minibatches=3, prompts=4), updates=5)
  assert ahead == [2, 1, 0, 1, 0]  # never beyond a rollout batch, or beyond the run
  assert [order.plan for order in orders] == [((0, v),) for v in (0, 0, 0, 3, 3)]
  assert [order.weight_version for order in orders] == [0, 0, 0, 3, 3]
  assert {(order.seed, order.stream) for order in orders} == {(7, TRAIN_STREAM)}
  groups = [group for order in orders for group in order.group_ids]
  assert groups == list(range(20))  # no two updates share a sampling key
  asked = [prompt - 100 for order in orders for (prompt,) in order.prompts]
  np.testing.assert_array_equal(asked, PromptStream(10, 7).indices(0, 20))
  assert [m.queue_depth for m in minibatches] == [3, 2, 1, 2, 1]


def test_async_runs_ahead_by_the_staleness_allowed():
  orders, _, ahead = run(Schedule(prompts=4, max_staleness=2), updates=6)
  assert ahead == [2, 2, 2, 2, 1, 0]
  assert [order.plan for order in orders] == [()] * 6
  assert [order.weight_version for order in orders] == [0, 0, 0, 1, 2, 3]
  orders, _, _ = run(Schedule(prompts=4, max_staleness=2, logical=True), updates=6)
  assert [order.plan for order in orders] == [((0, v),) for v in (0, 0, 0, 1, 2, 3)]


def test_several_samplers_share_a_minibatch():
  schedule = Schedule.sync(minibatches=2, prompts=5)
  whole, alone, _ = run(schedule, updates=4)
  orders, shared, _ = run(schedule, updates=4, parts=2)
  assert [order.order_id for order in orders] == list(range(8))
  assert [len(order.prompts) for order in orders] == [2, 3] * 4
  assert [m.rollouts for m in shared] == [m.rollouts for m in alone]
  groups = [[g for order in some for g in order.group_ids] for some in (orders, whole)]
  assert groups[0] == groups[1]
  minibatch = shared[0]
  assert minibatch.workers == [0] * 4 + [1] * 6
  assert (minibatch.sample_s, minibatch.sampler_wait_s) == (1.5, 0.25)


def test_a_resumed_run_goes_on_with_the_same_orders():
  for schedule in (Schedule.sync(2, 3), Schedule(3, max_staleness=0, logical=True)):
    whole, _, _ = run(schedule, updates=6)
    resumed, _, _ = run(schedule, updates=6, start=4)
    assert whole[4:] == resumed


def test_a_resumed_run_asks_what_it_had_not_got_yet():
  schedule = Schedule(prompts=2, max_staleness=3, publish_every=2, logical=True)
  whole, minibatches, _ = run(schedule, updates=12)
  finished = [
    Result(i, [p for (p,) in whole[i].prompts for _ in range(2)], 0.5, worker=1) for i in (7, 9)
  ]
  orders, resumed, _ = run(schedule, updates=12, start=7, finished=finished)
  assert orders == [order for order in whole[7:] if order.order_id not in (7, 9)]
  assert [m.rollouts for m in resumed] == [m.rollouts for m in minibatches[7:]]
  assert resumed[0].workers == [1] * 4


def test_what_is_saved_is_what_was_not_trained_on():
  sampler, problems, schedule = Sampler(), Problems(), Schedule.sync(minibatches=2, prompts=4)
  settings = Settings(max_new_tokens=4, samples_per_prompt=2)
  intake = Intake(sampler, problems, schedule, settings, seed=7, updates=4, timeout_s=1.0, parts=2)
  intake.order(0)
  intake.get(0)
  sampler.interrupted_at = 3  # the second part of the next minibatch
  with pytest.raises(Preempted):
    intake.get(1)
  assert [result.order_id for result in intake.snapshot(newest=True).results] == [2, 99]
