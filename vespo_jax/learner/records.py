"""What a run writes down about its rollouts, for people to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vespo_jax.learner.intake import ProblemSet
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import REWARD_PARTS, HostArray, Rollout

DIGITS = 6  # significant ones of a token's numbers, which are float32


def write_rollouts(
  path: Path,
  rollouts: Sequence[Rollout],
  columns: Mapping[str, HostArray],
  per_token: Mapping[str, HostArray],
  problems: ProblemSet,
  update: int,
) -> None:
  """Writes one JSON object per rollout, prompt-major; the file is replaced.

  Args:
    path: its folder is made if missing.
    rollouts: whole groups, from the first group of the minibatch on.
    columns: further numbers by name, each an array [P, R] over the whole minibatch.
    per_token: numbers of tokens by name, each an array [.., R, T] over the first groups or all.
      With any, a record has lists `token_text`, whose texts together are the response,
      `token_behaviour_logprob`, and one by each name; a group beyond an array lacks its list.
    problems: what they answer.
    update: the number of committed updates once this minibatch was trained on.
  """
  samples = next(iter(columns.values())).shape[1]
  decode = problems.tokenizer.decode
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w") as file:
    for i, rollout in enumerate(rollouts):
      at = i // samples, i % samples
      weight_version = int(rollout.weight_versions.min(initial=update))
      record = {
        "update": update,
        "group_id": rollout.group_id,
        "sample": at[1],
        "task": rollout.task,
        "example_id": rollout.example_id,
        "prompt": decode(rollout.prompt_ids),
        "response": decode(rollout.response_ids),
        "answer": problems.answer(rollout),
        "reward": rollout.reward,
        "reward_status": rollout.reward_status,
        **_reward_parts(rollout),
        "finish": rollout.finish,
        "length": len(rollout.response_ids),
        **{name: float(x_PR[at]) for name, x_PR in columns.items()},
        "behaviour_logprob": float(rollout.behaviour_logprobs.sum()),
        "weight_version": weight_version,
        "staleness": max(update - 1 - weight_version, 0),
      }
      if per_token:
        mine = {name: x_GRT[at] for name, x_GRT in per_token.items() if at[0] < len(x_GRT)}
        record |= _tokens(rollout, mine, problems.tokenizer)
      file.write(json.dumps(record) + "\n")


def _reward_parts(rollout: Rollout) -> dict[str, float]:
  """What a shaped reward is composed of."""
  if rollout.reward_parts is None:
    return {}
  parts = rollout.reward_parts.tolist()
  return {f"reward_{name}": part for name, part in zip(REWARD_PARTS, parts, strict=True)}


def _tokens(
  rollout: Rollout, per_token: Mapping[str, HostArray], tokenizer: Tokenizer
) -> dict[str, list[Any]]:
  """The lists of one rollout, an entry per token of its response."""
  numbers = {"behaviour_logprob": rollout.behaviour_logprobs} | dict(per_token)
  length = len(rollout.response_ids)
  return {
    "token_text": tokenizer.pieces(rollout.response_ids),
    **{
      f"token_{name}": [_short(x) for x in np.asarray(x_T)[:length]]
      for name, x_T in numbers.items()
    },
  }


def _short(value: float) -> float:
  return float(f"{value:.{DIGITS}g}")
