"""What a config says of another run whose rollouts it trains on.

Nothing here starts an accelerator backend.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from ml_collections import FrozenConfigDict

from vespo_jax import config_tasks
from vespo_jax.config_file import Values, flatten, read_file
from vespo_jax.config_rules import RULES, ConfigError, one_line, replayed, shown

SAVED = "rollouts.parquet"  # in a run directory, all its rollouts


def origin(config: FrozenConfigDict) -> dict[str, Any]:
  """What a run's rollouts come from, as `saved.Origin`, less the vocabulary, which is the model's.

  Problems are the same if they are of the same tasks with the same options, sizes, seed and
  limit of the prompts.
  """
  parts = config_tasks.ingredients(config)
  problems = [
    [task.name, dict(task.options), parts[label].train_size, parts[label].test_size]
    for label, task in config_tasks.make_tasks(config).items()
  ]
  limit = [config.task.max_prompt_tokens] if config.task.max_prompt_tokens else []
  told = json.dumps([config.task.seed, problems, *limit], sort_keys=True)
  return {
    "task": ",".join(part.name for part in parts.values()),
    "problems": hashlib.sha256(told.encode()).hexdigest()[:16],
    "temperature": config.sampler.temperature,
    "prompts": config.batch.prompts,
    "samples_per_prompt": config.batch.samples_per_prompt,
  }


def check_replayed(config: FrozenConfigDict) -> None:
  """Raises ConfigError if the rollouts to train on are not there, answer other problems, or were
  rewarded otherwise than the config says: they are trained on with the rewards that they have."""
  run = replayed(config.sampler.source)
  if run is None:
    return
  key = f"sampler.source={shown(config.sampler.source)}"
  if not os.path.isdir(run):
    raise ConfigError(f"{key}: no such run directory")
  from vespo_jax.learner import saved  # heavy, so only where there is something to read

  try:
    saved.check(run / SAVED, origin(config), config.updates)
  except ValueError as error:
    raise ConfigError(f"{key}: {one_line(error)}") from error
  stored, mine = run / "config.json", _rewards(flatten(config))
  made = _rewards(read_file(stored)) if stored.is_file() else mine
  for name, value in mine.items():
    if made[name] != value:
      raise ConfigError(
        f"{name}={shown(value)}: {key} has rollouts that were rewarded with {shown(made[name])}, "
        "and are not graded again"
      )


def _rewards(values: Values) -> Values:
  """What rewards depend on; None for what is without effect."""
  found = {key: values[key] for key in RULES if key.startswith(("reward.", "task.reward"))}
  if not found["reward.format_weight"]:
    found["reward.format"] = None
  if not found["reward.overlong_buffer"]:
    found |= {"reward.overlong_factor": None, "reward.max_length": None}
  elif not found["reward.max_length"]:
    found["reward.max_length"] = values["sampler.max_new_tokens"]
  if not found["reward.low"] < found["reward.high"]:
    found |= {"reward.low": None, "reward.high": None}
  return found
