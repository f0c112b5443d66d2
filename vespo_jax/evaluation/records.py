"""Every answer of an evaluation, in a file of JSON lines, which is checked when it is read.

The first line says what was evaluated and how; each further line is one problem under one seed,
with all its responses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vespo_jax.types import FINISH, REWARD_STATUS

FORMAT = 1

_T = TypeVar("_T")

_LATE = {"reward": "", "asked": "", "attention": "dense"}  # what older records do not tell


@dataclasses.dataclass(frozen=True)
class About:
  """What was evaluated, and how.

  Attributes:
    model: what it is called; of no account where evaluations are told apart.
    step: updates that made it; None if it is no run's.
    weights: their SHA-256.
    task, options: of the task.
    problems: held-out problems, the first so many.
    problem_set: their SHA-256.
    samples: responses to each, per seed.
    seeds: of the sampling.
    temperature, top_p, max_new_tokens, stop_strings: of the sampling, as `sampler.Settings`.
    dtype: that the sampler computed in.
    reward: what scored in the verifier's place, as `tasks.custom.identity` says; "": the verifier.
    attention: what the sampler attended with, as `sampler.attention`.
    asked: SHA-256 of the prompts' tokens and of those that end a response, which are the
      tokenizer's; "": of records from before it was kept.
  """

  model: str
  step: int | None
  weights: str
  task: str
  options: dict[str, Any]
  problems: int
  problem_set: str
  samples: int
  seeds: list[int]
  temperature: float
  top_p: float
  max_new_tokens: int
  stop_strings: list[str]
  dtype: str
  reward: str = ""
  asked: str = ""
  attention: str = "dense"

  @property
  def file_name(self) -> str:
    """The name of its records: equal for equal evaluations of equal weights alone."""
    identity = dataclasses.asdict(dataclasses.replace(self, model=""))
    for late, before in _LATE.items():
      if identity[late] == before:  # as it was when there was none to tell
        del identity[late]
    digest = hashlib.sha256(line(identity)).hexdigest()[:8]
    return f"{'model' if self.step is None else f'update{self.step:06d}'}-{digest}.jsonl"


@dataclasses.dataclass(frozen=True)
class Response:
  """One sample.

  Attributes:
    response: its text.
    answer: what the task's format finds in it; None where there is none.
    reward, status: the verdict.
    finish: how it ended, one of `types.FINISH`.
    tokens: of the response, the end token included.
    logprob: nats, the sum over its tokens at temperature 1 without truncation.
  """

  response: str
  answer: str | None
  reward: float
  status: str
  finish: str
  tokens: int
  logprob: float


@dataclasses.dataclass(frozen=True)
class Record:
  """One problem under one seed.

  Attributes:
    seed: of the sampling.
    problem: its index among the held-out problems.
    question, answer: of the problem; `answer` is the correct one.
    responses: all samples.
  """

  seed: int
  problem: int
  question: str
  answer: str
  responses: list[Response]


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """A whole evaluation: `records[seed][problem]`, in the order of the problems."""

  about: About
  records: list[list[Record]]

  @property
  def rewards_SPR(self) -> np.ndarray:
    """The reward of every sample: float64 [seeds, problems, samples]."""
    return np.array(
      [[[r.reward for r in record.responses] for record in of] for of in self.records]
    )


def read(path: Path) -> Evaluated:
  """The whole evaluation in a file.

  Raises FileNotFoundError; ValueError naming the file and what is wrong with it: the line that is
  no record, or what is missing.
  """
  data = path.read_bytes()
  if not data.endswith(b"\n"):
    raise ValueError(f"{path} ends in the middle of a line")
  about, records = parse(data, path)
  whole = about.problems * len(about.seeds)
  if len(records) < whole:
    raise ValueError(f"{path} is not whole: {whole - len(records)} of {whole} records are missing")
  by_seed: dict[int, dict[int, Record]] = {seed: {} for seed in about.seeds}
  for record in records:
    by_seed[record.seed][record.problem] = record
  ordered = [[of[index] for index in range(about.problems)] for of in by_seed.values()]
  return Evaluated(about, ordered)


def parse(data: bytes, path: Path) -> tuple[About, list[Record]]:
  """What is in the whole lines of a file. Raises ValueError naming the line that is no record, is
  there twice, or is not what the first line says."""
  first, *rest = data.split(b"\n")[:-1]
  header = _at_line(1, path, lambda: _header(first))
  seen: set[tuple[int, int]] = set()

  def record(line: bytes) -> Record:
    found = _record(line, header)
    if (found.seed, found.problem) in seen:
      raise ValueError("its problem is there twice")
    seen.add((found.seed, found.problem))
    return found

  return header, [
    _at_line(number, path, lambda line=line: record(line))
    for number, line in enumerate(rest, start=2)
  ]


def _at_line(number: int, path: Path, parse: Callable[[], _T]) -> _T:
  try:
    return parse()
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise ValueError(f"{path}, line {number}: {error!s:.200}") from error


def _header(line: bytes) -> About:
  header = json.loads(line)
  if not isinstance(header, dict) or header.get("format") != FORMAT:
    raise ValueError(f"not the records of an evaluation in format {FORMAT}")
  about = header.get("about")
  if isinstance(about, dict):
    about = {**_LATE, **about}
  about = _typed(About, about)
  seeds = about.seeds
  if min(about.problems, about.samples, len(seeds)) < 1 or len(set(seeds)) < len(seeds):
    raise ValueError("it has no problem, sample or seed, or one seed twice")
  return about


def _record(line: bytes, about: About) -> Record:
  record = _typed(Record, json.loads(line))
  responses = [_typed(Response, response) for response in record.responses]
  if record.seed not in about.seeds or not 0 <= record.problem < about.problems:
    raise ValueError(f"seed {record.seed} or problem {record.problem} was not asked")
  if len(responses) != about.samples:
    raise ValueError(f"it has {len(responses)} responses, not {about.samples}")
  for response in responses:
    if not 0 <= response.reward <= 1 or response.status not in REWARD_STATUS:
      raise ValueError(f"no verdict: {response.reward} {response.status!r:.40}")
    if response.finish not in FINISH or response.tokens < 0:
      raise ValueError(f"no response ends so: {response.finish!r:.40}, {response.tokens} tokens")
  return dataclasses.replace(record, responses=responses)


def _are(kind: type) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, list) and all(type(item) is kind for item in value)


_IS: dict[Any, Callable[[Any], bool]] = {  # by annotation
  "str": lambda value: isinstance(value, str),
  "str | None": lambda value: value is None or isinstance(value, str),
  "int": lambda value: type(value) is int,
  "int | None": lambda value: value is None or type(value) is int,
  "float": lambda value: type(value) in (int, float) and math.isfinite(value),
  "dict[str, Any]": lambda value: isinstance(value, dict),
  "list[int]": _are(int),
  "list[str]": _are(str),
  "list[Response]": _are(dict),
}


def _typed(cls: Callable[..., _T], value: Any) -> _T:
  """A record of ours from JSON. Raises ValueError naming the first field that is none."""
  fields = {field.name: field.type for field in dataclasses.fields(cls)}  # pyrefly: ignore
  if not isinstance(value, dict) or value.keys() != fields.keys():
    raise ValueError(f"not an object of {', '.join(fields)}")
  for name, kind in fields.items():
    if not _IS[kind](value[name]):
      raise ValueError(f"{name}={value[name]!r:.40} is not {kind}")
  return cls(**value)


def line(value: Any) -> bytes:
  """A record of ours, or a plain value, as one line of JSON."""
  plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
  return json.dumps(plain, allow_nan=False).encode() + b"\n"


def newest(place: Path) -> Path:
  """The records at `place`: a file itself, or the newest whole one in a run directory or in a
  folder of records. Raises ValueError if there is none."""
  if place.is_file():
    return place
  is_run = (place / "config.json").is_file() or (place / "evaluation").is_dir()
  folder = place / "evaluation" if is_run else place
  files = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
  if not folder.is_dir() or not files:
    raise ValueError(f"{place} has no finished evaluation: make one with --workdir or --model")
  return files[-1]


def texts(records: Sequence[Record]) -> list[tuple[int, str, str]]:
  """What was asked: index, question and answer of each problem."""
  return [(record.problem, record.question, record.answer) for record in records]
