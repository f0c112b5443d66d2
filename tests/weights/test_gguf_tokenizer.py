"""Tokenizers rebuilt from GGUF metadata."""

import unicodedata
from pathlib import Path

import pytest

from tests.weights.gguf_writer import SPECIAL, TOKENIZER, TOKENS
from vespo_jax.weights.gguf_file import GGUFFile
from vespo_jax.weights.gguf_tokenizer import read_tokenizer

IDS = {token: i for i, token in enumerate(TOKENS)}


def tokenizer(**changes):
  said = {**TOKENIZER, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
  said = {k: v for k, v in said.items() if v is not None}
  return read_tokenizer(GGUFFile(Path("model.gguf"), said, {}))


def test_ids_are_those_of_the_file():
  rebuilt = tokenizer()
  assert rebuilt.encode("the <think>") == [
    *(IDS["t"], IDS["he"], IDS["Ġ"]),
    IDS["<think>"],  # user-defined: a token in any text, as for `transformers`
  ]
  assert rebuilt.encode("a the") == [IDS["a"], IDS["Ġt"], IDS["he"]]
  assert "<unused>" not in rebuilt.backend.get_vocab()
  for text in ("naïve 漢字 🙂\n\t don't", " <|im_end|> "):
    assert rebuilt.decode(rebuilt.encode(text)) == text
    assert not {IDS[token] for token in SPECIAL} & set(rebuilt.encode(text))


def test_special_and_stop_tokens():
  rebuilt = tokenizer(eom_token_id=3)
  assert (rebuilt.bos, rebuilt.eos, rebuilt.add_bos) == ("<|im_start|>", "<|end|>", False)
  assert rebuilt.turn_end_id == IDS["<|im_end|>"]
  assert rebuilt.stop_ids == (0, 2, 3)
  assert rebuilt.settings == {"pad_token": "<|end|>"}
  prompt = rebuilt.encode_prompt("hi")
  assert prompt[0] == IDS["<|im_start|>"] and prompt.count(IDS["<|im_start|>"]) == 2
  assert tokenizer(bos_token_id=None).bos_id is None


def test_bos_is_added_as_the_flag_or_the_kind_says():
  assert tokenizer(pre="llama-bpe", add_bos_token=None).add_bos
  assert not tokenizer(pre="qwen2", add_bos_token=None).add_bos
  adding = tokenizer(add_bos_token=True)
  assert adding.encode_prompt("a", raw=True) == [1, IDS["a"]]


TEXT = "It'S 12345x  ok\n\n A.b\r\n"


@pytest.mark.parametrize(
  "tag,words",
  [
    ("gpt-2", ["It", "'", "S", " 12345", "x", " ", " ok", "\n\n", " A", ".", "b", "\r\n"]),
    (
      "smollm",
      [
        "It",
        "'",
        "S",
        " ",
        "1",
        "2",
        "3",
        "4",
        "5",
        "x",
        " ",
        " ok",
        "\n\n",
        " A",
        ".",
        "b",
        "\r\n",
      ],
    ),
    ("llama-bpe", ["It", "'S", " ", "123", "45", "x", " ", " ok", "\n\n", " A", ".b", "\r\n"]),
    (
      "qwen2",
      ["It", "'S", " ", "1", "2", "3", "4", "5", "x", " ", " ok", "\n\n", " A", ".b", "\r\n"],
    ),
  ],
)
def test_texts_are_cut_into_the_words_of_the_tag(tag, words):
  pieces = tokenizer(pre=tag).backend.pre_tokenizer.pre_tokenize_str(TEXT)
  assert [TEXT[start:end] for _, (start, end) in pieces] == words


def test_llama_3_takes_a_whole_word_before_its_merges():
  changes = dict(tokens=[*TOKENS, "zq"], token_type=[*TOKENIZER["tokenizer.ggml.token_type"], 1])
  assert tokenizer(pre="llama-bpe", **changes).encode("zq") == [len(TOKENS)]
  assert tokenizer(pre="qwen2", **changes).encode("zq") == [IDS["z"], IDS["q"]]


def test_qwen_composes_characters():
  qwen = tokenizer(pre="qwen2")
  for text in ("e\u0301", "a e\u0301 n\u0303 \u1112\u1161\u11ab b"):
    assert qwen.encode(text) == qwen.encode(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"tokens": [*TOKENS[:-1], "a"]}, "twice"),
    ({"token_type": [1, 2]}, "token types"),
    ({"pre": None}, "tokenizer.ggml.pre is missing"),
    ({"eot_token_id": 4}, "no id 4"),
  ],
)
def test_unusable_metadata_is_refused(changes, message):
  with pytest.raises(ValueError, match=f"model.gguf: .*{message}"):
    tokenizer(**changes)
