"""Text <-> token ids, over the `tokenizers` library. Ids are authoritative: what was sampled is
never re-tokenised."""

from __future__ import annotations

import functools
from pathlib import Path

import tokenizers as hf
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as hf_models

from vespo_jax.types import TokenIds

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


class Tokenizer:
  """A tokenizer with the special ids that a policy needs.

  Args:
    backend: the `tokenizers.Tokenizer`.
    bos: the token that begins a prompt, or None.
    eos: the token that ends a response.

  Raises:
    ValueError: if `bos` or `eos` is not in the vocabulary.
  """

  def __init__(self, backend: hf.Tokenizer, *, bos: str | None = BOS, eos: str = EOS):
    self.backend, self.bos, self.eos = backend, bos, eos
    backend.encode_special_tokens = True  # "<eos>" in a text is five characters, not a token
    self.bos_id = None if bos is None else self._id(bos)
    self.eos_id = self._id(eos)

  @property
  def vocab_size(self) -> int:
    """The number of ids, special tokens included."""
    return self.backend.get_vocab_size()

  def encode(self, text: str) -> list[int]:
    """The ids of `text`, without special tokens. Raises ValueError naming what has no id."""
    encoding = self.backend.encode(text, add_special_tokens=False)
    covered = 0
    for start, end in encoding.offsets:
      if start > covered:
        break
      covered = max(covered, end)
    if covered < len(text):
      raise ValueError(f"the tokenizer has no token for {text[covered]!r} in {text[:80]!r}")
    return encoding.ids

  def decode(self, ids: TokenIds) -> str:
    """The text of `ids`, special tokens left out."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

  def encode_prompt(self, question: str) -> list[int]:
    """The ids a policy is given to answer `question`: bos, the question, and a line break."""
    ids = self.encode(question + "\n")
    return ids if self.bos_id is None else [self.bos_id, *ids]

  def encode_response(self, answer: str) -> list[int]:
    """The ids of a complete response: the answer and eos."""
    return [*self.encode(answer), self.eos_id]

  def save(self, directory: Path) -> None:
    """Writes `tokenizer.json` in the Hugging Face format."""
    self.backend.save(str(directory / "tokenizer.json"))

  @classmethod
  def load(cls, directory: Path, *, bos: str | None, eos: str) -> Tokenizer:
    """Reads `tokenizer.json` of `directory`. Raises FileNotFoundError if there is none."""
    path = directory / "tokenizer.json"
    if not path.is_file():
      raise FileNotFoundError(f"no tokenizer.json in {directory}")
    return cls(hf.Tokenizer.from_file(str(path)), bos=bos, eos=eos)

  def _id(self, token: str) -> int:
    found = self.backend.token_to_id(token)
    if found is None:
      raise ValueError(f"the tokenizer has no token {token!r}")
    return found


@functools.cache
def byte_tokenizer() -> Tokenizer:
  """Three special tokens and the 256 bytes: 259 ids, any text; for policies from scratch."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: i for i, token in enumerate([PAD, BOS, EOS, *alphabet])}
  backend = hf.Tokenizer(hf_models.BPE(vocab=vocab, merges=[]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens([PAD, BOS, EOS])
  return Tokenizer(backend)
