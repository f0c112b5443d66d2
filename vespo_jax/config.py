"""Reading, checking and freezing a config: an error names the key, the value and what is allowed.

Nothing here starts an accelerator backend.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from vespo_jax import advantages, files, objectives, tasks
from vespo_jax.config_rules import REPLAY, RULES
from vespo_jax.models import ModelSpec, lora
from vespo_jax.models.lora import LoraSettings
from vespo_jax.runtime.schedule import Schedule, read_recorded


class ConfigError(ValueError):
  """A bad command line or config; its text is the one message the user needs."""


def parse(argv: Sequence[str]) -> tuple[FrozenConfigDict, Path]:
  """The checked config and the run directory of a command line like that of `vespo_jax.train`.

  Args:
    argv: `sys.argv`: the program, `--config=FILE`, `--workdir=DIR` and `--config.KEY=VALUE` ones.

  Raises:
    ConfigError: for anything wrong with them.
  """
  # the file must be read before its keys are overridden, whatever order they are given in
  arguments = sorted(argv[1:], key=lambda argument: not argument.startswith("--config="))
  files = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
  if len(files) != 1:
    raise ConfigError("give one --config=FILE, for instance --config=configs/quickstart.py")
  if not Path(files[0]).is_file():
    raise ConfigError(f"--config={files[0]}: no such file")
  overrides = [a for a in arguments if a.startswith("--config.")]
  _check_keys(overrides, _flatten(_parse_flags(arguments[:1])[0].config))
  values, rest = _parse_flags(arguments)
  if rest:
    raise ConfigError(f"unexpected argument {rest[0]!r}")
  if not values.workdir:
    raise ConfigError("give --workdir=DIR, the directory of this run")
  return validate(values.config), Path(values.workdir)


def validate(config: ConfigDict) -> FrozenConfigDict:
  """The config, frozen, if a run can be made of it.

  Raises ConfigError naming the first key that is missing, unknown, out of range or contradictory.
  """
  flat = _flatten(config)
  for key, value in flat.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise ConfigError(f"{key}={value} must be finite")
  for key, (allowed, good) in RULES.items():
    if key not in flat:
      raise ConfigError(f"{key} is missing; configs/base.py lists every key")
    if not good(flat[key]):
      raise ConfigError(f"{key}={flat[key]!r} must be {allowed}")
  _check_correction(config, make_objective(config), make_correction(config))
  _check_runtime(config)
  prompts, pieces = config.batch.prompts, config.batch.micro_batches
  if prompts % pieces:
    raise ConfigError(
      f"batch.micro_batches={pieces} must divide batch.prompts={prompts}: a micro-batch holds whole"
      " groups"
    )
  if make_advantage(config).group_relative and config.batch.samples_per_prompt < 2:
    raise ConfigError(
      f"batch.samples_per_prompt={config.batch.samples_per_prompt} must be at least 2: advantages "
      "are relative to the group"
    )
  if config.evaluation.problems > config.task.test_size:
    raise ConfigError(
      f"evaluation.problems={config.evaluation.problems} must be at most "
      f"task.test_size={config.task.test_size}"
    )
  if config.policy.path and not Path(config.policy.path).exists():
    raise ConfigError(f"policy.path={config.policy.path!r} does not exist")
  if not config.policy.path:
    _check_experts(config)
    check_moe(config, config.policy.experts)
  if not config.policy.path and config.policy.heads % config.policy.kv_heads:
    raise ConfigError(
      f"policy.heads={config.policy.heads} must be a multiple of "
      f"policy.kv_heads={config.policy.kv_heads}"
    )
  make_task(config)
  return FrozenConfigDict(config)


def make_objective(config: ConfigDict | FrozenConfigDict) -> objectives.Objective:
  """The configured objective. Raises ConfigError naming the known ones."""
  objective = _make(objectives, config.objective, "objective")
  delta = config.objective.opsm_delta
  return objectives.mask_off_policy(objective, delta) if delta else objective


def make_advantage(config: ConfigDict | FrozenConfigDict) -> advantages.Advantage:
  """The configured advantage estimator. Raises ConfigError naming the known ones."""
  return _make(advantages, config.advantage, "advantage")


def make_correction(config: ConfigDict | FrozenConfigDict) -> objectives.Correction:
  """The configured rollout correction. Raises ConfigError naming the known ones."""
  return _make(objectives.corrections, config.correction, "correction")


def make_lora(config: ConfigDict | FrozenConfigDict, spec: ModelSpec) -> LoraSettings | None:
  """The configured adapters, None if the whole model is trained. Raises ConfigError if they target
  no layer of the model."""
  if not config.lora.rank:
    return None
  settings = LoraSettings(config.lora.rank, config.lora.alpha, config.lora.targets)
  try:
    lora.targeted(spec, settings)
  except ValueError as error:
    raise ConfigError(f"lora.{error}") from error
  return settings


def replayed(value: str) -> Path | None:
  """The run directory of a value `replay:RUN`, else None."""
  return Path(value.removeprefix(REPLAY)) if value.startswith(REPLAY) else None


def make_schedule(config: ConfigDict | FrozenConfigDict) -> Schedule:
  """The configured schedule. Raises ConfigError if the one to replay cannot be read."""
  runtime, prompts = config.runtime, config.batch.prompts
  if runtime.mode == "sync":
    return Schedule.sync(config.staleness.minibatches, prompts)
  run, recorded = replayed(runtime.clock), None
  if run is not None:
    try:
      recorded = read_recorded(run / "schedule.jsonl")
    except (OSError, ValueError) as error:
      raise ConfigError(f"runtime.clock={runtime.clock!r}: {error}") from error
  return Schedule(
    prompts,
    max_staleness=runtime.max_staleness,
    publish_every=runtime.sync_every,
    logical=runtime.clock == "logical",
    in_flight=runtime.partial_rollouts != "off",
    recorded=recorded,
  )


def check_moe(config: ConfigDict | FrozenConfigDict, experts: int) -> None:
  """Raises ConfigError if something is asked of routers that a model without `experts` lacks."""
  for key, off in (("balance_coefficient", 0), ("z_coefficient", 0), ("replay", "off")):
    if not experts and config.moe[key] != off:
      raise ConfigError(
        f"moe.{key}={config.moe[key]!r} needs a mixture of experts, and the policy is dense"
      )


def make_task(config: ConfigDict | FrozenConfigDict) -> tasks.Task:
  """The configured task. Raises ConfigError naming the known ones."""
  try:
    return tasks.make(config.task.name, **config.task.options.to_dict())
  except ValueError as error:
    raise ConfigError(f"task.name={config.task.name!r}: {error}") from error


def write(config: ConfigDict | FrozenConfigDict, path: Path) -> None:
  """Writes the resolved config as JSON."""
  files.write(path, json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")


def read(path: Path) -> FrozenConfigDict:
  """The config of a run directory's `config.json`, checked. Raises ConfigError if there is none."""
  if not path.is_file():
    raise ConfigError(f"{path} does not exist: is {path.parent} a run directory?")
  return validate(ConfigDict(json.loads(path.read_text())))


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
  """The dotted keys whose values differ between two nested configs, sorted."""
  one, other = _flatten(left), _flatten(right)
  return sorted(
    key for key in one | other if key not in one or key not in other or one[key] != other[key]
  )


