"""The problems of several tasks behind one numbering."""

import dataclasses
import types

import numpy as np
import pytest
from test_batching import rollout

from configs import debug
from vespo_jax import config as config_lib
from vespo_jax import problem_sets
from vespo_jax.learner.intake import Problems
from vespo_jax.learner.mixed_problems import Mixture
from vespo_jax.tasks import Example, MixtureStream, PromptStream, Score, interleave
from vespo_jax.tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()


@dataclasses.dataclass
class Task:
  name: str

  def prompt(self, example):
    return f"{self.name}? {example.question}"


class Grader:
  """Pays for the answer and keeps what it was asked to grade."""

  def __init__(self):
    self.graded = []

  def grade(self, examples, responses):
    self.graded += list(zip(examples, responses, strict=True))
    return [
      Score(float(e.answer == r), "ok" if e.answer == r else "wrong")
      for e, r in zip(examples, responses, strict=True)
    ]


def make(sizes):
  """Problems by label, whose names are one task's: labels tell them apart."""
  return {
    label: Problems(
      Task("same/task"),
      [Example(i, f"{label}{i}", f"<{label}{i}>", "") for i in range(size)],
      TOKENIZER,
      Grader(),
    )
    for label, size in sizes.items()
  }


def test_each_task_asks_and_grades_its_own():
  made = make({"a": 3, "b": 2})
  mixture = Mixture.concatenated(made)
  assert (mixture.names, len(mixture.examples)) == (("a", "b"), 5)
  indices = [3, 0, 4, 2]
  assert [mixture.examples[i].question for i in indices] == ["b0", "a0", "b1", "a2"]
  texts = [TOKENIZER.decode(prompt) for prompt in mixture.prompts(np.array(indices))]
  for question, text in zip(["b0", "a0", "b1", "a2"], texts, strict=True):
    assert f"same/task? {question}" in text
  rollouts = [rollout(i, 1) for i in range(4)]
  answers = ["<b0>", "<b0>", "<b1>", "<a1>"]
  for one, text in zip(rollouts, answers, strict=True):
    one.response_ids = np.array(TOKENIZER.encode(text))
  mixture.grade(rollouts, indices)
  assert [r.task for r in rollouts] == ["b", "a", "b", "a"]
  assert [r.reward for r in rollouts] == [1, 0, 1, 0]
  assert [r.example_id for r in rollouts] == [0, 0, 1, 2]
  assert [mixture.answer(r) for r in rollouts] == ["<b0>", "<a0>", "<b1>", "<a2>"]
  assert [e.question for e, _ in made["a"].grader.graded] == ["a0", "a2"]
  for index in (-1, 5):
    with pytest.raises(IndexError, match="among 5"):
      mixture.examples[index]


def test_held_out_problems_have_the_proportions_from_the_first_on():
  mixture = Mixture(make({"a": 9, "b": 3}), interleave([9, 3], [3, 1]))
  questions = [mixture.examples[i].question for i in range(8)]
  assert sum(q.startswith("a") for q in questions) == 6
  assert [q for q in questions if q.startswith("b")] == ["b0", "b1"]


def test_the_stream_is_that_of_the_config():
  config = debug.get_config()
  one = make({"a": 30})["a"]
  stream, curricula = problem_sets.make_stream(config_lib.validate(config), one)
  assert curricula is None
  np.testing.assert_array_equal(stream.indices(3, 40), PromptStream(30, 0).indices(3, 40))
  config.task.curriculum.floor = 0.5
  stream, curricula = problem_sets.make_stream(config_lib.validate(config), one)
  assert list(curricula.rates) == ["task"] and len(curricula.rates["task"]) == 30
  before = stream.indices(0, 5)
  curricula.measure(before, [1.0] * 5)
  assert (stream.weights()[before] < 1).all()  # they are the stream's own
  name = {"name": "reasoning_gym/chain_sum"}
  config.task.mixture = {"a": name | {"weight": 2}, "b": name | {"weight": 1}}
  mixed = config_lib.validate(config)
  stream, curricula = problem_sets.make_stream(
    mixed, Mixture.concatenated(make({"a": 30, "b": 30}))
  )
  assert isinstance(stream, MixtureStream) and set(curricula.rates) == {"a", "b"}
  drawn = stream.indices(0, 60)
  assert (drawn < 30).sum() == 40
  assert set(drawn[drawn < 30][:20].tolist()) != set((drawn[drawn >= 30] - 30).tolist())


def test_problems_of_one_task_are_one_name():
  one = make({"a": 1})["a"]
  assert one.names == ("same/task",)
  assert one.answer(types.SimpleNamespace(example_id=0)) == "<a0>"
