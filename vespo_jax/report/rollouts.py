"""Which of a run's recorded rollouts its page holds, and the form they have there."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

MAX_ROLLOUTS = 2000
MAX_BYTES = 16_000_000  # of the page, for all of them
MAX_FILES = 250
MAX_READ_BYTES = 200_000_000  # of files
MAX_TEXT = 6000  # characters of a prompt, or of a response without tokens
MAX_TOKENS = 1500  # of a response

GROUP = ("update", "group_id", "task", "example_id", "prompt", "answer")
NUMBERS = (
  "sample", "reward", "advantage", "log_w", "length", "weight_version", "staleness",
)  # fmt: skip
TEXTS = ("reward_status", "finish")
PER_TOKEN = ("token_behaviour_logprob", "token_log_ratio", "token_coefficient")
PERCENTILE = 95.0  # of per-token numbers, beyond which a colour grows no stronger

Record = dict[str, Any]
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class _Group:
  records: list[Record]
  size: int  # bytes in the page

  @property
  def reward(self) -> float:
    return sum(_finite([record.get("reward") for record in self.records])) / len(self.records)


def load(workdir: Path, failed: bool = False) -> tuple[list[Record], int]:
  """A sample of a run's recorded rollouts, shortened, and how many there are in all.

  The sample is whole groups in the order of the run: of those whose mean reward is in the lower
  half and of those in the upper half as many each, spread over the run. It is everything where that
  is at most `MAX_ROLLOUTS` rollouts and `MAX_BYTES`. If the last update `failed`, what it left
  stands for what it recorded before.

  Raises ValueError naming a file that is not JSON lines of objects.
  """
  files = _files(workdir, failed)
  total = sum(file.read_bytes().count(b"\n") for file in files)
  mean_bytes = sum(file.stat().st_size for file in files) / max(len(files), 1)
  most = max(2, min(MAX_FILES, int(MAX_READ_BYTES / max(mean_bytes, 1))))
  groups: dict[str, list[Record]] = {}
  for file in _spread(files, most):
    for record in _read(file):
      key = json.dumps([record.get("update"), record.get("group_id")])
      groups.setdefault(key, []).append(record)
  kept = [_Group(records, len(json.dumps(pack(records)))) for records in groups.values()]
  while len(kept) > 2:
    count, size = sum(len(group.records) for group in kept), sum(group.size for group in kept)
    fraction = min(MAX_ROLLOUTS / count, MAX_BYTES / size)
    if fraction >= 1:
      break
    kept = _both_halves(kept, max(2, math.floor(len(kept) * fraction)))
  return [record for group in kept for record in group.records][:MAX_ROLLOUTS], total


def pack(records: Sequence[Record]) -> dict[str, Any]:
  """What the page's script reads: `groups`, `rollouts` that point to them, and `scales`, where each
  colour is at its full strength."""
  groups: dict[str, int] = {}
  rollouts = []
  for record in records:
    group = {key: record.get(key) for key in GROUP[:2]}
    group |= {key: str(record.get(key, "")) for key in GROUP[2:]}
    rollout: Record = {"group": groups.setdefault(json.dumps(group), len(groups))}
    rollout |= {key: record.get(key) for key in NUMBERS}
    rollout |= {key: str(record.get(key, "")) for key in TEXTS}
    texts = record.get("token_text")
    if isinstance(texts, list):
      rollout["tokens"] = [str(text) for text in texts]
      rollout |= {
        key.removeprefix("token_"): record[key]
        for key in PER_TOKEN
        if isinstance(record.get(key), list)
      }
    else:
      rollout["response"] = str(record.get("response", ""))
    rollouts.append(rollout)
  return {
    "groups": [json.loads(group) for group in groups],
    "rollouts": rollouts,
    "scales": _scales(records),
  }


def _files(workdir: Path, failed: bool) -> list[Path]:
  """In the order of updates."""
  files = {file.stem: file for file in sorted((workdir / "rollouts").glob("*.jsonl"))}
  left = workdir / "failure" / "rollouts.jsonl"
  if failed and left.is_file():
    update = next(iter(_read(left)), {}).get("update")
    files[f"{update:06d}" if isinstance(update, int) else ""] = left
  return [files[stem] for stem in sorted(files)]


def _read(file: Path) -> list[Record]:
  lines = file.read_bytes().split(b"\n")[:-1]  # what follows the last newline is half-written
  try:
    records = [json.loads(line, parse_constant=str) for line in lines]
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{file}: not JSON lines ({error})") from error
  if not all(isinstance(record, dict) for record in records):
    raise ValueError(f"{file}: a line is not a JSON object")
  return [_shortened(record) for record in records]


def _both_halves(groups: Sequence[_Group], limit: int) -> list[_Group]:
  """Of `limit` groups, one half of low and one of high mean reward, each spread over the run."""
  order = sorted(range(len(groups)), key=lambda i: groups[i].reward)
  low, high = sorted(order[: len(order) // 2]), sorted(order[len(order) // 2 :])
  chosen = _spread(low, limit // 2) + _spread(high, limit - limit // 2)
  return [groups[i] for i in sorted(chosen)]


def _spread(items: Sequence[_T], limit: int) -> list[_T]:
  """At most `limit` of the items, evenly spaced, the first and the last among them."""
  if len(items) <= limit:
    return list(items)
  if limit == 1:
    return [items[len(items) // 2]]
  return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def _shortened(record: Record) -> Record:
  """A record without the middle of what is too long, which says how much was left out."""
  record = {key: _shorten(x) if isinstance(x, str) else x for key, x in record.items()}
  texts = record.get("token_text")
  if isinstance(texts, list):
    record.setdefault("length", len(texts))
    left_out = len(texts) - MAX_TOKENS
    if left_out > 0:
      cut = slice(MAX_TOKENS * 2 // 3, MAX_TOKENS * 2 // 3 + left_out)
      marks = {"token_text": f"\n[... {left_out} tokens left out ...]\n"}
      for key in ("token_text", *PER_TOKEN):
        if isinstance(record.get(key), list):
          record[key] = [*record[key][: cut.start], marks.get(key), *record[key][cut.stop :]]
  update, version = record.get("update"), record.get("weight_version")
  if "staleness" not in record and isinstance(update, int) and isinstance(version, int):
    record["staleness"] = max(update - 1 - version, 0)
  return record


def _shorten(text: str) -> str:
  if len(text) <= MAX_TEXT:
    return text
  head, tail = text[: MAX_TEXT * 2 // 3], text[-MAX_TEXT // 3 :]
  return f"{head}\n[... {len(text) - MAX_TEXT} characters left out ...]\n{tail}"


def _scales(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """By colour, the distance from its neutral value at which it is full: a round number that few
  values exceed."""
  tokens = lambda key: _finite([x for r in records for x in r.get(key) or ()])
  advantages = _finite([record.get("advantage") for record in records])
  return {
    "log_ratio": _round_up(np.abs(tokens("token_log_ratio")), PERCENTILE),
    "coefficient": _round_up(np.abs(np.asarray(tokens("token_coefficient")) - 1.0), PERCENTILE),
    "advantage": _round_up(np.abs(advantages), 100.0),
  }


def _finite(values: Sequence[Any]) -> list[float]:
  return [float(x) for x in values if isinstance(x, (int, float)) and abs(x) < 2.0**53]


def _round_up(sizes: np.ndarray, percentile: float) -> float:
  """The next 1, 2 or 5 times a power of ten; 1 where nothing is above 0."""
  largest = float(np.percentile(sizes, percentile)) if len(sizes) else 0.0
  if largest < 1e-9:
    return 1.0
  power = 10.0 ** math.floor(math.log10(largest))
  return next(round(m * power, 12) for m in (1, 2, 5, 10) if m * power >= largest * (1 - 1e-9))
