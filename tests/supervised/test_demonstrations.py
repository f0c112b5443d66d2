"""Demonstrations: what a file may hold, and what of a conversation is trained on."""

import json

import numpy as np
import pytest

from tests.test_tokenizers import CHATML, TRIMMED, chat_tokenizer
from vespo_jax.supervised import encode, encode_all, read_jsonl
from vespo_jax.supervised.demonstrations import turns_of
from vespo_jax.tokenizers import byte_tokenizer

# as Qwen3's: of earlier answers the thoughts are left out
FORGETFUL = CHATML.replace(
  "message['content']", "(message['content'] if loop.last else message['content'].split('!')[-1])"
)


def write(path, *lines):
  path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
  return path


def chat(*contents):
  roles = ["user", "assistant"] * len(contents)
  return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def test_both_layouts_are_read_and_other_keys_are_not(tmp_path):
  messages = [{"role": "system", "content": "be brief"}, *chat("é?", "é")]
  path = write(
    tmp_path / "data.jsonl",
    json.dumps({"prompt": "1 + 1 =", "response": "2", "tag": "expert"}),
    "",
    json.dumps({"messages": [{**turn, "name": "x"} for turn in messages], "id": 7}),
  )
  assert [list(turns) for turns in read_jsonl(path)] == [chat("1 + 1 =", "2"), messages]


@pytest.mark.parametrize(
  "line,words",
  [
    ("{", "line 2: not JSON"),
    ("[" * 100_000, "line 2: not JSON"),
    ("[]", "line 2: must be an object with 'prompt' and 'response', or with 'messages'"),
    ('{"prompt": "a"}', "line 2: must be an object with"),
    ('{"prompt": "a", "response": "b", "messages": []}', "line 2: must be an object with"),
    ('{"prompt": "a", "response": 3}', "line 2: 'response' must be a text, not 3"),
    ('{"messages": "a"}', "line 2: 'messages' must be objects with"),
    ('{"messages": [{"role": "user"}]}', "line 2: 'messages' must be objects with"),
  ],
)
def test_what_is_no_demonstration_is_refused_by_its_line(line, words, tmp_path):
  path = write(tmp_path / "data.jsonl", '{"prompt": "a", "response": "b"}', line)
  with pytest.raises(ValueError, match=words):
    read_jsonl(path)


def test_files_that_hold_nothing_or_no_text_are_refused(tmp_path):
  with pytest.raises(ValueError, match="holds no demonstrations"):
    read_jsonl(write(tmp_path / "empty.jsonl", ""))
  with pytest.raises(ValueError, match="cannot be read"):
    read_jsonl(tmp_path / "none.jsonl")
  (tmp_path / "bytes.jsonl").write_bytes(b"\xff\n")
  with pytest.raises(ValueError, match="cannot be read"):
    read_jsonl(tmp_path / "bytes.jsonl")


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), chat_tokenizer(CHATML)])
def test_the_answer_and_its_end_are_trained_on_after_the_policys_own_prompt(tokenizer):
  (one,) = encode(tokenizer, turns_of("1 + 1 = <s>", "2"))
  prompt = tokenizer.encode_prompt("1 + 1 = <s>")
  assert one.ids.tolist() == [*prompt, *tokenizer.encode("2"), tokenizer.turn_end_id]
  assert one.trained.tolist() == [False] * len(prompt) + [True, True]


def spoken(tokenizer, one):
  """The stretches of a sequence that are trained on, as texts, and the id each ends with."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], one.trained, [0]])))
  pieces = [one.ids[start:stop] for start, stop in edges.reshape(-1, 2)]
  return [(tokenizer.decode(ids[:-1]), int(ids[-1])) for ids in pieces]


def test_a_conversation_is_one_sequence_in_which_the_assistant_alone_is_trained_on():
  tokenizer = chat_tokenizer(CHATML)
  turns = [{"role": "system", "content": "be brief"}, *chat("1?", "one", "2? <|im_end|>", "two")]
  (one,) = encode(tokenizer, turns)
  assert spoken(tokenizer, one) == [("one", 3), ("two", 3)]  # <|im_end|> is 3
  before_last = tokenizer.encode_chat(turns[:-1])
  assert one.ids[: len(before_last)].tolist() == before_last
  assert tokenizer.decode(one.ids).count("be brief") == 1
  assert one.ids.tolist().count(3) == 5  # the ends of five turns: what a question holds is text


def test_answers_that_a_template_rewrites_are_sequences_of_their_own():
  tokenizer = chat_tokenizer(FORGETFUL)
  turns = chat("1?", "hm!one", "2?", "hm!two")
  sequences = encode(tokenizer, turns)
  assert [spoken(tokenizer, one) for one in sequences] == [[("hm!one", 3)], [("hm!two", 3)]]
  for one, asked in zip(sequences, (turns[:1], turns[:3]), strict=True):
    prompt = tokenizer.encode_chat(asked)
    assert one.ids[: len(prompt)].tolist() == prompt and not one.trained[: len(prompt)].any()


def test_an_empty_answer_and_a_token_that_follows_nothing_are_not_trained_on():
  """Its log-probability would be that of whatever stands before the sequence in its row."""
  tokenizer = chat_tokenizer("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
  (one,) = encode(tokenizer, [{"role": "assistant", "content": "abc"}])
  assert len(one) == 4 and one.trained.tolist() == [False, True, True, True]
  assert encode(tokenizer, turns_of("a", "")) == []
  (one,) = encode(tokenizer, chat("1?", "", "2?", "two"))
  assert [text for text, _ in spoken(tokenizer, one)] == ["two"]


def test_what_cannot_be_trained_on_is_counted_by_reason():
  refuse = "{% if messages[0].content == 'no' %}{{ raise_exception('no') }}{% endif %}"
  strict = chat_tokenizer(refuse + TRIMMED)
  for tokenizer, refused in (
    (strict, chat("no", "a")),
    (byte_tokenizer(), chat(*"abcd")),
    (byte_tokenizer(), turns_of("half a pair: \ud83d", "a")),
  ):
    good, silent, long = turns_of("a", "b"), chat("a"), turns_of("a", "b" * 100)
    encoded, left_out = encode_all(tokenizer, [good, silent, long, refused, long], 50)
    assert [len(sequences) for sequences in encoded] == [1, 0, 0, 0, 0]
    assert left_out == {
      "longer than 50 tokens": 2,
      "the assistant says nothing": 1,
      "cannot be encoded by the model's tokenizer": 1,
    }
