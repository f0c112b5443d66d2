"""Text <-> token ids, over the `tokenizers` library. Ids are authoritative: what was sampled is
never re-tokenised."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, pre_tokenizers, processors
from tokenizers import models as hf_models

from vespo_jax.chat import ChatTemplate
from vespo_jax.types import TokenIds

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
_MAX_VOCABULARY = 2**24  # the library takes memory in proportion to the largest id
_LONGEST_CHARACTER = 4  # tokens: a byte each
_PRIVATE_USE = range(0xE000, 0xF900)  # characters that no tokenizer gives a meaning


class Tokenizer:
  """A tokenizer with the special ids that a policy needs, and the chat template if it has one.

  Args:
    backend: the `tokenizers.Tokenizer`.
    bos: the token that begins a text, or None.
    eos: the token that ends a response.
    add_bos: whether a prompt that is not rendered by a template begins with `bos`.
    stops: further ids that end a response.
    chat_template: the jinja2 source, or None.
    settings: what else `tokenizer_config.json` holds; written back as it was read.
    generation: what `generation_config.json` holds; written back beside the ids.

  Attributes:
    bos_id: the id of `bos`, or None.
    eos_id: the id of `eos`.
    turn_end_id: the id that ends the assistant's turn: what the chat template puts after an answer,
      or `eos_id`.
    stop_ids: every id that ends a response: `eos_id`, `turn_end_id` and `stops`.

  Raises:
    ValueError: if `bos`, `eos` or one of `stops` is not in the vocabulary, or the chat template
      does not render.
  """

  def __init__(
    self,
    backend: hf.Tokenizer,
    *,
    bos: str | None = BOS,
    eos: str = EOS,
    add_bos: bool = True,
    stops: Sequence[int] = (),
    chat_template: str | None = None,
    settings: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
  ):
    self.backend, self.bos, self.eos = backend, bos, eos
    self.settings, self.generation = dict(settings or {}), dict(generation or {})
    self.bos_id = None if bos is None else self._id(bos)
    self.eos_id = self._id(eos)
    self.add_bos = add_bos and bos is not None
    added = backend.get_added_tokens_decoder()
    self._special = {id: token.content for id, token in added.items() if token.special}
    self._template_backend = copy.deepcopy(backend)  # here "<eos>" is a token
    self._template_backend.encode_special_tokens = False
    backend.encode_special_tokens = True  # "<eos>" in a text is five characters, not a token
    self.chat = None
    if chat_template is not None:
      named = {key: _content(value) for key, value in self.settings.items() if "_token" in key}
      tokens = {key: value for key, value in named.items() if isinstance(value, str)}
      tokens |= {"bos_token": bos or "", "eos_token": eos}
      self.chat = ChatTemplate(chat_template, tokens)
    self.turn_end_id = self.eos_id if self.chat is None else self._turn_end(self.chat)
    self.stop_ids = tuple(dict.fromkeys([self.eos_id, self.turn_end_id, *stops]))
    for id in self.stop_ids:
      if backend.id_to_token(id) is None:
        raise ValueError(f"the tokenizer has no id {id}, which is to end a response")

  @property
  def vocab_size(self) -> int:
    """The number of ids, special tokens included."""
    return self.backend.get_vocab_size()

  def encode(self, text: str) -> list[int]:
    """The ids of `text`, without special tokens. Raises ValueError naming what has no id."""
    return _encode(self.backend, text)

  def decode(self, ids: TokenIds) -> str:
    """The text of `ids`, special tokens left out."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

  def pieces(self, ids: TokenIds) -> list[str]:
    """The text of each id, such that together they are `decode(ids)`.

    A character of several tokens is the last one's; of what turned out to be none, U+FFFD, the
    first one's. Where no such pieces exist, in bytes that are no text, each id stands for itself.
    """
    stream = TextStream(self)
    texts: list[str] = []
    for i, id in enumerate(ids):
      text = stream.add(id) + (stream.end() if i == len(ids) - 1 else "")
      waiting = len(texts) - len(list(itertools.takewhile(lambda t: not t, reversed(texts))))
      while waiting < i and text.startswith("\ufffd"):
        texts[waiting], text, waiting = "\ufffd", text[1:], waiting + 1
      texts.append(text)
    whole = "".join(texts) == self.decode(ids)
    return texts if whole else [self.decode([id]) for id in ids]

  def encode_prompt(self, question: str, *, raw: bool = False) -> list[int]:
    """The ids a policy is given to answer `question`.

    With a chat template: the question as the user's one turn, up to where the answer begins. What
    looks like a special token in the question stays text. Without: the question and a line break,
    after bos where the tokenizer adds one. `raw` gives the text alone, for a continuation.

    Raises ValueError naming what has no id, or why the template refuses.
    """
    if self.chat is not None and not raw:
      return self.encode_chat([{"role": "user", "content": question}])
    ids = self.encode(question if raw else question + "\n")
    return [self.bos_id, *ids] if self.add_bos and self.bos_id is not None else ids

  def encode_chat(self, turns: Sequence[Mapping[str, str]]) -> list[int]:
    """The ids of a conversation, up to where the next answer begins.

    `turns` have a role and a content each. What looks like a special token in a content stays text.
    Raises ValueError naming what has no id, or why the template refuses; if there is no template,
    for all but one turn of the user.
    """
    if self.chat is None:
      if [turn["role"] for turn in turns] != ["user"]:
        raise ValueError("the tokenizer has no chat template for more than one turn of the user")
      return self.encode_prompt(turns[0]["content"])
    contents = "".join(turn["content"] for turn in turns)
    cut = next(c for c in map(chr, _PRIVATE_USE) if c not in contents + self.chat.source)

    def harmless(content: str) -> str:
      for token in self._special.values():  # cut in two, so that no piece holds the whole token
        content = content.replace(token, token[0] + cut + token[1:])
      return content

    turns = [{**turn, "content": harmless(turn["content"])} for turn in turns]
    text = self.chat.render(turns, add_generation_prompt=True)
    return [id for piece in text.split(cut) for id in _encode(self._template_backend, piece)]

  def encode_response(self, answer: str) -> list[int]:
    """The ids of a complete response: the answer and the id that ends the assistant's turn."""
    return [*self.encode(answer), self.turn_end_id]

  def save(self, directory: Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and, of a chat template,
    `chat_template.jinja` in the Hugging Face format."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}
    settings |= {"bos_token": self.bos, "eos_token": self.eos, "add_bos_token": self.add_bos}
    template = directory / "chat_template.jinja"  # which goes before the config's
    template.unlink(missing_ok=True)
    if self.chat is not None:
      template.write_text(self.chat.source)
      if not isinstance(settings.get("chat_template"), list):
        settings["chat_template"] = self.chat.source
    self._with_bos().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")

  @classmethod
  def load(cls, directory: Path, generation: Mapping[str, Any] | None = None) -> Tokenizer:
    """Reads `tokenizer.json`, and `tokenizer_config.json` and `chat_template.jinja` if present.

    `generation` is the `generation_config.json` of the model: its `eos_token_id`, one id or a list,
    end a response, and its `bos_token_id` and `eos_token_id` stand in for what the tokenizer's own
    files do not name.

    Raises:
      FileNotFoundError: if there is no `tokenizer.json`.
      ValueError: naming the file that is not readable, or the token that is missing.
    """
    path, generation = directory / "tokenizer.json", generation or {}
    if not path.is_file():
      raise FileNotFoundError(f"no tokenizer.json in {directory}")
    try:
      backend = hf.Tokenizer.from_file(str(path))
    except Exception as error:  # what the library raises has no narrower type
      raise ValueError(f"{path} is not a readable tokenizer: {error}") from error
    last = max(backend.get_vocab(with_added_tokens=True).values(), default=0)
    if last >= _MAX_VOCABULARY:
      raise ValueError(f"{path} has an id {last}; the largest that can be is {_MAX_VOCABULARY - 1}")
    backend.no_truncation()
    backend.no_padding()
    config = directory / "tokenizer_config.json"
    settings = read_json(config) if config.is_file() else {}
    stops = generation.get("eos_token_id")
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    bos, eos = (_content(settings.get(key)) for key in ("bos_token", "eos_token"))
    if bos is None and "bos_token" not in settings and generation.get("bos_token_id") is not None:
      bos = backend.id_to_token(generation["bos_token_id"])
    if eos is None and stops:
      eos = backend.id_to_token(stops[0])
    if eos is None:
      raise ValueError(
        f"no eos_token in {directory}: neither its tokenizer nor its config names one"
      )
    add_bos = settings.get("add_bos_token")
    if add_bos is None:  # then what the post-processor of `tokenizer.json` does
      add_bos = bos is not None and bos in backend.encode("").tokens
    return cls(
      backend,
      bos=bos,
      eos=eos,
      add_bos=add_bos,
      stops=stops,
      chat_template=_chat_template(directory, settings),
      settings=settings,
      generation=generation,
    )

  def _turn_end(self, chat: ChatTemplate) -> int:
    """The first special token that the template puts after an assistant's answer, or eos."""
    answer = next(c for c in map(chr, _PRIVATE_USE) if c not in chat.source)
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    _, found, after = chat.render(turns, add_generation_prompt=False).rpartition(answer)
    ids = _encode(self._template_backend, after) if found else []
    return next((id for id in ids if id in self._special), self.eos_id)

  def _with_bos(self) -> hf.Tokenizer:
    """The tokenizer, such that it adds bos by itself, as `transformers` leaves it to do."""
    if self.bos is None or not self.add_bos or self.bos in self.backend.encode("").tokens:
      return self.backend
    backend = copy.deepcopy(self.backend)
    begins = processors.TemplateProcessing(
      single=f"{self.bos} $A",
      pair=f"{self.bos} $A {self.bos} $B",
      special_tokens=[(self.bos, self.bos_id)],
    )
    steps = [step for step in (backend.post_processor, begins) if step is not None]
    backend.post_processor = processors.Sequence(steps) if len(steps) > 1 else begins
    return backend

  def _id(self, token: str) -> int:
    found = self.backend.token_to_id(token)
    if found is None:
      raise ValueError(f"the tokenizer has no token {token!r}")
    return found


class TextStream:
  """The text of ids that come one by one, in pieces that are final."""

  def __init__(self, tokenizer: Tokenizer):
    self._decode = tokenizer.decode
    self._ids: list[int] = []  # those of the last piece, and those behind it
    self._read = 0  # how many of them the text is out of
    self._shown = ""  # the text of these

  def add(self, id: int) -> str:
    """What the id adds to the text: "" while a character is not complete."""
    self._ids.append(int(id))
    text = self._decode(self._ids)
    waits = text.endswith("\ufffd") and len(self._ids) - self._read < _LONGEST_CHARACTER
    return "" if waits or len(text) <= len(self._shown) else self._take(text)

  def end(self) -> str:
    """What is left of the text."""
    return self._take(self._decode(self._ids))

  def _take(self, text: str) -> str:
    piece = text[len(self._shown) :]
    del self._ids[: self._read]  # the last piece stays: a text's first token may lose its space
    self._read, self._shown = len(self._ids), self._decode(self._ids)
    return piece


def read_json(path: Path) -> dict[str, Any]:
  """The object in the file. Raises FileNotFoundError or ValueError, naming the file."""
  if not path.is_file():
    raise FileNotFoundError(f"no {path.name} in {path.parent}")
  try:
    value = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not readable JSON: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path} does not hold a JSON object")
  return value


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


