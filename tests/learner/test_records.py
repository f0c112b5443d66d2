"""What is written down about rollouts."""

import json
import types

import numpy as np
from test_batching import rollout

from vespo_jax.learner.records import write_rollouts
from vespo_jax.tokenizers import byte_tokenizer


def test_no_text_is_an_order_to_a_terminal(tmp_path):
  """`cat` of the file is harmless, whatever was sampled."""
  tokenizer = byte_tokenizer()
  problems = types.SimpleNamespace(tokenizer=tokenizer, answer=lambda rollout: "\x9b2J")
  hostile = rollout(0, 2)
  hostile.example_id, hostile.response_ids = 0, np.array(tokenizer.encode("\x1b[2J\x9b2J\u202e"))
  columns = {"advantage": np.zeros((1, 1))}
  write_rollouts(tmp_path / "x.jsonl", [hostile], columns, {}, problems, update=1)
  data = (tmp_path / "x.jsonl").read_bytes()
  assert all(0x20 <= byte < 0x7F for byte in data[:-1]) and data.endswith(b"\n")
  assert json.loads(data)["response"] == "\x1b[2J\x9b2J\u202e"


def test_every_rollout_has_its_own_numbers(tmp_path):
  answer = lambda rollout: str(rollout.example_id)
  problems = types.SimpleNamespace(tokenizer=byte_tokenizer(), answer=answer)
  rollouts = [rollout(group, 2) for group in (5, 5, 6, 6)]
  for i, record in enumerate(rollouts):
    record.example_id, record.weight_versions = i // 2 + 1, np.array([3, 4], np.int32)
  columns = {"advantage": np.arange(6.0).reshape(3, 2)}  # of the whole minibatch
  write_rollouts(tmp_path / "new" / "x.jsonl", rollouts, columns, {}, problems, update=7)
  records = [json.loads(line) for line in (tmp_path / "new" / "x.jsonl").read_text().splitlines()]
  for key, expected in (
    ("advantage", [0, 1, 2, 3]),
    ("group_id", [5, 5, 6, 6]),
    ("sample", [0, 1, 0, 1]),
    ("answer", ["1", "1", "2", "2"]),
    ("behaviour_logprob", [-4.0] * 4),
    ("length", [2] * 4),
    ("weight_version", [3] * 4),
    ("staleness", [3] * 4),
    ("update", [7] * 4),
  ):
    assert [record[key] for record in records] == expected, key
  assert not any(key.startswith("token_") for record in records for key in record)


def test_every_token_has_its_own_numbers(tmp_path):
  tokenizer = byte_tokenizer()
  problems = types.SimpleNamespace(tokenizer=tokenizer, answer=lambda rollout: "")
  rollouts = [rollout(group, 4) for group in (5, 5, 6, 6)]
  for record in rollouts:
    record.example_id, record.response_ids = 0, np.array(tokenizer.encode("aé") + [2])
    record.behaviour_logprobs = np.array([-0.1, -0.2, -0.3, -1 / 3], np.float32)
  per_token = {
    "log_ratio": np.arange(2 * 2 * 6.0).reshape(2, 2, 6) / 7,
    "coefficient": np.ones((1, 2, 6), np.float32),  # of the first group alone
  }
  columns = {"log_w": np.zeros((2, 2))}
  write_rollouts(tmp_path / "x.jsonl", rollouts, columns, per_token, problems, update=1)
  records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
  for record in records:
    assert record["token_text"] == ["a", "", "é", ""] and record["response"] == "aé"
    assert record["token_behaviour_logprob"] == [-0.1, -0.2, -0.3, -0.333333]
  assert records[1]["token_log_ratio"] == [0.857143, 1.0, 1.14286, 1.28571]
  assert records[0]["token_coefficient"] == [1.0] * 4 and "token_coefficient" not in records[2]
