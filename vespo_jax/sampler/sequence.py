"""One sequence while it is sampled, on the host, and the record it becomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from vespo_jax.sampler.sampling import Draw
from vespo_jax.types import HostArray, Rollout

Decode = Callable[[Sequence[int]], str]
# (response, new) -> how many of its `new` last tokens there are until a stop string is complete;
# None if none is
Cut = Callable[[Sequence[int], int], int | None]


@dataclasses.dataclass
class Sampled:
  """Tokens that one row got from one chunk of decoding, all under the same weights.

  Attributes:
    weight_version: of those weights.
    draws: host arrays [T, ..].
    expert_ids_TLA: one row more than tokens: the first belongs to the token before them.
  """

  weight_version: int
  draws: Draw
  expert_ids_TLA: HostArray | None = None

  def first(self, n: int) -> Sampled:
    """The first n tokens of it."""
    ids = self.expert_ids_TLA
    draws = jax.tree.map(lambda x: x[:n], self.draws)
    return Sampled(self.weight_version, draws, None if ids is None else ids[: n + 1])


@dataclasses.dataclass(eq=False)
class Sampling:
  """A sequence that is being sampled.

  Attributes:
    prompt: its token ids.
    group_id: of its prompt.
    seed: what is folded into the key.
    key_data: of that key, uint32.
    given: the rollout whose tokens it takes; None: they are drawn.
    response: the tokens so far.
    parts: all that is known of them, in pieces.
    prompt_expert_ids: of all prompt tokens but the last, where they were asked for.
    finish: as in `Rollout`, "" until it ends.
  """

  prompt: np.ndarray
  group_id: int
  seed: int
  key_data: np.ndarray
  given: Rollout | None = None
  response: list[int] = dataclasses.field(default_factory=list)
  parts: list[Sampled] = dataclasses.field(default_factory=list)
  prompt_expert_ids: np.ndarray | None = None
  finish: str = ""

  @property
  def tokens(self) -> np.ndarray:
    """Prompt and response so far."""
    return np.concatenate([self.prompt, np.asarray(self.response, np.int32)])

  def extend(self, part: Sampled, stopped: bool, limit: int, cut: Cut) -> None:
    """Adds what a chunk sampled, at least one token, and sets `finish` if that ends the sequence.

    `stopped` says that the last token is a stop token; `limit` is the most tokens of a response. A
    given rollout ends where it did, for the reason it did.
    """
    before = len(self.response)
    self.response.extend(np.asarray(part.draws.tokens_B).tolist())
    if self.given is not None:
      self.parts.append(part)
      if len(self.response) == len(self.given.response_ids):
        self.finish = self.given.finish
      return
    n = cut(self.response, len(self.response) - before)
    if n is not None:
      del self.response[before + n :]
      part = part.first(n)
    self.parts.append(part)
    if stopped or n is not None:
      self.finish = "stop"
    elif len(self.response) >= limit:
      self.finish = "length"

  def rollout(self) -> Rollout:
    """The record of a sequence that has ended."""
    draws = jax.tree.map(lambda *xs: np.concatenate(xs), *(part.draws for part in self.parts))
    lengths = [len(part.draws.tokens_B) for part in self.parts]
    versions = np.repeat([part.weight_version for part in self.parts], lengths)
    return Rollout(
      prompt_ids=self.prompt,
      response_ids=np.asarray(self.response, np.int32),
      behaviour_logprobs=draws.behaviour_logprobs_B,
      plain_logprobs=draws.plain_logprobs_B,
      weight_versions=versions.astype(np.int32),
      finish=self.finish,
      group_id=self.group_id,
      sample_seed=self.seed,
      topk_ids=draws.topk_ids_BK,
      topk_logprobs=draws.topk_logprobs_BK,
      expert_ids=self._expert_ids(),
    )

  def _expert_ids(self) -> np.ndarray | None:
    ids = [part.expert_ids_TLA for part in self.parts if part.expert_ids_TLA is not None]
    if self.prompt_expert_ids is None or not ids:
      return None
    return np.concatenate([self.prompt_expert_ids, *(x[:-1] for x in ids), ids[-1][-1:]])


def stop_cut(decode: Decode | None, stop_strings: Sequence[str]) -> Cut:
  """Where the text of a response first contains a stop string.

  The text of a response must begin with the text of its first tokens, up to a last character that
  is not complete. Raises ValueError if there are strings to look for and no way to decode.
  """
  if not stop_strings:
    return lambda response, new: None
  if decode is None:
    raise ValueError("stop strings need a way to decode tokens")
  text_of: Decode = decode

  def found(tokens: Sequence[int]) -> bool:
    text = text_of(tokens)
    return any(string in text for string in stop_strings)

  def cut(response: Sequence[int], new: int) -> int | None:
    if not found(response):
      return None
    before = len(response) - new
    return next(n for n in range(1, new + 1) if found(response[: before + n]))

  return cut