def _make(room: Any, section: ConfigDict | FrozenConfigDict, kind: str) -> Any:
  name = section.name
  try:
    return room.make(name, **(section[name].to_dict() if name in room.names() else {}))
  except ValueError as error:
    raise ConfigError(f"{kind}.name={name!r}: {error}") from error


def _check_correction(
  config: ConfigDict, objective: objectives.Objective, correction: objectives.Correction
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
      f"objective.{objective.name}.divergence='topk' needs top-K log-probs, which the sampler does "
      "not report; use 'binary'"
    )


def _check_runtime(config: ConfigDict) -> None:
  runtime, sampler, N = config.runtime, config.sampler, config.staleness.minibatches
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
  make_schedule(config)
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


def _check_experts(config: ConfigDict) -> None:
  experts, active = config.policy.experts, config.policy.active_experts
  if not min(experts, 1) <= active <= experts:
    raise ConfigError(
      f"policy.active_experts={active} must be from 1 to policy.experts={experts}, or both 0"
    )


def _parse_flags(arguments: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
  """The flags of a command line, and what is left of it. Raises ConfigError."""
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "run directory", flag_values=values)
  config_flags.DEFINE_config_file(
    "config", None, "config file", flag_values=values, sys_argv=["", *arguments]
  )
  try:
    rest = values(["", *arguments])[1:]
    _flatten(values.config)  # a file that could not be executed raises here
  except flags.Error as error:
    raise ConfigError(str(error)) from error
  except Exception as error:  # the file is the user's code and may raise anything
    raise ConfigError(f"{arguments[0]} could not be read: {error!r}") from error
  return values, rest


def _check_keys(overrides: Sequence[str], known: Mapping[str, Any]) -> None:
  for override in overrides:
    key = override.removeprefix("--config.").partition("=")[0]
    if key not in known:
      close = difflib.get_close_matches(key, known, n=1)
      hint = f"; did you mean {close[0]}?" if close else "; configs/base.py lists every key"
      raise ConfigError(f"unknown config key {key!r}{hint}")


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in dict(config).items():
    nested = isinstance(value, (ConfigDict, FrozenConfigDict, dict))
    flat |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
  return flat
