"""Each way a verifier can break costs its own answer and nothing else."""

import hostile_family  # noqa: F401  (registers the family)
import pytest

from vespo_jax import tasks
from vespo_jax.processes import ChildDied
from vespo_jax.tasks import Example

EXAMPLE = Example(0, "question", "good", "{}")


def grade(grader, responses):
  return [(s.reward, s.status) for s in grader.grade([EXAMPLE] * len(responses), responses)]


@pytest.mark.parametrize(
  "response,status",
  [("hang", "timeout"), ("raise", "error"), ("die", "error"), ("memory", "error")],
)
def test_a_broken_verifier_costs_its_own_answer(response, status):
  with tasks.Grader(tasks.make("hostile/x"), timeout_s=1.0) as grader:
    verdicts = grade(grader, ["good", response, "bad", response, "good"])
    assert verdicts == [
      (1.0, "ok"),
      (0.0, status),
      (0.0, "wrong"),
      (0.0, status),
      (1.0, "ok"),
    ]
    assert grade(grader, ["good"]) == [(1.0, "ok")]


def test_a_grader_that_cannot_start_is_an_error_and_no_verdict(monkeypatch):
  task = tasks.make("hostile/x")
  task.name = "hostile/unstartable"
  with tasks.Grader(task) as grader, pytest.raises(ChildDied, match="grader process died"):
    grade(grader, ["good"])


def test_real_answers_through_the_process():
  task = tasks.make("reasoning_gym/chain_sum", answer_format="text")
  examples = [Example(i, *problem) for i, problem in enumerate(task.generate(0, 30))]
  answers = [example.answer if i % 3 else "0.5" for i, example in enumerate(examples)]
  with tasks.Grader(task) as grader:
    rewards = [score.reward for score in grader.grade(examples, answers)]
    assert grader.grade([], []) == []
  assert rewards == [float(i % 3 > 0) for i in range(30)]
