"""Checking and freezing a config, and making what it names: an error names the key, the value and
what is allowed.

Nothing here starts an accelerator backend.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from vespo_jax import advantages, files, objectives
from vespo_jax.config_file import Values, check_keys, flatten, overridden, read_command, read_file
from vespo_jax.config_flags import check_effect
from vespo_jax.config_policy import check_policy
from vespo_jax.config_replay import check_replayed
from vespo_jax.config_rules import ROOMS, RULES, ConfigError, one_line, replayed, shown
from vespo_jax.config_tasks import check_prompts, check_tasks, with_digests
from vespo_jax.runtime.schedule import Schedule, read_recorded
from vespo_jax.tasks import custom

_ORDERED = (  # options of a method of which the first is at most the second
  ("low", "high"),
  ("low_start", "low_end"),
  ("high_start", "high_end"),
  ("cov_low", "cov_high"),
)


def parse(argv: Sequence[str]) -> tuple[FrozenConfigDict, Path]:
  """The checked config and the run directory of a command line like that of `vespo_jax.train`.

  Args:
    argv: as `config_file.read_command` takes it.

  Raises:
    ConfigError: for anything wrong with them.
  """
  values, workdir = read_command(argv)
  begun = workdir / "config.json"  # of the run that is resumed
  config = with_digests(_check(values), read_file(begun) if begun.is_file() else {})
  check_effect(overridden(argv), config)
  check_replayed(config)
  return config, workdir


def validate(config: ConfigDict) -> FrozenConfigDict:
  """The config, frozen, if a run can be made of it.

  Raises ConfigError naming the first key that is missing, unknown, of another type, out of range or
  contradictory.
  """
  return _check(flatten(config))


def _check(values: Values) -> FrozenConfigDict:
  check_keys(values)
  missing = [key for key in RULES if key not in values]
  if missing:
    raise ConfigError(f"{missing[0]} is missing; configs/base.py lists every key")
  nested = _nest({key: rule.check(key, values[key]) for key, rule in RULES.items()})
  try:
    config = FrozenConfigDict(nested)
  except (AttributeError, ValueError) as error:  # free options have names that they cannot have
    raise ConfigError(one_line(error)) from error
  _check_methods(config)
  _check_correction(config, make_objective(config), make_correction(config))
  _check_runtime(config)
  _check_sampler(config)
  _check_batch(config)
  check_policy(config)
  _check_reward(config)
  check_prompts(config)
  check_tasks(config)  # last: its package takes a second to import
  return config


def make_objective(config: ConfigDict | FrozenConfigDict) -> objectives.Objective:
  """The configured objective. Raises ConfigError naming the known ones."""
  objective = _make(config, "objective", config.objective.name)
  delta = config.objective.opsm_delta
  return objectives.mask_off_policy(objective, delta) if delta else objective


def make_advantage(config: ConfigDict | FrozenConfigDict) -> advantages.Advantage:
  """The configured advantage estimator. Raises ConfigError naming the known ones."""
  return _make(config, "advantage", config.advantage.name)


def make_correction(config: ConfigDict | FrozenConfigDict) -> objectives.Correction:
  """The configured rollout correction. Raises ConfigError naming the known ones."""
  return _make(config, "correction", config.correction.name)


def make_schedule(config: ConfigDict | FrozenConfigDict) -> Schedule:
  """The configured schedule. Raises ConfigError if the one to replay cannot be read or followed."""
  runtime, prompts = config.runtime, config.batch.prompts
  if runtime.mode == "sync":
    return Schedule.sync(config.staleness.minibatches, prompts)
  run = replayed(runtime.clock)
  try:
    return Schedule(
      prompts,
      max_staleness=runtime.max_staleness,
      publish_every=runtime.sync_every,
      logical=runtime.clock == "logical",
      in_flight=runtime.partial_rollouts != "off",
      recorded=None if run is None else read_recorded(run / "schedule.jsonl"),
    )
  except (OSError, ValueError) as error:
    raise ConfigError(f"runtime.clock={runtime.clock!r}: {error}") from error


def write(config: ConfigDict | FrozenConfigDict, path: Path) -> None:
  """Writes the resolved config as JSON, which `--config` takes too."""
  files.write(path, json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")


def read(path: Path) -> FrozenConfigDict:
  """The config of a run directory's `config.json`, checked. Raises ConfigError if there is none."""
  if not path.is_file():
    raise ConfigError(f"{path} does not exist: is {path.parent} a run directory?")
  return _check(read_file(path))


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
  """The dotted keys whose values differ between two nested configs, sorted."""
  one, other = flatten(left), flatten(right)
  return sorted(
    key for key in one | other if key not in one or key not in other or one[key] != other[key]
  )


def _nest(values: Values) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for key, value in values.items():
    *sections, name = key.split(".")
    node = tree
    for section in sections:
      node = node.setdefault(section, {})
    node[name] = value
  return tree


def _make(config: ConfigDict | FrozenConfigDict, kind: str, name: str) -> Any:
  """The method `name` of a room, with its configured options."""
  room = ROOMS[kind]
  if name not in room.names():
    try:
      room.defaults(name)
    except ValueError as error:
      raise ConfigError(f"{kind}.name={name!r}: {error}") from error
  try:
    return room.make(name, **config[kind].get(name, {}))
  except ValueError as error:  # it begins with the option's name
    raise ConfigError(f"{kind}.{name}.{error}") from error


