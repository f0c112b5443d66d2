"""What training pays for beside being correct."""

import contextlib
import dataclasses

import numpy as np
import pytest

from vespo_jax.learner import intake
from vespo_jax.learner.intake import Problems
from vespo_jax.learner.rows import _reward_parts
from vespo_jax.learner.shaping import Shaping, overlong
from vespo_jax.tasks import Example, Score
from vespo_jax.types import Rollout

OFF = Shaping("boxed", 0.0, 0, 1.0, 0, 0, 0.0, 0.0)


def dapo(length, max_length, cache):
  """Equation 13 of arXiv 2503.14476, case by case."""
  if length <= max_length - cache:
    return 0.0
  if length <= max_length:
    return ((max_length - cache) - length) / cache
  return -1.0


@pytest.mark.parametrize("max_length,cache", [(20480, 4096), (10, 10), (10, 1), (7, 3)])
def test_the_overlong_penalty_is_dapos(max_length, cache):
  for length in range(0, 2 * max_length, max(max_length // 100, 1)):
    expected = dapo(length, max_length, cache)
    assert overlong(length, max_length, cache) == pytest.approx(expected, abs=1e-15)


TEXTS = [r"\boxed{7}", "7", r"\boxed{8}", r"\boxed{7} and so on"]
CORRECT = [1.0, 1.0, 0.0, 1.0]
LENGTHS = [4, 1, 4, 9]


@pytest.mark.parametrize(
  "changes,expected",
  [
    ({}, [1, 1, 0, 1]),
    ({"format_weight": 0.5}, [1.5, 1, 0.5, 1.5]),
    ({"format_weight": -0.25, "format": "number"}, [0.75, 0.75, -0.25, 0.75]),
    ({"overlong_buffer": 4, "max_length": 8}, [1, 1, 0, 0]),
    ({"overlong_buffer": 8, "max_length": 8, "overlong_factor": 2.0}, [0, 0.75, -1, -1]),
    ({"length_cap": 8}, [1, 1, 0, 0]),
    ({"length_cap": 8, "format_weight": 0.5}, [1.5, 1, 0.5, 0]),
    ({"length_cap": 4, "overlong_buffer": 4, "max_length": 8}, [1, 1, 0, -1]),
    ({"format_weight": 0.5, "low": 0.25, "high": 1.25}, [1.25, 1, 0.5, 1.25]),
    ({"low": -1.0, "high": 0.0}, [0, 0, 0, 0]),
  ],
)
def test_rewards_are_composed(changes, expected):
  shaping = dataclasses.replace(OFF, **changes)
  parts = [shaping.parts(*what) for what in zip(CORRECT, TEXTS, LENGTHS, strict=True)]
  assert [shaping.total(part) for part in parts] == pytest.approx(expected)
  assert shaping.active == bool(changes)


class Graders:
  """Stands for a grader whose verdicts are known."""

  def __init__(self, statuses):
    self.statuses = statuses

  def grade(self, examples, responses):
    return [Score(float(status == "ok"), status) for status in self.statuses]


class Task:
  name = "a/task"


class Tokenizer:
  def decode(self, ids):
    return " ".join(map(str, ids))


def problems(statuses, **fields):
  examples = [Example(i, "question", "7", "{}") for i in range(9)]
  return Problems(Task(), examples, Tokenizer(), Graders(statuses), **fields)


def rollouts(lengths):
  none = np.zeros(0)
  return [Rollout(none, np.arange(n), none, none, none, "stop") for n in lengths]


def test_a_rollout_has_the_sum_and_the_reason():
  shaping = dataclasses.replace(OFF, overlong_buffer=4, max_length=8)
  some = rollouts([4, 6, 9])
  problems(["ok", "wrong", "timeout"], shaping=shaping).grade(some, [3, 3, 4])
  assert [rollout.reward for rollout in some] == [1.0, -0.5, -1.0]
  assert [rollout.reward_status for rollout in some] == ["ok", "wrong", "timeout"]
  assert [(r.task, r.example_id) for r in some][1:] == [("a/task", 3), ("a/task", 4)]
  assert some[1].reward_parts.tolist() == [0.0, 0.0, -0.5]


def test_the_means_of_the_components_are_over_what_is_trained_on():
  some = rollouts([4, 6, 9, 0])
  shaping = dataclasses.replace(OFF, overlong_buffer=4, max_length=8)
  problems(["ok", "wrong", "ok", "ok"], shaping=shaping).grade(some, [0] * 4)
  some[2].finish = "aborted"
  assert _reward_parts(some) == {
    "reward/correct": 0.5,
    "reward/format": 0.0,
    "reward/overlong": -0.25,
  }
  assert _reward_parts(rollouts([4])) == {}


def test_without_shaping_there_are_no_parts():
  some = rollouts([4])
  problems(["ok"]).grade(some, [0])
  assert (some[0].reward, some[0].reward_parts) == (1.0, None)


@pytest.mark.parametrize("failed,told", [(0, 0), (2, 0), (3, 1), (10, 1)])
def test_graders_that_fail_are_said_aloud(failed, told):
  said = []
  statuses = (["error", "timeout"] * 5)[:failed] + ["wrong"] * (10 - failed)
  some = problems(statuses, max_failures=0.2, say=said.append)
  some.grade(rollouts([1] * 10), [0] * 10)
  assert len(said) == told
  if told:
    assert f"a/task failed on {failed} of 10 answers" in said[0]
    assert f"({failed // 2} timeout, {failed - failed // 2} error)" in said[0]


@pytest.mark.parametrize(
  "status,others,indices,raises",
  [
    ("error", 0, [0, 0, 1, 1], True),
    ("error", 1, [0, 0, 1, 1], False),
    ("error", 0, [0, 0, 0, 0], True),
    ("timeout", 0, [0, 0, 1, 1], False),
  ],
)
def test_a_reward_of_ones_own_that_fails_on_everything_ends_the_run(
  status, others, indices, raises
):
  statuses = [status] * (4 - others) + ["ok"] * others
  for own in (True, False):
    some = problems(statuses, own_reward=own, say=lambda text: None)
    with (
      pytest.raises(OSError, match="task.reward fails on all of 4")
      if (own and raises)
      else contextlib.nullcontext()
    ):
      answered = rollouts([1] * 4)
      some.grade(answered, indices)
      intake.check_reward(some, answered)
