"""The accuracy, its interval, and what is asked to get them."""

import types

import numpy as np
import pytest

from vespo_jax import parts
from vespo_jax.evaluation import Evaluation, summarise
from vespo_jax.learner.intake import EVALUATION_STREAM, TRAIN_STREAM
from vespo_jax.sampler import Result


def wilson(p, n):
  z = 1.959964
  centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def test_the_interval_counts_problems_that_agree_with_themselves_once():
  # three problems of three are right, one never: p = 3/4, var (ddof 1) = 1/4, SE^2 = 1/16, n = 3
  result = summarise(np.array([[1.0] * 5, [1.0] * 5, [0.0] * 5, [1.0] * 5]))
  assert (result.accuracy, result.problems, result.samples_per_problem) == (0.75, 4, 5)
  np.testing.assert_allclose((result.low, result.high), wilson(0.75, 3), rtol=1e-6)


def test_samples_of_a_problem_that_differ_count_for_more():
  # per problem 1/2, 1/2, 1, 0: p = 1/2, var (ddof 1) = 1/6, SE^2 = 1/24, n = 6
  result = summarise(np.array([[1.0, 0], [0, 1], [1, 1], [0, 0]]))
  np.testing.assert_allclose((result.low, result.high), wilson(0.5, 6), rtol=1e-6)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_at_the_ends_each_problem_counts_once(p):
  result = summarise(np.full((20, 4), p))
  np.testing.assert_allclose((result.low, result.high), wilson(p, 20), atol=1e-6)


def test_it_reads_well_and_is_plain():
  result = Evaluation(0.5, 0.25, 0.75, 4, 2)
  assert str(result) == "50.0% [25.0%, 75.0%] (4 problems x 2 samples)"
  assert Evaluation(**result.to_dict()) == result


def test_the_same_problems_are_asked_in_a_stream_of_their_own_at_temperature_one():
  orders = []

  def get(timeout_s, order_id):
    order = orders[-1]
    rewards = [float(g == 2) for g in order.group_ids for _ in range(2)]
    return Result(order.order_id, [types.SimpleNamespace(reward=r) for r in rewards], 0.1)

  graded = []
  problems = types.SimpleNamespace(
    tokenizer=types.SimpleNamespace(stop_ids=(9,)),
    examples=range(50),
    prompts=lambda indices: [[int(i)] for i in indices],
    grade=lambda rollouts, indices: graded.extend(map(int, indices)),
  )
  config = types.SimpleNamespace(
    seed=3,
    batch=types.SimpleNamespace(prompts=2, samples_per_prompt=2),
    evaluation=types.SimpleNamespace(problems=3, samples_per_problem=2),
    runtime=types.SimpleNamespace(timeout_s=1.0),
    sampler=types.SimpleNamespace(
      max_new_tokens=5, temperature=0.6, top_k=3, top_p=0.9, min_p=0.1, stop_strings=()
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
    assert order.plan == ((0, 4),) and order.order_id < 0
    settings = order.settings
    assert (settings.top_k, settings.top_p, settings.min_p) == (0, 1.0, 0.0)
    assert (settings.temperature, settings.samples_per_prompt, settings.stop_ids) == (1.0, 2, (9,))
  assert EVALUATION_STREAM != TRAIN_STREAM
  problems.examples = range(2)  # a dataset has no more
  assert parts.make_evaluator(config, problems).run(sampler, 4).problems == 2
