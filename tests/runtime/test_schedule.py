"""The schedules as one state machine, played against a learner and samplers of any speed."""

import dataclasses
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vespo_jax.runtime import schedule as schedule_lib
from vespo_jax.runtime.schedule import Schedule

UPDATES = 24


@st.composite
def schedules(draw, **fixed):
  every = draw(st.integers(1, 6))
  staleness = draw(st.integers(every - 1, every + 8))
  return Schedule(prompts=4, max_staleness=staleness, publish_every=every, **fixed)


def play(schedule, random, max_new_tokens=7, start=0):
  """A run of `schedule`, learner and sampler moving in random order.

  Yields (update, versions that sampled its tokens); fails if neither can move.
  """
  version, ordered, queue, ready = start, start, [], {}
  while version < UPDATES:
    while ordered < UPDATES and schedule.may_order(ordered, version):
      queue.append((ordered, schedule.plan(ordered, max_new_tokens), []))
      ordered += 1
    moves = []
    if queue:
      update, plan, sampled = queue[0]
      newest = schedule.published(version)
      if not plan or plan[len(sampled)][1] <= newest:
        moves.append("sample")
    if version in ready:
      moves.append("train")
    assert moves, "deadlock"
    if random.choice(moves) == "sample":
      wanted = plan[len(sampled)][1] if plan else newest
      oldest_kept = newest - (schedule.versions_kept - 1) * schedule.publish_every
      assert wanted >= oldest_kept, "these weights are overwritten"
      sampled.append(wanted)
      if len(sampled) >= len(plan):
        ready[update] = queue.pop(0)[2]
    else:
      yield version, ready.pop(version)
      version += 1


@settings(max_examples=50)
@given(schedules(), st.booleans(), st.booleans(), st.randoms())
def test_any_interleaving_ends_within_the_bound(schedule, logical, in_flight, random):
  schedule = dataclasses.replace(schedule, logical=logical, in_flight=in_flight)
  trained = list(play(schedule, random))
  assert [update for update, _ in trained] == list(range(UPDATES))
  for update, versions in trained:
    assert schedule.may_train(update, versions)
    assert all(schedule.publishes(version) for version in versions)


@settings(max_examples=30)
@given(schedules(logical=True), st.booleans(), st.randoms(), st.randoms())
def test_the_logical_clock_does_not_know_who_is_fast(schedule, in_flight, random, other):
  schedule = dataclasses.replace(schedule, in_flight=in_flight)
  assert list(play(schedule, random)) == list(play(schedule, other))


