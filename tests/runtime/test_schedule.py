from hypothesis import given
from hypothesis import strategies as st

from vespo_jax.runtime import SyncSchedule


@given(st.integers(1, 64), st.integers(1, 300), st.integers(0, 10_000))
def test_staleness_is_the_index_in_the_rollout_batch(minibatches, prompts, update):
  schedule = SyncSchedule(minibatches, prompts)
  lag = update - schedule.weight_version(update)
  assert lag == update % minibatches
  assert schedule.is_boundary(schedule.weight_version(update))
  assert schedule.is_boundary(update) == (lag == 0)


@given(st.integers(1, 64), st.integers(1, 300), st.integers(1, 200))
def test_every_prompt_position_is_used_once(minibatches, prompts, updates):
  schedule = SyncSchedule(minibatches, prompts)
  starts = [schedule.position(update) for update in range(updates)]
  assert starts == list(range(0, updates * prompts, prompts))


@given(st.integers(1, 16), st.integers(1, 40), st.integers(1, 200))
def test_due_at_the_first_boundary_after_each_multiple(minibatches, every, updates):
  schedule = SyncSchedule(minibatches, 1)
  due = {update for update in range(updates + 1) if schedule.due(every, update)}
  expected = {
    -(-multiple // minibatches) * minibatches for multiple in range(every, updates + 1, every)
  }
  assert due == {update for update in expected if update <= updates}
  assert not any(schedule.due(0, update) for update in range(updates))