def _check_methods(config: FrozenConfigDict) -> None:
  """The options of all methods, also of those that this run does not use."""
  for kind, room in ROOMS.items():
    for name in room.names():
      options = config[kind].get(name, {})
      for low, high in _ORDERED:
        if low in options and options[low] > options[high]:
          raise ConfigError(
            f"{kind}.{name}.{low}={options[low]} must be at most "
            f"{kind}.{name}.{high}={options[high]}"
          )
      _make(config, kind, name)


def _check_correction(
  config: FrozenConfigDict, objective: objectives.Objective, correction: objectives.Correction
) -> None:
  denominator = config.correction.denominator
  if denominator == "proximal" and correction.name != "none":
    raise ConfigError(
      f"correction.name={correction.name!r} needs correction.denominator='decoupled', or "
      "'behaviour' where the method has no ratio"
    )
  if denominator == "decoupled" and correction.name == "none":
    raise ConfigError("correction.denominator='decoupled' needs a correction.name")
  try:
    objectives.check_correction(objective, correction, denominator != "behaviour")
  except ValueError as error:
    raise ConfigError(f"correction.name={correction.name!r}: {error}") from error
  undelivered = [key for key in objective.needs if key.startswith("topk_")]
  if undelivered:
    raise ConfigError(
      f"objective.{objective.name}.divergence='topk' needs the policy's log-probs at the sampler's "
      "top-K tokens, which the learner does not compute; use 'binary'"
    )


def _check_runtime(config: FrozenConfigDict) -> None:
  runtime, N = config.runtime, config.staleness.minibatches
  if runtime.transport == "ray" and importlib.util.find_spec("ray") is None:
    raise ConfigError(
      "runtime.transport='ray' needs ray, which is not installed: pip install -r "
      "requirements-ray.txt"
    )
  if runtime.mode == "async" and N != 1:
    raise ConfigError(
      f"runtime.mode='async' has no rollout batches to cut into staleness.minibatches={N}: set it "
      "to 1, and bound the staleness by runtime.max_staleness"
    )
  if runtime.mode == "sync":
    for key, neutral in (("clock", "wall"), ("partial_rollouts", "off")):
      if runtime[key] != neutral:
        raise ConfigError(f"runtime.{key}={runtime[key]!r} needs runtime.mode='async'")
  elif runtime.max_staleness < runtime.sync_every - 1:
    raise ConfigError(
      f"runtime.max_staleness={runtime.max_staleness} must be at least runtime.sync_every - 1 = "
      f"{runtime.sync_every - 1}: weights get that old before the next are published"
    )
  recorded = make_schedule(config).recorded
  unplanned = None if recorded is None else next(u for u in itertools.count() if u not in recorded)
  if unplanned is not None and unplanned < config.updates:
    raise ConfigError(
      f"runtime.clock={runtime.clock!r} has no plan for update {unplanned}, and "
      f"updates={config.updates}"
    )


def _check_sampler(config: FrozenConfigDict) -> None:
  sampler = config.sampler
  truncating = [
    f"sampler.{key}={sampler[key]}"
    for key, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0))
    if sampler[key] != off
  ]
  if truncating and not sampler.allow_truncation:
    raise ConfigError(
      f"{truncating[0]} samples another distribution than the policy's, so its importance weights "
      "are biased; sampler.allow_truncation=True if that is meant"
    )
  if sampler.processes > config.batch.prompts:
    raise ConfigError(
      f"sampler.processes={sampler.processes} must be at most batch.prompts={config.batch.prompts}:"
      " they share each minibatch by prompts"
    )


def _check_batch(config: FrozenConfigDict) -> None:
  batch, mesh = config.batch, config.mesh
  prompts, pieces = batch.prompts, batch.micro_batches
  if prompts % pieces:
    raise ConfigError(
      f"batch.micro_batches={pieces} must divide batch.prompts={prompts}: a micro-batch holds whole"
      " groups"
    )
  rest = [f"mesh.{axis}" for axis, devices in mesh.items() if devices == -1]
  if len(rest) > 1:
    raise ConfigError(f"{' and '.join(rest)} are -1, but one axis alone can take what is left")
  if not rest and prompts // pieces % (mesh.data * mesh.fsdp * mesh.expert):
    raise ConfigError(
      f"batch.prompts={prompts} in batch.micro_batches={pieces} do not divide over "
      f"mesh.data={mesh.data} x mesh.fsdp={mesh.fsdp} x mesh.expert={mesh.expert} devices"
    )
  if make_advantage(config).group_relative and batch.samples_per_prompt < 2:
    raise ConfigError(
      f"batch.samples_per_prompt={batch.samples_per_prompt} must be at least 2: advantages are "
      f"relative to the group with advantage.name={config.advantage.name!r}"
    )


def _check_reward(config: FrozenConfigDict) -> None:
  reward = config.reward
  if reward.low > reward.high:
    raise ConfigError(f"reward.low={reward.low} must be at most reward.high={reward.high}")
  longest = reward.max_length or config.sampler.max_new_tokens
  if reward.overlong_buffer > longest:
    key = "reward.max_length" if reward.max_length else "sampler.max_new_tokens"
    raise ConfigError(
      f"reward.overlong_buffer={reward.overlong_buffer} must be at most {key}={longest}"
    )
  if config.task.reward:
    try:
      custom.load(config.task.reward)
    except ValueError as error:
      raise ConfigError(f"task.reward={shown(config.task.reward)}: {one_line(error)}") from error
