"""Demonstrations: conversations from JSONL, and what a policy is shown and trained on of each."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from vespo_jax.tokenizers import Tokenizer

Turns = Sequence[Mapping[str, str]]  # of a conversation, each a role and a content


@dataclasses.dataclass(frozen=True)
class Encoded:
  """One sequence to train on.

  Attributes:
    ids: int32 [T].
    trained: bool [T], True where the assistant speaks, the id that ends its turn included.
  """

  ids: np.ndarray
  trained: np.ndarray

  def __len__(self) -> int:
    return len(self.ids)


def turns_of(prompt: str, response: str) -> Turns:
  """The conversation of one question and its answer."""
  return ({"role": "user", "content": prompt}, {"role": "assistant", "content": response})


def read_jsonl(path: Path) -> list[Turns]:
  """The conversations of a file, one JSON object a line: `prompt` and `response`, both texts, or
  `messages`, a list of objects with the texts `role` and `content`. Other keys are not read, and
  empty lines are passed over.

  Raises ValueError naming the file, the line and what is wrong with it; or that there are none.
  """
  conversations = []
  try:
    with path.open(encoding="utf-8") as file:
      for number, line in enumerate(file, start=1):
        if line.strip():
          conversations.append(_conversation(line, f"{path}, line {number}"))
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  if not conversations:
    raise ValueError(f"{path} holds no demonstrations")
  return conversations


def encode(tokenizer: Tokenizer, turns: Turns) -> list[Encoded]:
  """What is trained on of a conversation: what the assistant says, after what it was asked.

  Every answer stands after exactly the ids that a policy is given to write it, and is followed by
  the id that ends it. Where the template shows earlier answers as they were written, that is one
  sequence with several answers in it; a template that rewrites them (leaves out their thoughts, for
  instance) makes a sequence of its own of each answer that does not continue the one before. An
  empty answer is not one, and a sequence's first token, which follows nothing, is not trained on.

  Raises ValueError if the template refuses or something has no id.
  """
  sequences: list[Encoded] = []
  for i, turn in enumerate(turns):
    if turn["role"] != "assistant" or not turn["content"]:
      continue
    prompt, response = tokenizer.encode_chat(turns[:i]), tokenizer.encode_response(turn["content"])
    trained = np.zeros(len(prompt) + len(response), bool)
    trained[max(len(prompt), 1) :] = True
    last = sequences[-1] if sequences else None
    if last is not None and prompt[: len(last)] == last.ids.tolist():
      trained[: len(last)] = last.trained
      sequences.pop()
    sequences.append(Encoded(np.array([*prompt, *response], np.int32), trained))
  return sequences


def encode_all(
  tokenizer: Tokenizer, conversations: Sequence[Turns], longest: int
) -> tuple[list[list[Encoded]], Counter[str]]:
  """The sequences of each conversation, none of a conversation that is left out; and how many were
  left out, by reason.

  Reasons: a sequence has more than `longest` ids; the assistant says nothing; the template refuses
  or something has no id.
  """
  encoded, left_out = [], Counter()
  for turns in tqdm.tqdm(conversations, "encoding", unit="example", delay=2, leave=False):
    try:
      sequences = encode(tokenizer, turns)
    except ValueError:
      sequences, reason = [], "cannot be encoded by the model's tokenizer"
    else:
      reason = "the assistant says nothing"
      if any(len(sequence) > longest for sequence in sequences):
        sequences, reason = [], f"longer than {longest} tokens"
    if not sequences:
      left_out[reason] += 1
    encoded.append(sequences)
  return encoded, left_out


def _conversation(line: str, where: str) -> Turns:
  try:
    value = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where}: not JSON ({error})") from error
  keys = {"prompt", "response", "messages"} & value.keys() if isinstance(value, dict) else set()
  if keys == {"messages"}:
    return _turns(value["messages"], where)
  if keys != {"prompt", "response"}:
    raise ValueError(f"{where}: must be an object with 'prompt' and 'response', or with 'messages'")
  for key in ("prompt", "response"):
    if not isinstance(value[key], str):
      raise ValueError(f"{where}: {key!r} must be a text, not {value[key]!r:.80}")
  return turns_of(value["prompt"], value["response"])


def _turns(messages: Any, where: str) -> Turns:
  texts = lambda message: [message.get("role"), message.get("content")]
  if not isinstance(messages, list) or not all(
    isinstance(message, dict) and all(isinstance(text, str) for text in texts(message))
    for message in messages
  ):
    raise ValueError(f"{where}: 'messages' must be objects with the texts 'role' and 'content'")
  return [{"role": message["role"], "content": message["content"]} for message in messages]
