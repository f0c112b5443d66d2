"""What is ordered from the samplers, when, and against which problems it is graded."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vespo_jax.learner.groups import NoSignal, Refill
from vespo_jax.learner.intake import TRAIN_STREAM, Intake
from vespo_jax.runtime import Preempted, Snapshot
from vespo_jax.runtime.schedule import Schedule
from vespo_jax.sampler import Result, Settings
from vespo_jax.tasks import Curricula, Curriculum, PromptStream
from vespo_jax.types import Rollout

R = 2
SIZE = 10


def answer(prompt, group_id, sample, version):
  """A sampled sequence, a function of what a real one is a function of."""
  return Rollout(
    prompt_ids=np.array(prompt, np.int32),
    response_ids=np.array([group_id, sample, version], np.int32),
    behaviour_logprobs=np.zeros(3, np.float32),
    plain_logprobs=np.zeros(3, np.float32),
    weight_versions=np.full(3, version, np.int32),
    finish="stop",
    group_id=group_id,
    sample_seed=group_id * R + sample,
  )


def is_correct(rollout):
  """Some groups are mixed, some solved, some failed: whichever the group and the weights say."""
  group, sample, version = rollout.response_ids.tolist()
  kind = np.random.default_rng((group, version)).integers(3)
  return kind == 0 or (kind == 1 and sample == 0)


class Problems:
  examples, names, own_reward = range(SIZE), ("toy",), False

  def prompts(self, indices):
    return [[100 + int(i)] for i in indices]

  def grade(self, rollouts, indices):
    for rollout, index in zip(rollouts, indices, strict=True):
      assert rollout.prompt_ids.tolist() == [100 + int(index)]
      rollout.example_id, rollout.task = int(index), "toy"
      rollout.reward = float(is_correct(rollout))
      rollout.reward_status = "ok" if rollout.reward else "wrong"


class Sampler:
  """Notes its orders, and answers each when it is asked for."""

  def __init__(self):
    self.orders, self.pending, self.calls, self.interrupted_at = [], {}, 0, None

  def snapshot(self, newest, versions=()):
    return Snapshot([], {version: {} for version in versions})

  def put(self, order):
    assert order.order_id not in self.pending
    self.orders.append(order)
    self.pending[order.order_id] = order

  def get(self, timeout_s, order_id):
    self.calls += 1
    if self.calls == self.interrupted_at:
      raise Preempted
    order, version = self.pending.pop(order_id), None
    version = order.plan[0][1] if order.plan else order.weight_version
    rollouts = [
      answer(prompt, group, sample, version)
      for prompt, group in zip(order.prompts, order.group_ids, strict=True)
      for sample in range(R)
    ]
    return Result(order_id, rollouts, 0.5 + order_id % 2, wait_s=0.25, worker=order_id % 2)

  def health(self):
    return {"pending": len(self.pending)}


def make(schedule, updates=12, size=SIZE, floor=1.0, **kwargs):
  """An intake on fakes: (sampler, curricula, intake)."""
  sampler, curricula, stream = Sampler(), None, PromptStream(size, 7)
  if floor < 1:
    stream = Curriculum(size, 7, floor=floor, decay=0.5)
    curricula = Curricula({"toy": stream})
  problems = Problems()
  problems.examples = range(size)
  intake = Intake(
    sampler,
    problems,
    stream,
    schedule,
    Settings(max_new_tokens=4, samples_per_prompt=R),
    seed=7,
    updates=updates,
    timeout_s=1.0,
    curricula=curricula,
    **kwargs,
  )
  return sampler, curricula, intake


def run(schedule, updates, **kwargs):
  sampler, _, intake = make(schedule, updates, **kwargs)
  minibatches, ahead = [], []
  for update in range(updates):
    intake.order(update)
    minibatches.append(intake.get(update))
    ahead.append(len(sampler.orders) // kwargs.get("parts", 1) - update - 1)
  return sampler.orders, minibatches, ahead


def asked(orders):
  return [prompt - 100 for order in orders for (prompt,) in order.prompts]


def groups(orders):
  return [group for order in orders for group in order.group_ids]


def bits(minibatch):
  """What is trained on, with its grades and workers."""
  rows = [
    {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in dataclasses.asdict(r).items()}
    for r in minibatch.rollouts
  ]
  return rows, minibatch.workers, minibatch.metrics, minibatch.sampled_tokens


def test_sync_orders_a_rollout_batch_and_ends_with_the_run():
  orders, minibatches, ahead = run(Schedule.sync(minibatches=3, prompts=4), updates=5)
  assert ahead == [2, 1, 0, 1, 0]  # never beyond a rollout batch, or beyond the run
  assert [order.plan for order in orders] == [((0, v),) for v in (0, 0, 0, 3, 3)]
  assert [order.weight_version for order in orders] == [0, 0, 0, 3, 3]
  assert {(order.seed, order.stream) for order in orders} == {(7, TRAIN_STREAM)}
  assert groups(orders) == list(range(20))  # no two updates share a sampling key
  np.testing.assert_array_equal(asked(orders), PromptStream(SIZE, 7).indices(0, 20))
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
  assert [order.order_id for order in orders] == [0, 2, 5, 7, 10, 12, 15, 17]
  assert [len(order.prompts) for order in orders] == [2, 3] * 4
  assert [bits(m)[0] for m in shared] == [bits(m)[0] for m in alone]
  assert groups(orders) == groups(whole)
  assert shared[1].workers == [1] * 4 + [1] * 6 and shared[0].workers == [0] * 10
  assert (shared[1].sample_s, shared[1].sampler_wait_s) == (1.5, 0.25)
  assert {order.longest_prompt for order in orders} == {1}


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 12))
@settings(max_examples=40)
def test_no_prompt_is_lost_or_doubled_at_the_end_of_an_epoch(prompts, size, updates):
  orders, minibatches, _ = run(Schedule.sync(3, prompts), updates, size=size)
  trained = [r.example_id for m in minibatches for r in m.rollouts[::R]]
  assert trained == asked(orders) and len(trained) == prompts * updates
  for start in range(0, len(trained) - size + 1, size):
    assert sorted(trained[start : start + size]) == list(range(size))


REFILL = Refill(max_rounds=40, oversampling=1.5)
RUNS = {
  "sync": (Schedule.sync(3, 4), {}),
  "sync, filtered": (Schedule.sync(3, 4), {"refill": REFILL}),
  "sync, all of it": (Schedule.sync(3, 4), {"refill": REFILL, "floor": 0.1, "parts": 2}),
  "async, all of it": (
    Schedule(4, max_staleness=3, publish_every=2, logical=True),
    {"refill": REFILL, "floor": 0.1, "parts": 3},
  ),
  "one step off": (Schedule(2, max_staleness=1, logical=True), {"floor": 0.3}),
  "wall": (Schedule(3, max_staleness=2), {"refill": REFILL}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_bit(name):
  """Also in the middle of a refill: at every one of its waits, once, and with some of the orders
  under way finished, which a checkpoint keeps."""
  (schedule, kwargs), updates = RUNS[name], 9
  whole, curricula, intake = make(schedule, updates, **kwargs)
  minibatches = []
  for update in range(updates):
    intake.order(update)
    minibatches.append(bits(intake.get(update)))
  refills = 0
  for stop in range(1, whole.calls + 1):
    sampler, first, intake = make(schedule, updates, **kwargs)
    sampler.interrupted_at, taken = stop, []
    with pytest.raises(Preempted):
      for update in range(updates):
        intake.order(update)
        taken.append(bits(intake.get(update)))
    saved = json.loads(json.dumps(intake.state()))
    rates = copy.deepcopy(intake.rates())
    finished = list(intake.snapshot(True, len(taken)).results)
    refills += len(saved["rounds"][str(len(taken))]) > 1
    for order_id in list(sampler.pending)[::2]:  # a sampler had finished these
      finished.append(sampler.get(1.0, order_id))
    had = {result.order_id for result in finished}
    again, second, intake = make(schedule, updates, finished=finished, saved=saved, **kwargs)
    if second is not None:
      second.restore(rates)
    for update in range(len(taken), updates):
      intake.order(update)
      taken.append(bits(intake.get(update)))
    assert taken == minibatches
    ordered = {order.order_id: order for order in whole.orders}
    assert all(ordered[order.order_id] == order for order in again.orders)
    assert not had & {order.order_id for order in again.orders}
    if second is not None:
      np.testing.assert_array_equal(second.rates["toy"], curricula.rates["toy"])
      assert first.rates["toy"].tobytes() == rates["toy"].tobytes()
  assert bool(refills) == ("refill" in kwargs)


def test_dropped_groups_are_those_of_equal_rewards_and_others_come_in_their_place():
  schedule = Schedule.sync(minibatches=2, prompts=4)
  orders, minibatches, _ = run(schedule, updates=6, refill=Refill(max_rounds=40))
  assert groups(orders) == list(range(len(groups(orders))))  # consumed, each once
  versions = {g: order.plan[0][1] for order in orders for g in order.group_ids}
  for update, minibatch in enumerate(minibatches):
    assert len(minibatch.rollouts) == 4 * R
    rewards = np.array([r.reward for r in minibatch.rollouts]).reshape(-1, R)
    assert (rewards.min(axis=1) < rewards.max(axis=1)).all()
    assert {versions[r.group_id] for r in minibatch.rollouts} == {update - update % 2}
    ids = [r.group_id for r in minibatch.rollouts[::R]]
    assert ids == sorted(ids)
  kept = {r.group_id for m in minibatches for r in m.rollouts}
  for group, version in versions.items():
    outcomes = {is_correct(answer([0], group, sample, version)) for sample in range(R)}
    assert (group in kept) == (len(outcomes) == 2)
  assert sum(m.metrics["group/dropped"] for m in minibatches) == len(versions) - len(kept)
  assert sum(m.sampled_tokens for m in minibatches) == 3 * R * len(versions)  # all of it
  assert max(m.metrics["group/rounds"] for m in minibatches) > 2


def test_refills_of_one_update_are_not_waited_for_by_what_is_ordered_next():
  """The wall clock too: an update takes the positions that are next when it knows it needs them."""
  schedule = Schedule(prompts=3, max_staleness=2)
  orders, minibatches, _ = run(schedule, updates=8, refill=Refill(max_rounds=40))
  assert groups(orders) == list(range(len(groups(orders))))
  assert all(order.weight_version <= 7 for order in orders)
  trained = [r.group_id for m in minibatches for r in m.rollouts[::R]]
  assert len(set(trained)) == len(trained) == 24 and trained != sorted(trained)


def test_oversampling_asks_more_and_drops_what_is_over():
  schedule, refill = Schedule.sync(1, prompts=4), Refill(max_rounds=40, oversampling=3.0)
  orders, minibatches, _ = run(schedule, updates=8, refill=refill)
  assert len(orders[0].prompts) == 12
  for m in minibatches:
    assert len(m.rollouts) == 4 * R
    total = 4 + m.metrics["group/dropped"] + m.metrics["group/surplus"]
    assert m.sampled_tokens == 3 * R * total
  assert sum(m.metrics["group/surplus"] for m in minibatches) > 0
  _, exact, _ = run(schedule, updates=8, refill=Refill(max_rounds=40))
  mean = lambda taken: np.mean([m.metrics["group/rounds"] for m in taken])
  assert mean(minibatches) < mean(exact)
  assert sum(m.metrics["group/surplus"] for m in exact) == 0


def test_at_the_bound_it_says_so_and_goes_on_with_a_higher_one():
  schedule = Schedule.sync(2, 4)
  _, whole, _ = run(schedule, updates=4, refill=Refill(max_rounds=40))
  _, _, intake = make(schedule, 4, refill=Refill(max_rounds=2))
  taken = []
  with pytest.raises(NoSignal, match=r"lacks \d of 4 groups after 2 rounds, batch.dynamic.max_"):
    for update in range(4):
      intake.order(update)
      taken.append(intake.get(update))
  finished, saved = intake.snapshot(False, len(taken)).results, intake.state()
  refill = Refill(max_rounds=40)
  _, _, intake = make(schedule, 4, refill=refill, finished=finished, saved=saved)
  for update in range(len(taken), 4):
    intake.order(update)
    taken.append(intake.get(update))
  assert [bits(m) for m in taken] == [bits(m) for m in whole]


def test_the_weights_a_refill_will_need_are_saved():
  schedule = Schedule(4, max_staleness=3, publish_every=1, logical=True)
  for refill, versions in ((None, set()), (REFILL, {1, 2, 3, 4})):
    _, _, intake = make(schedule, refill=refill)
    for update in range(4):
      intake.order(update)
      intake.get(update)
    intake.order(4)
    assert set(intake.snapshot(False, 4).weights) == versions


@pytest.mark.parametrize("in_flight", [False, True])
def test_the_weights_that_a_longer_run_will_need_are_saved(in_flight):
  """At its end; while it has updates left to order, only theirs, which are with the orders."""
  schedule = Schedule(4, max_staleness=5, publish_every=2, logical=True, in_flight=in_flight)
  _, _, intake = make(schedule, updates=6)
  saved = []
  for update in range(6):
    intake.order(update)
    intake.get(update)
    saved.append(set(intake.snapshot(False, update + 1).weights))
  assert saved[0] == set()
  wanted = {version for update in range(6, 12) for _, version in schedule.plan(update, 4)}
  assert {2, 4, 6} <= saved[-1] == wanted


def test_a_curriculum_learns_from_what_was_trained_on_in_order():
  """What is ordered ahead knows no more than the updates before its ordering."""
  schedule = Schedule.sync(2, 3)
  sampler, curricula, intake = make(schedule, 6, floor=0.2)
  known = [curricula.rates["toy"]]
  for update in range(6):
    intake.order(update)
    minibatch = intake.get(update)
    expected = known[-1].copy()
    for group in zip(*[iter(minibatch.rollouts)] * R, strict=True):
      index = group[0].example_id
      rate = np.mean([r.reward for r in group])
      expected[index] = np.float32(0.5) * expected[index] + np.float32(0.5 * rate)
    np.testing.assert_array_equal(curricula.rates["toy"], expected)
    known.append(expected)
  for update, order in enumerate(sampler.orders):
    stream = Curriculum(SIZE, 7, floor=0.2, decay=0.5)
    stream.rates[:] = known[update - update % 2]
    assert asked([order]) == stream.indices(3 * update, 3).tolist()


def test_what_is_saved_is_what_was_not_trained_on():
  sampler, _, intake = make(Schedule.sync(minibatches=2, prompts=4), updates=4, parts=2)
  intake.order(0)
  intake.get(0)
  sampler.interrupted_at = 4  # the second part of the next minibatch
  with pytest.raises(Preempted):
    intake.get(1)
  assert [result.order_id for result in intake.snapshot(True, 1).results] == [4]
