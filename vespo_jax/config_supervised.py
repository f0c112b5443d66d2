"""What supervised fine-tuning and rewriting ask of a config, beside what every run does."""

from __future__ import annotations

import os

from ml_collections import FrozenConfigDict

from vespo_jax import config_tasks
from vespo_jax.config_rules import ConfigError, shown


def check_sft(config: FrozenConfigDict) -> None:
  """Raises ConfigError if no supervised fine-tuning can be made of a config."""
  _check_one_process(config)
  for key in ("data", "held_out_data"):
    path = config.sft[key]
    if path and not os.path.isfile(path):
      raise ConfigError(f"sft.{key}={shown(path)}: no such file")
  if not config.sft.data:
    _check_problems(config, "sft.held_out", config.sft.held_out, "test_size")
  for key, value, off in (
    ("optimizer.ess_scaling", config.optimizer.ess_scaling, "none"),
    ("guards.max_log_w", config.guards.max_log_w, 0.0),
  ):
    if value != off:
      raise ConfigError(
        f"{key}={value!r} needs importance weights, which demonstrations have not; set it to "
        f"{off!r}"
      )
  if config.runtime.profile_updates:
    raise ConfigError("runtime.profile_updates is of vespo_jax.train; set it to 0")


def check_rewrite(config: FrozenConfigDict) -> None:
  """Raises ConfigError if no rewriting can be made of a config."""
  _check_one_process(config)
  _check_problems(config, "rewrite.problems", config.rewrite.problems, "train_size")


def _check_problems(config: FrozenConfigDict, key: str, value: int, size: str) -> None:
  """Raises ConfigError if more problems are asked for than the tasks have together."""
  sizes = [getattr(part, size) for part in config_tasks.ingredients(config).values()]
  if all(sizes) and sum(sizes) < value:  # 0: all there are
    where = "of the mixture together" if config.task.mixture else ""
    raise ConfigError(f"{key}={value} must be at most task.{size}={sum(sizes)} {where}".rstrip())


def _check_one_process(config: FrozenConfigDict) -> None:
  if config.distributed.enabled:
    raise ConfigError("distributed.enabled=True is of vespo_jax.train; this command is one process")
