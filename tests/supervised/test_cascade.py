"""Data rewriting: who solved what, and what is written down of it."""

import dataclasses

import numpy as np
import pytest

from vespo_jax.learner.intake import Problems
from vespo_jax.sampler import Result, Settings
from vespo_jax.supervised import Cascade
from vespo_jax.supervised.cascade import guided_prompt
from vespo_jax.tasks import Example, Score
from vespo_jax.tokenizers import byte_tokenizer
from vespo_jax.types import Rollout

TOKENIZER = byte_tokenizer()
GUIDE = "{question} HINT {solution} HINT"


class Numbers:
  """Problem i is "i?", and its answer i; problem 6 has no solution to show."""

  name = "numbers"

  def prompt(self, example):
    return example.question

  def solution(self, example):
    return f"expertly, {example.answer}" if example.answer != "6" else ""


class Grader:
  def grade(self, examples, responses):
    right = [
      response.split()[-1:] == [example.answer]
      for example, response in zip(examples, responses, strict=True)
    ]
    return [Score(float(ok), "ok" if ok else "wrong") for ok in right]


class Policy:
  """Solves even problems at its second try, the others of 1, 5, .. if it is shown how, at its
  first; what it says of 4 is right, but cut off."""

  def __init__(self):
    self.orders = []

  def put(self, order):
    self.orders.append(order)

  def get(self, timeout_s, order_id):
    (order,) = [order for order in self.orders if order.order_id == order_id]
    rollouts = []
    for ids in order.prompts:
      question = TOKENIZER.decode(ids)
      number, hinted = int(question.split("?")[0]), "HINT" in question
      for attempt in range(order.settings.samples_per_prompt):
        solves = number % 4 == 1 if hinted else number % 2 == 0 and attempt > 0
        text = f"myself, {number}" if solves else "I do not know"
        finish = "length" if number == 4 else "stop"
        rollouts.append(response(ids, f"{text}", finish))
    return Result(order_id, rollouts, 0.0)


def response(prompt, text, finish):
  ids = np.array(TOKENIZER.encode_response(text), np.int32)
  zeros = np.zeros(len(ids), np.float32)
  return Rollout(np.array(prompt, np.int32), ids, zeros, zeros, zeros.astype(np.int32), finish)


def cascade():
  examples = [Example(i, f"{i}?", str(i), "") for i in range(8)]
  settings = Settings(max_new_tokens=40, samples_per_prompt=3)
  return Cascade(
    Policy(),
    Problems(Numbers(), examples, TOKENIZER, Grader()),
    settings,
    dataclasses.replace(settings, samples_per_prompt=2),
    GUIDE,
    seed=3,
    timeout_s=1.0,
  )


def test_every_problem_has_the_first_that_is_correct_of_self_guided_and_expert():
  rewriter = cascade()
  records = {record.example_id: record for record in rewriter.rewrite(range(8))}
  tags = {i: record.tag for i, record in records.items()}
  assert tags == {
    **{0: "self", 1: "guided", 2: "self", 3: "expert"},
    **{4: "expert", 5: "guided", 6: "self", 7: "expert"},
  }
  assert records[2].response == "myself, 2" and records[2].correct == pytest.approx(2 / 3)
  assert records[1].response == "myself, 1" and records[1].correct == 0
  assert records[4].correct == pytest.approx(2 / 3)  # right, but without an end to be learned
  for record in records.values():
    solution = "" if record.example_id == 6 else f"expertly, {record.example_id}"
    assert record.expert == solution
    assert record.prompt == f"{record.example_id}?"  # its own, with nothing of the guide
    assert "HINT" not in record.prompt + record.response
    if record.tag == "expert":
      assert record.response == solution


def test_only_what_was_not_solved_is_sampled_again_with_its_own_solution_shown():
  rewriter = cascade()
  rewriter.rewrite(range(8))
  first, second = rewriter.sampler.orders
  assert [TOKENIZER.decode(ids) for ids in first.prompts] == [f"{i}?\n" for i in range(8)]
  assert list(second.group_ids) == [1, 3, 4, 5, 7]
  assert [TOKENIZER.decode(ids) for ids in second.prompts] == [
    f"{i}? HINT expertly, {i} HINT\n" for i in (1, 3, 4, 5, 7)
  ]
  assert (first.settings.samples_per_prompt, second.settings.samples_per_prompt) == (3, 2)
  assert first.stream != second.stream and min(first.stream, second.stream) > 1
  assert first.order_id != second.order_id


def test_a_problem_without_a_correct_sample_or_a_solution_is_left_out():
  rewriter = cascade()
  rewriter.sampler.get = lambda timeout_s, order_id: Result(
    order_id,
    [
      response(ids, "I do not know", "stop")
      for order in rewriter.sampler.orders
      if order.order_id == order_id
      for ids in order.prompts
      for _ in range(order.settings.samples_per_prompt)
    ],
    0.0,
  )
  assert [record.example_id for record in rewriter.rewrite([5, 6, 7])] == [5, 7]


def test_what_question_and_solution_hold_is_no_place_of_the_guide():
  text = guided_prompt("{question} | {solution} | {other}", "{solution} \\1", "{question}")
  assert text == "{solution} \\1 | {question} | {other}"
