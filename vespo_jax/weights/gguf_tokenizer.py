"""The tokenizer that a GGUF file holds in its metadata, rebuilt for the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers as hf
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import models as hf_models

from vespo_jax.tokenizers import Tokenizer
from vespo_jax.weights.gguf_file import GGUFFile

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # of `tokenizer.ggml.token_type`; the rest is unused

# The words that Llama 3 and Qwen2 cut a text into; they differ in the digits that go together.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
  r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
  "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
  "smollm": [
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False),
  ],
} | {
  tag: [
    pre_tokenizers.Split(Regex(_WORDS.format(digits=digits)), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ]
  for tag, digits in (("llama-bpe", r"\p{N}{1,3}"), ("qwen2", r"\p{N}"))
}


def read_tokenizer(file: GGUFFile) -> Tokenizer:
  """The byte-level BPE tokenizer of the file, its special and stop tokens and chat template.

  Raises:
    ValueError: naming the kind of tokenizer or the pre-tokenizer tag that is not supported, or the
      key that is missing or not usable.
  """
  said = {k: v for k, v in file.metadata.items() if k.startswith("tokenizer.")}
  try:
    return _build(said)
  except KeyError as error:
    raise ValueError(f"{file.path}: {error.args[0]} is missing") from error
  except ValueError as error:
    raise ValueError(f"{file.path}: {error}") from error


def _build(said: Mapping[str, Any]) -> Tokenizer:
  model, tag = said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]
  if model != "gpt2":
    raise ValueError(f"tokenizer.ggml.model {model!r} is not supported, only byte-level BPE (gpt2)")
  if tag not in _PRE_TOKENIZERS:
    known = ", ".join(_PRE_TOKENIZERS)
    raise ValueError(f"tokenizer.ggml.pre {tag!r} is not supported; known: {known}")
  tokens = said["tokenizer.ggml.tokens"]
  kinds = said.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
  if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
    raise ValueError("tokenizer.ggml.tokens has a token twice, or not as many as token types")
  used = (_NORMAL, _CONTROL, _USER_DEFINED)
  vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in used}
  merges = [tuple(merge.split(" ")) for merge in said["tokenizer.ggml.merges"]]
  try:
    bpe = hf_models.BPE(vocab=vocab, merges=merges, ignore_merges=tag == "llama-bpe")
  except Exception as error:  # what the library raises has no narrower type
    raise ValueError(f"tokenizer.ggml.merges: {error}") from error
  backend = hf.Tokenizer(bpe)
  if tag == "qwen2":
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[tag])
  backend.decoder = decoders.ByteLevel()
  for special, kind in ((True, _CONTROL), (False, _USER_DEFINED)):
    added = [t for t, k in zip(tokens, kinds, strict=True) if k == kind]
    backend.add_tokens([AddedToken(t, special=special, normalized=False) for t in added])

  named = {}
  for key in ("bos", "eos", "unknown", "padding"):
    id = said.get(f"tokenizer.ggml.{key}_token_id")
    if id is not None:
      if id >= len(tokens):
        raise ValueError(f"tokenizer.ggml.{key}_token_id={id} is not in the vocabulary")
      named[key] = tokens[id]
  if "eos" not in named:
    raise ValueError("tokenizer.ggml.eos_token_id is missing")
  bos = named.get("bos")
  add_bos = bool(said.get("tokenizer.ggml.add_bos_token", tag == "llama-bpe"))  # as llama.cpp
  ends = [said.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom")]
  settings = {"unk_token": named.get("unknown"), "pad_token": named.get("padding")}
  return Tokenizer(
    backend,
    bos=bos,
    eos=named["eos"],
    add_bos=add_bos,
    stops=[id for id in ends if id is not None],
    chat_template=said.get("tokenizer.chat_template"),
    settings={key: token for key, token in settings.items() if token is not None},
  )
