"""Which groups have a signal, over every outcome that a group can have."""

import itertools

import numpy as np
import pytest
from test_batching import rollout

from vespo_jax import advantages
from vespo_jax.learner.groups import Refill, Selection, has_signal, success_rates

R = 3
OUTCOMES = [("ok", 1.0), ("wrong", 0.0), ("wrong", 0.5), ("error", 0.0), ("aborted", 1.0)]


def group(number, outcomes, task="t"):
  made = []
  for status, reward in outcomes:
    one = rollout(number, 2)
    one.reward, one.reward_status, one.task = reward, status, task
    if status == "aborted":
      one.finish = "aborted"
    made.append(one)
  return made


EVERY = list(itertools.product(OUTCOMES, repeat=R))


def test_dropped_are_exactly_the_groups_that_teach_nothing():
  """All 125 outcomes of a group of three: GRPO, by its own definition, has nothing for exactly
  those that are dropped."""
  rollouts = [r for number, outcomes in enumerate(EVERY) for r in group(number, outcomes)]
  rewards_PR = np.array([r.reward for r in rollouts], np.float32).reshape(-1, R)
  valid_PR = np.array([r.finish != "aborted" for r in rollouts]).reshape(-1, R)
  kept = has_signal(rollouts, R)
  for outcomes, keep in zip(EVERY, kept, strict=True):
    rewards = [reward for status, reward in outcomes if status != "aborted"]
    assert keep == (len(set(rewards)) > 1 or len(rewards) == 1), outcomes
  advantages_PR, _ = advantages.make("dr_grpo")(rewards_PR, valid_PR)
  several = valid_PR.sum(axis=1) != 1  # a single sample has no group to be better than
  np.testing.assert_array_equal(kept[several], (np.asarray(advantages_PR) != 0).any(1)[several])
  selection = Selection(len(EVERY), R, everything=False)
  selection.add(rollouts, [0] * len(rollouts))
  assert [r.group_id for r in selection.kept()[0][::R]] == np.flatnonzero(kept).tolist()
  assert selection.metrics()["group/dropped"] == (~kept).sum() == selection.missing
  everything = Selection(len(EVERY), R, everything=True)
  everything.add(rollouts, [0] * len(rollouts))
  assert everything.kept()[0] == rollouts and not everything.missing
  assert everything.metrics()["group/dropped"] == 0


def test_what_is_paid_beside_correctness_is_no_signal():
  """Answers that are all right, some of them too long; and a right one that is, at the same pay."""
  all_right, mixed = group(0, [("ok", 1.0)] * 3), group(1, [("ok", 0.0)] + [("wrong", 0.0)] * 2)
  for one, correct, overlong in zip(
    all_right + mixed, [1, 1, 1, 1, 0, 0], [0, -0.5, 0, -1, 0, 0], strict=True
  ):
    one.reward, one.reward_parts = correct + overlong, np.array([correct, 0.0, overlong])
  assert has_signal(all_right + mixed, R).tolist() == [False, True]


def test_the_success_rate_is_of_what_could_be_graded():
  for outcomes in EVERY:
    rewards = [reward for status, reward in outcomes if status not in ("error", "aborted")]
    (rate,) = success_rates(group(0, outcomes), R)
    if rewards:
      assert rate == sum(rewards) / len(rewards)
    else:
      assert np.isnan(rate)


def test_a_right_answer_that_is_not_paid_because_of_its_length_is_no_success():
  made = group(0, [("ok", 1.0), ("ok", 0.0), ("wrong", 0.0)])
  for one in made:
    one.reward_parts = np.array([one.reward, 0.0, 0.0])
  assert success_rates(made, R).tolist() == [1 / 3]


def test_what_is_said_of_the_groups():
  ok, wrong, error = OUTCOMES[0], OUTCOMES[1], OUTCOMES[3]
  first = [[ok] * 3, [wrong] * 3, [ok, wrong, ok], [error] * 3]
  second = [[wrong, ok, wrong], [ok, ok, wrong], [wrong] * 3, [ok, wrong, wrong]]
  tasks = ["b", "a", "a", "b", "a", "b", "a", "a"]
  made = [group(i, o, t) for i, (o, t) in enumerate(zip(first + second, tasks, strict=True))]
  selection = Selection(3, R, everything=False)
  selection.add(sum(made[:4], []), list(range(12)))
  assert selection.missing == 2
  selection.add(sum(made[4:], []), list(range(12, 24)))
  assert selection.metrics() == {
    "group/solved_fraction": 1 / 8,
    "group/failed_fraction": 2 / 8,
    "group/mixed_fraction": 4 / 8,
    "group/dropped": 4,
    "group/surplus": 1,
    "group/rounds": 2,
  }
  kept, workers = selection.kept()
  assert [r.group_id for r in kept[::R]] == [2, 4, 5]
  assert workers == [6, 7, 8, 12, 13, 14, 15, 16, 17]
  assert selection.task_metrics() == {
    "reward/mean/a": 0.5,
    "reward/mean/b": pytest.approx(2 / 3),
    "response/length/a": 2.0,
    "response/length/b": 2.0,
    "group/mixed_fraction/a": 3 / 5,
    "group/mixed_fraction/b": 1 / 3,
    "group/asked/a": 5,
    "group/asked/b": 3,
  }


def test_a_fraction_of_a_prompt_is_asked_as_a_whole_one():
  assert [Refill(2, 1.5).prompts(n) for n in (1, 2, 3, 32)] == [2, 3, 5, 48]
  assert [Refill(2).prompts(n) for n in (1, 2, 3, 32)] == [1, 2, 3, 32]
