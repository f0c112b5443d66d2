"""What a config says of prompts: the tasks they are from, and how they are chosen.

Nothing here starts an accelerator backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from vespo_jax import tasks
from vespo_jax.config_rules import ConfigError, one_line, replayed, shown


def make_task(config: ConfigDict | FrozenConfigDict) -> tasks.Task:
  """The task at `task.name`. Raises ConfigError naming the known ones."""
  return _make("task", config.task.name, config.task.options.to_dict())


def make_tasks(config: ConfigDict | FrozenConfigDict) -> dict[str, tasks.Task]:
  """The tasks of the configured mixture by label; where there is none, the one task by its name.

  Raises ConfigError naming the known ones.
  """
  if not config.task.mixture:
    return {config.task.name: make_task(config)}
  return {
    label: _make(f"task.mixture.{label}", ingredient.name, dict(ingredient.options))
    for label, ingredient in ingredients(config).items()
  }


def ingredients(config: ConfigDict | FrozenConfigDict) -> dict[str, tasks.Ingredient]:
  """What `make_tasks` makes tasks of, with their sizes. Raises ConfigError for a bad mixture."""
  task = config.task
  sizes = {"train_size": task.train_size, "test_size": task.test_size}
  if not task.mixture:
    return {task.name: tasks.Ingredient(task.name, 1.0, options=task.options, **sizes)}
  try:
    return tasks.read_mixture(task.mixture.to_dict(), **sizes)
  except ValueError as error:
    raise ConfigError(f"task.mixture: {one_line(error)}") from error


def check_tasks(config: FrozenConfigDict) -> None:
  """Raises ConfigError if there is no such task, or all of the problems of one are asked for that
  generates them."""
  parts = ingredients(config)
  for label, task in make_tasks(config).items():
    for key in ("train_size", "test_size"):
      if not getattr(parts[label], key) and not isinstance(task, tasks.StoredTask):
        section = f"task.mixture.{label}" if config.task.mixture else "task"
        raise ConfigError(
          f"{section}.{key}=0 must be at least 1: the problems of {task.name} are generated, "
          "without end"
        )


def with_digests(config: FrozenConfigDict, begun: Mapping[str, Any]) -> FrozenConfigDict:
  """The config with the digest of every dataset and file, so that a run goes on with the problems
  that it began with.

  Args:
    begun: the values, by dotted key, of the run that its directory holds; empty: there is none. The
      digests it has are taken where the config has none.

  Raises ConfigError if the problems are not there to train on.
  """
  values = config.to_dict()
  one = {"name": begun.get("task.name"), "options": begun.get("task.options", {})}
  before = begun.get("task.mixture") or {one["name"]: one}
  for label, task in make_tasks(config).items():
    if not isinstance(task, tasks.StoredTask):
      continue
    where = values["task"]["mixture"][label] if config.task.mixture else values["task"]
    old = before.get(label, {})
    held = old.get("options", {}).get("digest", "") if old.get("name") == task.name else ""
    try:
      if held and not task.options.get("digest"):
        task = cast(tasks.StoredTask, tasks.make(task.name, **{**task.options, "digest": held}))
      digest = task.check(Path(config.task.data_dir))
    except ValueError as error:
      began = "; the run in --workdir began with those" if held else ""
      raise ConfigError(f"task.name={shown(task.name)}: {one_line(error)}{began}") from error
    where["options"] = {**where.get("options", {}), "digest": digest}
  return FrozenConfigDict(values)


def check_prompts(config: FrozenConfigDict) -> None:
  """Raises ConfigError if there are too few held-out problems of a task, or prompts cannot be
  chosen as the config says."""
  _check_held_out(config)
  if config.task.curriculum.floor < 1 and replayed(config.sampler.source) is not None:
    raise ConfigError(
      f"task.curriculum.floor={config.task.curriculum.floor} chooses prompts, and "
      f"sampler.source={shown(config.sampler.source)} has them already"
    )
  if config.batch.dynamic.enabled:
    _check_dynamic(config)
  elif config.batch.dynamic.oversampling != 1:
    raise ConfigError(
      f"batch.dynamic.oversampling={config.batch.dynamic.oversampling} needs "
      "batch.dynamic.enabled=True: without it every group is trained on"
    )


def _check_held_out(config: FrozenConfigDict) -> None:
  problems, parts = config.evaluation.problems, ingredients(config)
  if not config.task.mixture:
    if 0 < config.task.test_size < problems:
      raise ConfigError(
        f"evaluation.problems={problems} must be at most task.test_size={config.task.test_size}"
      )
    return
  turns = np.resize(tasks.pattern([part.weight for part in parts.values()]), problems)
  for (label, part), wanted in zip(
    parts.items(), np.bincount(turns, minlength=len(parts)).tolist(), strict=True
  ):
    if 0 < part.test_size < wanted:
      raise ConfigError(
        f"evaluation.problems={problems} takes {wanted} of task.mixture.{label}, and "
        f"task.mixture.{label}.test_size={part.test_size}"
      )


def _check_dynamic(config: FrozenConfigDict) -> None:
  runtime, key = config.runtime, "batch.dynamic.enabled=True"
  if config.batch.samples_per_prompt < 2:
    raise ConfigError(
      f"{key} needs batch.samples_per_prompt={config.batch.samples_per_prompt} to be at least 2: "
      "one reward is always equal to itself"
    )
  if replayed(config.sampler.source) is not None:
    raise ConfigError(
      f"{key} orders further prompts, and sampler.source={shown(config.sampler.source)} has only "
      "those that were trained on"
    )
  in_flight = runtime.clock == "logical" and runtime.partial_rollouts != "off"
  if replayed(runtime.clock) is not None or in_flight:
    raise ConfigError(
      f"{key} does not go with runtime.clock={shown(runtime.clock)} and runtime.partial_rollouts="
      f"{runtime.partial_rollouts!r}: samplers would wait for an update that waits for what is "
      "ordered in the place of dropped groups; take the logical clock with 'off', or the wall clock"
    )


def _make(section: str, name: str, options: dict[str, Any]) -> tasks.Task:
  try:
    return tasks.make(name, **options)
  except ValueError as error:
    key = f"{section}.name={shown(name)}"
    keys = f"{key} with {section}.options={shown(options)}" if options else key
    raise ConfigError(f"{keys}: {one_line(error)}") from error
