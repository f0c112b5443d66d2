"""Talking with a model: its chat template's turns, and answers that come as they are decoded."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax

from vespo_jax.models import ModelSpec
from vespo_jax.sampler import Engine, Settings
from vespo_jax.sampler.engine import bucket
from vespo_jax.sampler.sequence import Sampling
from vespo_jax.tokenizers import TextStream, Tokenizer
from vespo_jax.types import Array, Params, TokenIds

# Tokens decoded between two looks. On a CPU one at a time costs a model of 135M a quarter of its
# speed, four nothing.
STEPS = 4

Model = tuple[ModelSpec, Params, Tokenizer]


@dataclasses.dataclass(frozen=True)
class Piece:
  """What was added to one answer.

  Attributes:
    sample: of the answers to the prompt, counted from 0.
    text: new text, final; "" in the last piece of an answer where nothing is left.
    end: what is said of the whole answer, in its last piece.
  """

  sample: int
  text: str
  end: Statistics | None = None


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Of one answer.

  Attributes:
    tokens: of it, the one that ended it included.
    tokens_per_s: of all samples together, without the first chunk, which may compile; None where
      there is only that.
    logprob: of the whole answer, at temperature 1.
    finish: `stop`, `length`, or `stopped` by who reads it.
  """

  tokens: int
  tokens_per_s: float | None
  logprob: float
  finish: str

  def __str__(self) -> str:
    speed = "" if self.tokens_per_s is None else f"{self.tokens_per_s:.1f} tokens/s, "
    return f"{self.tokens} tokens, {speed}log-prob {self.logprob:.2f}, {self.finish}"


def check_prompt(spec: ModelSpec, prompt: TokenIds, settings: Settings) -> None:
  """Raises ValueError if the prompt is empty, or does not fit the context that the model was made
  for with the answer."""
  if not len(prompt):
    raise ValueError("a prompt of no tokens cannot be answered")
  if len(prompt) + settings.max_new_tokens > spec.context:
    raise ValueError(
      f"a prompt of {len(prompt)} tokens and {settings.max_new_tokens} new ones do not fit the "
      f"model's {spec.context} positions"
    )


def answer(
  model: Model,
  prompt: TokenIds,
  key: Array,
  settings: Settings,
  stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Piece]:
  """Samples `settings.samples_per_prompt` answers, and yields their text while it is decoded.

  Asked between chunks, `stopped` ends them all where they are. Raises ValueError as `check_prompt`.
  """
  spec, params, tokenizer = model
  check_prompt(spec, prompt, settings)
  engine = Engine(
    spec,
    settings,
    slots=settings.samples_per_prompt,
    longest_prompt=bucket(len(prompt)),  # few shapes are ever compiled
    steps=STEPS,
    decode=tokenizer.decode,
  )
  engine.adopt(0, params)
  sequences = engine.submit(key, [prompt], [0])
  streams = [TextStream(tokenizer) for _ in sequences]
  read = [0] * len(sequences)
  open_samples = set(range(len(sequences)))
  started, first = 0.0, 0
  while open_samples:
    ends = stopped()
    if not ends:
      engine.advance()
    decoded = sum(len(sequence.response) for sequence in sequences)
    if not started:
      started, first = time.perf_counter(), decoded
    for i in sorted(open_samples):
      sequence, stream = sequences[i], streams[i]
      text = "".join(stream.add(id) for id in sequence.response[read[i] :])
      read[i] = len(sequence.response)
      if ends or sequence.finish:
        open_samples.remove(i)
        seconds = time.perf_counter() - started
        speed = (decoded - first) / seconds if decoded > first else None
        yield Piece(i, text + stream.end(), _statistics(sequence, speed))
      elif text:
        yield Piece(i, text)


def _statistics(sequence: Sampling, tokens_per_s: float | None) -> Statistics:
  logprob = sum(float(part.draws.plain_logprobs_B.sum()) for part in sequence.parts)
  finish = sequence.finish or "stopped"
  return Statistics(len(sequence.response), tokens_per_s, logprob, finish)


class Conversation:
  """The turns of a conversation with a model.

  With a chat template, all turns so far are the prompt of the next answer; otherwise, or if `raw`,
  each line stands alone.

  Args:
    model: from `models.load`.
    settings: of the answers; may be replaced between them.
    raw: no chat template, and the line as it is.
    seed: of everything that is sampled.
  """

  def __init__(self, model: Model, settings: Settings, *, raw: bool = False, seed: int = 0):
    self.settings, self.system = settings, ""
    self.many_turns = not raw and model[2].chat is not None
    self._model, self._raw, self._key = model, raw, jax.random.key(seed)
    self._turns: list[dict[str, str]] = []
    self._asked = 0

  def reset(self) -> None:
    """Forgets every turn; what the system is told stays."""
    self._turns = []

  def ask(self, line: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
    """The pieces of the answers; the first answer becomes a turn once all are there.

    Raises ValueError, with the turns as they were, where the line cannot be a prompt.
    """
    tokenizer, turns = self._model[2], [*self._turns, {"role": "user", "content": line}]
    if self.many_turns:
      system = [{"role": "system", "content": self.system}] if self.system else []
      prompt = tokenizer.encode_chat(system + turns)
    else:
      prompt = tokenizer.encode_prompt(line, raw=self._raw)
    key = jax.random.fold_in(self._key, self._asked)
    told = []
    for piece in answer(self._model, prompt, key, self.settings, stopped):
      if piece.sample == 0:
        told.append(piece.text)
      yield piece
    self._asked += 1
    if self.many_turns:
      self._turns = [*turns, {"role": "assistant", "content": "".join(told)}]
