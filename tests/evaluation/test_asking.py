"""What a sampler is asked, and when."""

import contextlib
import types

import pytest

from vespo_jax import parts
from vespo_jax.evaluation import Evaluator
from vespo_jax.learner.intake import EVALUATION_STREAM, TRAIN_STREAM
from vespo_jax.sampler import Result, Settings


def test_the_same_problems_are_asked_in_a_stream_of_their_own_at_temperature_one():
  orders = []

  def get(timeout_s, order_id):
    (order,) = [order for order in orders if order.order_id == order_id]
    rewards = [float(g == 2) for g in order.group_ids for _ in range(2)]
    rollouts = [types.SimpleNamespace(reward=r, reward_status="ok") for r in rewards]
    return Result(order.order_id, rollouts, 0.1)

  graded = []
  problems = types.SimpleNamespace(
    tokenizer=types.SimpleNamespace(stop_ids=(9,)),
    examples=range(50),
    own_reward=False,
    prompts=lambda indices: [[int(i)] for i in indices],
    grade=lambda rollouts, indices: graded.extend(map(int, indices)),
  )
  config = types.SimpleNamespace(
    seed=3,
    batch=types.SimpleNamespace(prompts=2, samples_per_prompt=2),
    evaluation=types.SimpleNamespace(problems=3, samples_per_problem=2),
    runtime=types.SimpleNamespace(timeout_s=1.0),
    sampler=types.SimpleNamespace(
      processes=1,
      max_new_tokens=5,
      temperature=0.6,
      top_k=3,
      top_p=0.9,
      min_p=0.1,
      stop_strings=(),
    ),
  )
  sampler = types.SimpleNamespace(put=orders.append, get=get)
  result = parts.make_evaluator(config, problems).run(sampler, 4)
  assert (result.accuracy, result.problems, result.samples_per_problem) == (1 / 3, 3, 2)
  assert [list(order.prompts) for order in orders] == [[[0], [1]], [[2]]]
  assert [group for order in orders for group in order.group_ids] == [0, 1, 2]
  assert graded == [0, 0, 1, 1, 2, 2]
  for order in orders:
    assert (order.weight_version, order.seed, order.stream) == (4, 3, EVALUATION_STREAM)
    assert order.plan == ((0, 4),) and not order.noisy and order.order_id < 0
    assert order.longest_prompt == 1
    settings = order.settings
    assert (settings.top_k, settings.top_p, settings.min_p) == (0, 1.0, 0.0)
    assert (settings.temperature, settings.samples_per_prompt, settings.stop_ids) == (1.0, 2, (9,))
  assert EVALUATION_STREAM != TRAIN_STREAM
  orders.clear()
  problems.examples = range(2)  # a dataset has no more
  orders.clear()
  assert parts.make_evaluator(config, problems).run(sampler, 4).problems == 2


@pytest.mark.parametrize(
  ("ahead", "expected"),
  [
    (2, [[1, 3], [5, 7], [1, 3], [8], [5, 7], [8]]),
    (4, [[1, 3], [5, 7], [8], [1, 3], [5, 7], [8]]),
  ],
)
def test_the_next_orders_are_sampled_while_one_is_graded(ahead, expected):
  events = []

  def get(timeout_s, order_id):
    (order,) = [order for kind, order in events if kind == "put" and order.order_id == order_id]
    answers = [types.SimpleNamespace(reward=0.0, reward_status="ok") for _ in order.group_ids]
    return Result(order_id, answers, 0.1)

  problems = types.SimpleNamespace(
    own_reward=False,
    prompts=lambda indices: [[int(i)] for i in indices],
    grade=lambda rollouts, indices: events.append(("grade", list(map(int, indices)))),
  )
  sampler = types.SimpleNamespace(put=lambda order: events.append(("put", order)), get=get)
  evaluator = Evaluator(
    problems, 9, Settings(4), seed=0, timeout_s=1.0, prompts_per_order=2, ahead=ahead
  )
  assert [i for i, _ in evaluator.ask(sampler, 0, [1, 3, 5, 7, 8], seed=5)] == [1, 3, 5, 7, 8]
  told = [list(what.group_ids) if kind == "put" else what for kind, what in events]
  assert told == expected
  assert {order.seed for kind, order in events if kind == "put"} == {5}


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("graded", [(), (5,), (1, 8)])
def test_an_evaluation_whose_reward_fails_on_everything_ends_with_nothing(own, graded):
  orders = {}

  def get(timeout_s, order_id):
    answers = [types.SimpleNamespace(reward=0.0, problem=i) for i in orders[order_id].group_ids]
    return Result(order_id, answers, 0.1)

  def grade(rollouts, indices):
    for rollout in rollouts:
      rollout.reward_status = "ok" if rollout.problem in graded else "error"

  prompts = lambda indices: [[int(i)] for i in indices]
  problems = types.SimpleNamespace(own_reward=own, prompts=prompts, grade=grade)
  sampler = types.SimpleNamespace(put=lambda o: orders.update({o.order_id: o}), get=get)
  evaluator = Evaluator(problems, 9, Settings(4), seed=0, timeout_s=1.0, prompts_per_order=2)
  found, asked = [], list(range(9))
  raises = pytest.raises(OSError, match="task.reward fails on all of 9 answers")
  with raises if own and not graded else contextlib.nullcontext():
    found.extend(index for index, _ in evaluator.ask(sampler, 0, asked, seed=5))
  assert found == ([] if own and not graded else asked)
  assert len(list(evaluator.ask(sampler, 0, [2], seed=5))) == 1  # all that was left of another
