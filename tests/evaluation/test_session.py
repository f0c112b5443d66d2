"""An evaluation from the first question to the last record, and one that was killed in between."""

import dataclasses
import types

import numpy as np
import pytest

from tests.evaluation.example import about
from vespo_jax import metrics
from vespo_jax.evaluation import Evaluator, comparison, records, session, summary
from vespo_jax.sampler import Result, Settings
from vespo_jax.tasks import Example
from vespo_jax.types import Rollout

ABOUT = about(problems=5, seeds=[3, 8], samples=2)


class Sampler:
  """Answers with a token that says problem, sample and seed; dies after so many orders."""

  def __init__(self, orders=1000):
    self.left, self.orders, self.asked = orders, {}, []

  def put(self, order):
    self.orders[order.order_id] = order

  def get(self, timeout_s, order_id):
    if not self.left:
      raise KeyboardInterrupt
    self.left -= 1
    order = self.orders.pop(order_id)
    self.asked += [(order.seed, group) for group in order.group_ids]
    rollouts = [
      self.rollout(100 * order.seed + 10 * group + sample)
      for group in order.group_ids
      for sample in range(2)
    ]
    return Result(order_id, rollouts, 0.1)

  def rollout(self, token):
    return Rollout(
      prompt_ids=np.array([1], np.int32),
      response_ids=np.array([token, 0], np.int32),
      behaviour_logprobs=np.zeros(2, np.float32),
      plain_logprobs=np.array([-0.25, -0.5], np.float32),
      weight_versions=np.zeros(2, np.int32),
      finish="stop" if token % 10 else "length",
    )


class Problems:
  """Right are the answers to even problems, and first samples."""

  own_reward = False
  tokenizer = types.SimpleNamespace(decode=lambda ids: f"it is {ids[0]}")
  examples = [Example(i, f"question {i}", f"answer {i}", "{}") for i in range(5)]

  def prompts(self, indices):
    return [[1] for _ in indices]

  def grade(self, rollouts, indices):
    for number, (rollout, index) in enumerate(zip(rollouts, indices, strict=True)):
      rollout.reward = float(index % 2 == 0 or number % 2 == 0)
      rollout.task = "asked"
      rollout.reward_status = "ok" if rollout.reward else "wrong"


VOTABLE = {"asked": types.SimpleNamespace(answer=lambda text: text.split()[-1])}


def collect(path, sampler, votable=VOTABLE):
  settings = Settings(4, samples_per_prompt=2)
  evaluator = Evaluator(Problems(), 5, settings, seed=0, timeout_s=1.0, prompts_per_order=2)
  with metrics.Progress(10, unit="problem") as progress:
    return session.collect(evaluator, sampler, ABOUT, path, progress, votable)


def test_every_answer_of_every_seed_is_recorded(tmp_path, capsys):
  sampler = Sampler()
  found = collect(tmp_path / "a.jsonl", sampler)
  assert found == records.read(tmp_path / "a.jsonl") and found.about == ABOUT
  assert sampler.asked == [(seed, problem) for seed in (3, 8) for problem in range(5)]
  one = found.records[1][3]
  assert (one.seed, one.problem, one.question, one.answer) == (8, 3, "question 3", "answer 3")
  assert one.responses == [
    records.Response("it is 830", "830", 1.0, "ok", "length", 2, -0.75),
    records.Response("it is 831", "831", 0.0, "wrong", "stop", 2, -0.75),
  ]
  shown = capsys.readouterr().err.splitlines()
  assert shown[0].startswith("problem 1/10  accuracy 1.000") and "ETA" in shown[0]
  assert shown[-1].startswith("problem 10/10  accuracy 0.800")


@pytest.mark.parametrize("orders", [0, 1, 2, 3, 4, 5])
def test_what_was_killed_goes_on_and_ends_the_same(orders, tmp_path, capsys):
  """Three orders of each seed; nothing that was answered is asked again."""
  collect(tmp_path / "whole.jsonl", Sampler())
  path, killed = tmp_path / "a.jsonl", Sampler(orders)
  with pytest.raises(KeyboardInterrupt):
    collect(path, killed)
  assert not path.exists()
  with pytest.raises(ValueError, match="not whole"):
    records.read(tmp_path / "a.jsonl.partial")
  again = Sampler()
  collect(path, again)
  assert killed.asked + again.asked == [(s, problem) for s in (3, 8) for problem in range(5)]
  assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
  assert "problem 10/10  accuracy 0.800" in capsys.readouterr().err.splitlines()[-1]


def test_a_summary_and_its_table(tmp_path):
  found = summary.summary(collect(tmp_path / "a.jsonl", Sampler()))
  # problems 0, 2, 4: always right; 1 and 3: one of two
  assert (found["accuracy"], found["problems"], found["samples_per_problem"]) == (0.8, 5, 4)
  assert found["avg_at_k"]["k"] == 2 and found["avg_at_k"]["value"] == pytest.approx(0.8)
  assert found["pass_at_k"]["2"] == {"value": 1.0, "low": 1.0, "high": 1.0}
  assert found["maj_at_k"]["2"]["value"] == pytest.approx(0.8)  # all answers differ: by lot
  assert found["pass_at_k"].keys() == found["maj_at_k"].keys() == {"1", "2"}
  assert found["avg_at_k"]["low"] < 0.8 < found["avg_at_k"]["high"]
  assert found["avg_by_seed"] == {"3": pytest.approx(0.8), "8": pytest.approx(0.8)}
  assert found["statuses"] == {"ok": 16, "wrong": 4}
  assert found["truncated_fraction"] == 0.5 and found["tokens_mean"] == 2
  table = summary.table(found)
  assert table.startswith("a model on family/dataset\nheld-out accuracy: 80.0% [")
  scored = summary.table(found | {"reward": "my:f 12"})
  assert scored.startswith("a model on family/dataset, scored by my:f 12\n")
  assert "(5 problems x 4 samples)" in table
  assert "seed 3 80.0%, seed 8 80.0% (standard deviation 0.0%)" in table
  assert "16 ok, 4 wrong; 50.0% cut off at 8 tokens, 2.0 tokens on average" in table
  rows = [line.split()[0] for line in table.splitlines()]
  assert rows[4:7] == ["k", "1", "2"]


def test_without_answers_there_is_no_vote(tmp_path):
  evaluated = collect(tmp_path / "a.jsonl", Sampler(), votable={})
  found = summary.summary(evaluated)
  assert "maj_at_k" not in found and "maj@" not in summary.table(found)
  assert set(comparison.compare(evaluated, evaluated)["differences"]) == {"avg@2", "pass@2"}


def test_the_digest_tells_problems_apart():
  digests = {session.digest(Problems(), count) for count in (1, 2, 2)}
  other = Problems()
  other.examples = [dataclasses.replace(Problems.examples[0], metadata="{ }")]
  assert len(digests | {session.digest(other, 1)}) == 3
