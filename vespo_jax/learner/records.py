"""What a run writes down about its rollouts, for people to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vespo_jax.learner.intake import Problems
from vespo_jax.types import REWARD_PARTS, HostArray, Rollout


def write_rollouts(
  path: Path,
  rollouts: Sequence[Rollout],
  columns: Mapping[str, HostArray],
  problems: Problems,
  update: int,
) -> None:
  """Writes one JSON object per rollout, prompt-major; the file is replaced.

  Args:
    path: its folder is made if missing.
    rollouts: whole groups, from the first group of the minibatch on.
    columns: further numbers by name, each an array [P, R] over the whole minibatch.
    problems: what they answer.
    update: the number of committed updates once this minibatch was trained on.
  """
  samples = next(iter(columns.values())).shape[1]
  decode = problems.tokenizer.decode
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w") as file:
    for i, rollout in enumerate(rollouts):
      record = {
        "update": update,
        "group_id": rollout.group_id,
        "sample": i % samples,
        "task": rollout.task,
        "example_id": rollout.example_id,
        "prompt": decode(rollout.prompt_ids),
        "response": decode(rollout.response_ids),
        "answer": problems.examples[rollout.example_id].answer,
        "reward": rollout.reward,
        "reward_status": rollout.reward_status,
        **_reward_parts(rollout),
        "finish": rollout.finish,
        **{name: float(x_PR[i // samples, i % samples]) for name, x_PR in columns.items()},
        "behaviour_logprob": float(rollout.behaviour_logprobs.sum()),
        "weight_version": int(rollout.weight_versions.min(initial=update)),
      }
      file.write(json.dumps(record) + "\n")


def _reward_parts(rollout: Rollout) -> dict[str, float]:
  """What a shaped reward is composed of."""
  if rollout.reward_parts is None:
    return {}
  parts = rollout.reward_parts.tolist()
  return {f"reward_{name}": part for name, part in zip(REWARD_PARTS, parts, strict=True)}