def _encode(backend: hf.Tokenizer, text: str) -> list[int]:
  try:
    text.encode()
  except UnicodeEncodeError as error:  # half of a pair of surrogates
    raise ValueError(f"{text[error.start]!r} in {text[:80]!r} is no character") from error
  encoding = backend.encode(text, add_special_tokens=False)
  missing = _uncovered(encoding, text)
  if missing is not None and backend.normalizer is not None:
    # a mark that normalisation joins to its letter has no place of its own in the offsets
    normal = backend.normalizer.normalize_str(text)
    again = backend.encode(normal, add_special_tokens=False)
    missing = missing if again.ids != encoding.ids else _uncovered(again, normal)
  if missing is not None:
    raise ValueError(f"the tokenizer has no token for {missing!r} in {text[:80]!r}")
  return encoding.ids


def _uncovered(encoding: hf.Encoding, text: str) -> str | None:
  """The first character of `text` that no token stands for."""
  covered = 0
  for start, end in encoding.offsets:
    if start > covered:
      break
    covered = max(covered, end)
  return text[covered] if covered < len(text) else None


def _content(token: Any) -> Any:
  """The text of a token that a config names, as it is or as an `AddedToken`."""
  return token.get("content") if isinstance(token, dict) else token


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
  """Of a file of its own, else of the config: one template, or the default one of a list."""
  path = directory / "chat_template.jinja"
  if path.is_file():
    return path.read_text()
  template = settings.get("chat_template")
  if isinstance(template, list):
    return next((entry["template"] for entry in template if entry["name"] == "default"), None)
  return template