@settings(max_examples=30)
@given(st.integers(1, 64), st.randoms())
def test_sync_is_the_index_in_the_rollout_batch(minibatches, random):
  schedule = Schedule.sync(minibatches, prompts=4)
  for update, versions in play(schedule, random):
    assert versions == [update - update % minibatches]
  assert schedule.versions_kept == 2
  for version in range(2 * minibatches):
    ahead = [u for u in range(3 * minibatches) if schedule.may_order(u, version)]
    assert ahead[-1] + 1 == (version // minibatches + 1) * minibatches  # the batch, never beyond


@settings(max_examples=5)
@given(st.randoms())
def test_async_without_staleness_is_sync_of_one_minibatch(random):
  on_policy = Schedule(prompts=4, max_staleness=0, logical=True)
  assert on_policy == Schedule.sync(1, prompts=4)
  assert list(play(on_policy, random)) == [(u, [u]) for u in range(UPDATES)]
  one_off = Schedule(prompts=4, max_staleness=1, logical=True)
  assert list(play(one_off, random)) == [(u, [max(u - 1, 0)]) for u in range(UPDATES)]


def test_in_flight_plans_share_the_response_among_the_versions_between():
  schedule = Schedule(prompts=4, max_staleness=3, logical=True, in_flight=True)
  assert schedule.plan(10, 9) == ((0, 7), (3, 8), (6, 9))
  assert schedule.plan(1, 9) == ((0, 0),)
  assert schedule.plan(10, 2) == ((0, 7), (1, 8))  # not more spans than tokens


@settings(max_examples=30)
@given(schedules(logical=True), st.booleans(), st.integers(0, UPDATES - 1), st.randoms())
def test_a_resumed_run_wants_the_weights_that_it_had(schedule, in_flight, start, random):
  """Stopped anywhere, also between two publications; none of them is older than those kept."""
  schedule = dataclasses.replace(schedule, in_flight=in_flight)
  assert list(play(schedule, random))[start:] == list(play(schedule, random, start=start))


def test_too_old_and_from_the_future_is_refused():
  schedule = Schedule(prompts=4, max_staleness=2)
  assert schedule.may_train(5, [3, 4, 5])
  assert not schedule.may_train(5, [2, 5])
  assert not schedule.may_train(5, [6])
  with pytest.raises(ValueError, match="published every 4 updates"):
    Schedule(prompts=1, max_staleness=2, publish_every=4)


@given(st.integers(1, 16), st.integers(1, 40), st.integers(1, 200))
def test_due_at_the_first_publication_after_each_multiple(minibatches, every, updates):
  schedule = Schedule.sync(minibatches, 1)
  due = {update for update in range(updates + 1) if schedule.due(every, update)}
  expected = {
    -(-multiple // minibatches) * minibatches for multiple in range(every, updates + 1, every)
  }
  assert due == {update for update in expected if update <= updates}
  assert not any(schedule.due(0, update) for update in range(updates))


def sequence(*versions):
  return types.SimpleNamespace(weight_versions=np.array(versions, np.int32))


def test_a_recorded_schedule_is_replayed(tmp_path):
  path = tmp_path / "schedule.jsonl"
  wall = [
    [sequence(0, 0), sequence(0)],
    [sequence(0, 0, 1), sequence(0), sequence(0, 0, 1, 1)],
    [sequence(), sequence(2)],
  ]
  for update, rollouts in enumerate(wall):
    schedule_lib.record(path, update, schedule_lib.plan_of(rollouts))
  plans = schedule_lib.read_recorded(path)
  assert plans == {0: ((0, 0),), 1: ((0, 0), (2, 1)), 2: ((0, 2),)}
  replayed = Schedule(prompts=4, max_staleness=2, in_flight=True, recorded=plans)
  assert [replayed.plan(update, 9) for update in range(3)] == list(plans.values())
  assert replayed.versions_kept == 4
  with pytest.raises(ValueError, match="no plan for update 3"):
    replayed.plan(3, 9)


@pytest.mark.parametrize(
  "plan,told",
  [
    (((0, 1),), r"versions \[1\] .* every 2 updates publish some, at most 3 updates old"),
    (((0, 7),), r"versions \[7\]"),
    (((0, 10),), r"versions \[10\]"),  # published after update 8 was made
    (((0, 4),), r"versions \[4\]"),
    (((0, 6), (5, 8)), r"versions \[6, 8\] .* a response has one"),
  ],
)
def test_a_recorded_plan_that_this_schedule_cannot_follow_is_refused(plan, told):
  Schedule(prompts=4, max_staleness=3, publish_every=2, recorded={8: ((0, 6),), 9: ((0, 8),)})
  with pytest.raises(ValueError, match=f"update 8 was sampled with {told}"):
    Schedule(prompts=4, max_staleness=3, publish_every=2, recorded={8: plan})
  Schedule(
    prompts=4, max_staleness=3, publish_every=2, in_flight=True, recorded={8: ((0, 6), (5, 8))}
  )


def test_a_schedule_that_cannot_be_replayed_is_refused(tmp_path):
  path = tmp_path / "schedule.jsonl"
  mixed = schedule_lib.plan_of([sequence(0, 0), sequence(1, 1)])
  assert mixed is None
  schedule_lib.record(path, 3, mixed)
  with pytest.raises(ValueError, match="update 3 were sampled with different weights"):
    schedule_lib.read_recorded(path)
  for line in (
    '{"update": 1}',
    "[" * 100_000,
    '{"update": [], "plan": [[0, 1]]}',
    '{"update": 1, "plan": [0]}',
    '{"update": 1, "plan": [[0, Infinity]]}',
    '{"update": 1, "plan": [[0, 2]]}',  # of weights from the future, or of none
    '{"update": 1, "plan": [[0, -1]]}',
    '{"update": 1, "plan": [[1, 0]]}',  # from a token that is not the first, or backwards
    '{"update": 1, "plan": [[0, 0], [5, 1], [3, 0]]}',
  ):
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1: not a recorded plan"):
      schedule_lib.read_recorded(path)
