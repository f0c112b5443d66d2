"""What is ordered from the sampler, when, and against which problems it is graded."""

import numpy as np

from vespo_jax.learner.intake import TRAIN_STREAM, Intake
from vespo_jax.runtime import SyncSchedule
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
    self.orders, self.answered = [], 0

  def put(self, order):
    self.orders.append(order)

  def get(self, timeout_s):
    order = self.orders[self.answered]
    self.answered += 1
    rollouts = [p for (p,) in order.prompts for _ in range(order.settings.samples_per_prompt)]
    return Result(order.order_id, rollouts, 0.5)


def test_orders_are_a_function_of_the_update_and_end_with_batch_and_run():
  sampler, problems = Sampler(), Problems()
  settings = Settings(max_new_tokens=1, samples_per_prompt=2)
  schedule = SyncSchedule(minibatches=3, prompts=4)
  intake = Intake(sampler, problems, schedule, settings, seed=7, updates=5, timeout_s=1.0)
  ahead = []
  for update in range(5):
    minibatch = intake.get(update)
    ahead.append(len(sampler.orders) - update - 1)
    assert [prompt for _, prompt in problems.graded] == minibatch.rollouts
    assert all(answered == prompt for answered, prompt in problems.graded)
    assert minibatch.sample_s == 0.5
  assert ahead == [1, 1, 0, 1, 0]  # never beyond a rollout batch, or beyond the run
  assert [order.weight_version for order in sampler.orders] == [0, 0, 0, 3, 3]
  assert {(order.seed, order.stream) for order in sampler.orders} == {(7, TRAIN_STREAM)}
  groups = [group for order in sampler.orders for group in order.group_ids]
  assert groups == list(range(20))  # no two updates share a sampling key
  asked = [prompt - 100 for order in sampler.orders for (prompt,) in order.prompts]
  np.testing.assert_array_equal(asked, PromptStream(10, 7).indices(0, 20))


def test_a_resumed_run_goes_on_with_the_same_orders():
  orders = []
  for start in (0, 4):
    sampler = Sampler()
    settings, schedule = Settings(max_new_tokens=1), SyncSchedule(2, 3)
    intake = Intake(sampler, Problems(), schedule, settings, seed=0, updates=6, timeout_s=1.0)
    for update in range(start, 6):
      intake.get(update)
    orders.append(sampler.orders)
  assert orders[0][4:] == orders[1]
