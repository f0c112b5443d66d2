"""Reading, checking and freezing a config: an error names the key, the value and what is allowed.

Nothing here starts an accelerator backend.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from vespo_jax import advantages, models, objectives, tasks
from vespo_jax.models import ModelSpec, lora, quantize
from vespo_jax.models.lora import LoraSettings

TRANSPORTS = ("local", "threads")


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
  for key, (allowed, good) in _RULES.items():
    if key not in flat:
      raise ConfigError(f"{key} is missing; configs/base.py lists every key")
    if not good(flat[key]):
      raise ConfigError(f"{key}={flat[key]!r} must be {allowed}")
  _check_correction(config, make_objective(config), make_correction(config))
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


def make_task(config: ConfigDict | FrozenConfigDict) -> tasks.Task:
  """The configured task. Raises ConfigError naming the known ones."""
  try:
    return tasks.make(config.task.name, **config.task.options.to_dict())
  except ValueError as error:
    raise ConfigError(f"task.name={config.task.name!r}: {error}") from error


def write(config: ConfigDict | FrozenConfigDict, path: Path) -> None:
  """Writes the resolved config as JSON."""
  path.write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")


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


_Rule = tuple[str, Callable[[Any], bool]]


def _at_least(low: float) -> _Rule:
  return f"at least {low}", lambda value: value >= low


def _above(low: float) -> _Rule:
  return f"above {low}", lambda value: value > low


def _fraction(open_top: bool) -> _Rule:
  text = "at least 0 and below 1" if open_top else "above 0 and at most 1"
  return text, lambda value: 0 <= value < 1 if open_top else 0 < value <= 1


def _one_of(*choices: Any) -> _Rule:
  return f"one of {', '.join(map(repr, choices))}", lambda value: value in choices


def _is_pattern(text: str) -> bool:
  try:
    re.compile(text)
  except re.error:
    return False
  return True


_RULES: dict[str, _Rule] = {
  "seed": ("from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32),
  "updates": _at_least(1),
  "objective.aggregation": _one_of("", *objectives.AGGREGATIONS),
  "objective.opsm_delta": _at_least(0),
  "correction.denominator": _one_of("behaviour", "proximal", "decoupled"),
  "kl.coefficient": _at_least(0),
  "kl.estimator": _one_of(*objectives.KL_ESTIMATORS),
  "kl.placement": _one_of("loss", "reward"),
  "entropy.coefficient": ("a number", lambda value: True),
  "proximal_step.divergence": _one_of(*objectives.DIVERGENCES),
  "proximal_step.step_size": _above(0),
  "batch.prompts": _at_least(1),
  "batch.samples_per_prompt": _at_least(1),
  "batch.micro_batches": _at_least(1),
  "staleness.minibatches": _at_least(1),
  "runtime.mode": _one_of("sync"),
  "runtime.transport": _one_of(*TRANSPORTS),
  "runtime.timeout_s": _above(0),
  "runtime.gpu_memory_fraction": _fraction(open_top=False),
  "sampler.max_new_tokens": _at_least(1),
  "sampler.temperature": _above(0),
  "sampler.dtype": _one_of(*quantize.DTYPES),
  "task.train_size": _at_least(1),
  "task.test_size": _at_least(1),
  "task.seed": _at_least(0),
  "task.grade_timeout_s": _above(0),
  "policy.width": _at_least(1),
  "policy.layers": _at_least(1),
  "policy.heads": _at_least(1),
  "policy.kv_heads": _at_least(1),
  "policy.head_width": ("even and at least 2", lambda value: value >= 2 and value % 2 == 0),
  "policy.mlp_width": _at_least(1),
  "policy.rope_theta": _above(0),
  "policy.remat": _one_of(*models.REMAT),
  "lora.rank": _at_least(0),
  "lora.alpha": _above(0),
  "lora.targets": ("a regular expression", _is_pattern),
  "optimizer.learning_rate": _at_least(0),
  "optimizer.warmup_updates": _at_least(0),
  "optimizer.beta1": _fraction(open_top=True),
  "optimizer.beta2": _fraction(open_top=True),
  "optimizer.epsilon": _above(0),
  "optimizer.weight_decay": _at_least(0),
  "optimizer.max_grad_norm": _at_least(0),
  "optimizer.integrator": _one_of("euler", "heun", "rk4"),
  "optimizer.ess_scaling": _one_of("none", "sqrt", "linear"),
  "optimizer.ess_base": _fraction(open_top=False),
  "evaluation.every": _at_least(0),
  "evaluation.problems": _at_least(1),
  "evaluation.samples_per_problem": _at_least(1),
  "checkpoint.every": _at_least(0),
  "checkpoint.keep": _at_least(1),
  "rollouts.save_groups": _at_least(-1),
}
