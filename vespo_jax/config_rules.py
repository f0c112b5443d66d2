"""What every key of a config may be: its type, its range in words, and a test of it.

What a key means, and its unit, stand beside its default in `configs/base.py`; the options of a
method are explained in the method's own file.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vespo_jax import advantages, models, objectives
from vespo_jax.models import quantize
from vespo_jax.objectives import corrections
from vespo_jax.runtime import TRANSPORTS
from vespo_jax.sampler import PARTIAL_ROLLOUTS
from vespo_jax.sampler.placement import TENSOR
from vespo_jax.sharding import MESH_AXES
from vespo_jax.weights import wire

REPLAY = "replay:"  # what a value starts with that names a run to replay
ROOMS: dict[str, Any] = {  # of methods, each with a section of its own options
  "objective": objectives,
  "advantage": advantages,
  "correction": corrections,
}
_DEVICES = r"(\w[\w-]*(,\w[\w-]*)*)?"  # GPU-UUID is one too
_LARGEST_INT = 2**31 - 1  # sizes and counts are int32 on the device
_SMALLEST, _LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


class ConfigError(ValueError):
  """A bad command line or config; its text is the one message the user needs."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """What one key may be.

  Attributes:
    kind: its type: int, float (an int will do), bool, str, tuple (of texts), or dict (of whatever
      JSON has, by name).
    words: its type and range, as they follow "must be".
    good: whether a value of that type, a float rounded to float32, is in the range.
  """

  kind: type
  words: str
  good: Callable[[Any], bool] = lambda value: True

  def check(self, key: str, value: Any) -> Any:
    """`value`, of the type `kind`. Raises ConfigError naming the key, the value and the rule."""
    typed = _TYPED[self.kind](value)
    seen = _single(typed) if self.kind is float and typed is not None else typed
    if typed is None or not self.good(seen):
      raise ConfigError(f"{key}={shown(value)} must be {self.words}")
    return typed

  def read(self, text: str) -> Any:
    """What `text` on a command line stands for; where it is nothing of that type, `text`."""
    try:
      return _READ[self.kind](text)
    except (ValueError, RecursionError):
      return text


def replayed(value: str) -> Path | None:
  """The run directory of a value `replay:RUN`, else None."""
  return Path(value.removeprefix(REPLAY)) if value.startswith(REPLAY) else None


def one_line(text: object) -> str:
  """What somebody else's error says, as a part of a message."""
  return " ".join(str(text).split())


def shown(value: Any) -> str:
  """A value in a message: one line, and not too long."""
  text = one_line(repr(value))
  return text if len(text) <= 100 else f"{text[:100]}..."


def _whole(value: Any) -> int | None:
  return value if type(value) is int else None


def _number(value: Any) -> float | None:
  finite = type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # NaN is not
  return float(value) if finite else None


def _single(value: float) -> float:
  """A number as the device computes with it: 0 if it is too small, 1 if it is too near to 1."""
  return float(np.float32(value)) if abs(value) >= _SMALLEST else 0.0


def _texts(value: Any) -> tuple[str, ...] | None:
  good = isinstance(value, list | tuple) and all(isinstance(x, str) and x for x in value)
  return tuple(value) if good else None


def _options(value: Any) -> dict[str, Any] | None:
  try:
    json.dumps(value, allow_nan=False)
  except (TypeError, ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) and all(isinstance(name, str) for name in value) else None


_TYPED: dict[type, Callable[[Any], Any]] = {
  int: _whole,
  float: _number,
  bool: lambda value: value if isinstance(value, bool) else None,
  str: lambda value: value if isinstance(value, str) else None,
  tuple: _texts,
  dict: _options,
}
_PYTHONS = {"true": "true", "false": "false", "none": "null"}  # words, and JSON's
_READ: dict[type, Callable[[str], Any]] = {
  int: int,
  float: float,
  bool: lambda text: {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text),
  str: str,
  tuple: json.loads,
  dict: lambda text: json.loads(_PYTHONS.get(text.lower(), text)),
}

FLAG = Rule(bool, "True or False")
TEXT = Rule(str, "a text")
NUMBER = Rule(float, "a finite float32")


def _at_least(low: float) -> Rule:
  """An integer if `low` is one, else a number."""
  if isinstance(low, int):
    words = f"an integer, at least {low} and below 2**31"
    return Rule(int, words, lambda value: low <= value <= _LARGEST_INT)
  return Rule(float, f"a finite float32, at least {low:g}", lambda value: value >= low)


def _above(low: float) -> Rule:
  return Rule(float, f"a finite float32, above {low:g}", lambda value: value > low)


def _between(low: float, high: float) -> Rule:
  words = f"a finite float32, at least {low:g} and at most {high:g}"
  return Rule(float, words, lambda value: low <= value <= high)


def _fraction(open_top: bool) -> Rule:
  words = "at least 0 and below 1" if open_top else "above 0 and at most 1"
  good = (lambda value: 0 <= value < 1) if open_top else (lambda value: 0 < value <= 1)
  return Rule(float, f"a finite float32, {words}", good)


def _one_of(*choices: str) -> Rule:
  return Rule(str, f"one of {', '.join(map(repr, choices))}", lambda value: value in choices)


def _one_of_or_replay(*choices: str) -> Rule:
  words = f"{_one_of(*choices).words}, or 'replay:RUN'"
  is_replay = lambda value: value.startswith(REPLAY) and value != REPLAY
  return Rule(str, words, lambda value: value in choices or is_replay(value))


def _seconds() -> Rule:
  words = "a number of seconds, above 0 and at most 1e6"  # more than a system call can wait
  return Rule(float, words, lambda value: 0 < value <= 1e6)


def _axis() -> Rule:
  words = "an integer, at least 1 and below 2**31, or -1 for the devices that are left"
  return Rule(int, words, lambda value: value == -1 or 1 <= value <= _LARGEST_INT)


def _is_pattern(text: str) -> bool:
  try:
    re.compile(text)
  except (re.error, RecursionError, OverflowError):
    return False
  return True


def _are_resources(options: dict[str, Any]) -> bool:
  return all(_number(amount) is not None and amount >= 0 for amount in options.values())


RULES: dict[str, Rule] = {
  "seed": Rule(int, "an integer from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32),
  "updates": _at_least(1),
  "objective.name": TEXT,
  "objective.aggregation": _one_of("", *objectives.AGGREGATIONS),
  "objective.opsm_delta": _at_least(0.0),
  "advantage.name": TEXT,
  "correction.name": TEXT,
  "correction.denominator": _one_of("behaviour", "proximal", "decoupled"),
  "kl.coefficient": _at_least(0.0),
  "kl.estimator": _one_of(*objectives.KL_ESTIMATORS),
  "kl.placement": _one_of("loss", "reward"),
  "entropy.coefficient": NUMBER,
  "proximal_step.divergence": _one_of(*objectives.DIVERGENCES),
  "proximal_step.step_size": _above(0.0),
  "moe.balance_coefficient": _at_least(0.0),
  "moe.z_coefficient": _at_least(0.0),
  "moe.replay": _one_of("off", "R2", "R3"),
  "batch.prompts": _at_least(1),
  "batch.samples_per_prompt": _at_least(1),
  "batch.micro_batches": _at_least(1),
  "batch.dynamic.enabled": FLAG,
  "batch.dynamic.max_rounds": _at_least(1),
  "batch.dynamic.oversampling": _between(1.0, 100.0),
  "staleness.minibatches": _at_least(1),
  "runtime.mode": _one_of("sync", "async"),
  "runtime.max_staleness": _at_least(0),
  "runtime.sync_every": _at_least(1),
  "runtime.clock": _one_of_or_replay("wall", "logical"),
  "runtime.partial_rollouts": _one_of(*PARTIAL_ROLLOUTS),
  "runtime.transport": _one_of(*TRANSPORTS),
  "runtime.integrity": _one_of("off", "flag", "quarantine"),
  "runtime.ray.address": TEXT,
  "runtime.ray.num_cpus": _at_least(0.0),
  "runtime.ray.num_gpus": _at_least(0.0),
  "runtime.ray.resources": Rule(dict, "names with amounts, each at least 0", _are_resources),
  "runtime.profile_updates": _at_least(0),
  "runtime.weights": _one_of("whole", "pieces"),
  "runtime.pieces.directory": TEXT,
  "runtime.pieces.dtype": _one_of(*wire.DTYPES),
  "runtime.pieces.compress": FLAG,
  "runtime.pieces.chunk_mb": _between(0.01, 1024.0),
  "runtime.timeout_s": _seconds(),
  "runtime.hang_timeout_s": _seconds(),
  "runtime.max_failures": _at_least(0),
  "runtime.gpu_memory_fraction": _fraction(open_top=False),
  "runtime.compilation_cache": TEXT,
  "sampler.source": _one_of_or_replay("process"),
  "sampler.processes": _at_least(1),
  "sampler.slots": _at_least(0),
  "sampler.chunk": _at_least(1),
  "sampler.max_new_tokens": _at_least(1),
  "sampler.stop_strings": Rule(tuple, 'a list of texts that are not empty, like ["\\n\\n"]'),
  "sampler.allow_truncation": FLAG,
  "sampler.top_k": _at_least(0),
  "sampler.top_p": _fraction(open_top=False),
  "sampler.min_p": _fraction(open_top=True),
  "sampler.weight_noise": _at_least(0.0),
  # logits over a smaller one overflow
  "sampler.temperature": Rule(float, "a finite float32, above 0 (by 1e-6)", lambda v: v >= 1e-6),
  "sampler.dtype": _one_of(*quantize.DTYPES),
  "sampler.devices": Rule(
    str, "ids like 4,5,6,7, or empty", lambda value: bool(re.fullmatch(_DEVICES, value))
  ),
  "sampler.tensor": Rule(
    int, f"one of {', '.join(map(str, TENSOR))}", lambda value: value in TENSOR
  ),
  "sampler.attention": _one_of(*models.DECODE_ATTENTION),
  "task.name": TEXT,
  "task.options": Rule(dict, "options by name, of values that JSON has"),
  "task.mixture": Rule(dict, "tasks by label, each with name, weight and options"),
  "task.curriculum.floor": _fraction(open_top=False),
  "task.curriculum.decay": _fraction(open_top=True),
  "task.train_size": _at_least(0),
  "task.test_size": _at_least(0),
  "task.max_prompt_tokens": _at_least(0),
  "task.seed": _at_least(0),
  "task.data_dir": Rule(str, "a directory", bool),
  "task.reward": TEXT,
  "task.grade_timeout_s": _seconds(),
  "task.grade_processes": _at_least(1),
  "task.grade_memory_gb": _above(0.0),
  "task.max_grade_failures": _between(0.0, 1.0),
  "reward.format": _one_of("tag", "boxed", "last_line", "number"),
  "reward.format_weight": NUMBER,
  "reward.overlong_buffer": _at_least(0),
  "reward.overlong_factor": _at_least(0.0),
  "reward.max_length": _at_least(0),
  "reward.length_cap": _at_least(0),
  "reward.low": NUMBER,
  "reward.high": NUMBER,
  "policy.path": TEXT,
  "policy.width": _at_least(1),
  "policy.layers": _at_least(1),
  "policy.heads": _at_least(1),
  "policy.kv_heads": _at_least(1),
  "policy.head_width": Rule(
    int,
    "an integer, even and at least 2",
    lambda value: 2 <= value <= _LARGEST_INT and not value % 2,
  ),
  "policy.mlp_width": _at_least(1),
  "policy.experts": _at_least(0),
  "policy.active_experts": _at_least(0),
  "policy.rope_theta": _above(0.0),
  "policy.remat": _one_of(*models.REMAT),
  "policy.attention": _one_of(*models.ATTENTION),
  "policy.dtype": _one_of(*models.DTYPES),
  "policy.gathered_mb": _at_least(0.0),
  "lora.rank": _at_least(0),
  "lora.alpha": _above(0.0),
  "lora.targets": Rule(str, "a regular expression", _is_pattern),
  "optimizer.learning_rate": _at_least(0.0),
  "optimizer.warmup_updates": _at_least(0),
  "optimizer.decay": _one_of("none", "cosine"),
  "optimizer.beta1": _fraction(open_top=True),
  "optimizer.beta2": _fraction(open_top=True),
  "optimizer.epsilon": _above(0.0),
  "optimizer.weight_decay": _at_least(0.0),
  "optimizer.max_grad_norm": _at_least(0.0),
  "optimizer.momentum_dtype": _one_of("float32", "bfloat16"),
  "optimizer.offload": FLAG,
  "optimizer.integrator": _one_of("euler", "heun", "rk4"),
  "optimizer.ess_scaling": _one_of("none", "sqrt", "linear"),
  "optimizer.ess_base": _fraction(open_top=False),
  "evaluation.every": _at_least(0),
  "evaluation.problems": _at_least(1),
  "evaluation.samples_per_problem": _at_least(1),
  "checkpoint.every": _at_least(0),
  "checkpoint.keep_last": _at_least(1),
  "checkpoint.keep_every": _at_least(0),
  "checkpoint.keep_best": _at_least(0),
  "checkpoint.best_metric": Rule(str, "a metric, like 'reward/mean'", lambda value: "/" in value),
  "checkpoint.save_within_s": _seconds(),
  "guards.max_grad_norm": _at_least(0.0),
  "guards.max_log_w": _at_least(0.0),
  "guards.max_skipped": _at_least(0),
  "rollouts.save_groups": Rule(
    int, "an integer, at least -1 and below 2**31", lambda value: -1 <= value <= _LARGEST_INT
  ),
  "rollouts.save_tokens": FLAG,
  "rollouts.save_all": FLAG,
  "metrics.tensorboard": FLAG,
  "sft.loss": _one_of("cross_entropy", "dft"),
  "sft.data": TEXT,
  "sft.held_out_data": TEXT,
  "sft.held_out": _at_least(0),
  "sft.epochs": _at_least(0.0),
  "sft.row_tokens": _at_least(2),
  "rewrite.problems": _at_least(0),
  "rewrite.samples": _at_least(1),
  "rewrite.guided_samples": _at_least(1),
  "rewrite.guide": Rule(
    str,
    "a text with {question} and {solution} in it",
    lambda value: "{question}" in value and "{solution}" in value,
  ),
  "distributed.enabled": FLAG,
  "distributed.coordinator_address": Rule(
    str, "HOST:PORT, or nothing", lambda value: not value or value.rpartition(":")[2].isdecimal()
  ),
  "distributed.num_processes": _at_least(0),
  "distributed.process_id": _at_least(-1),
  "distributed.initialization_timeout_s": _at_least(1),
  "distributed.heartbeat_timeout_s": _at_least(10),
  **{f"mesh.{axis}": _axis() for axis in MESH_AXES},
}

# Ranges of the numbers that are options of methods; an option has one meaning in all of them.
# Numbers that are not listed may be any, and texts are checked by the method.
_OPTIONS: dict[str, Rule] = {
  "budget": _above(0.0),
  "cap": _above(0.0),
  "clip_high": _at_least(0.0),
  "clip_low": _at_least(0.0),
  "coefficient": _at_least(0.0),
  "delta": _above(0.0),
  "dual_clip": Rule(
    float, "a finite float32, above 1, or 0", lambda value: value == 0 or value > 1
  ),
  "epsilon": _above(0.0),
  "f_norm": _above(0.0),
  "high": _above(0.0),
  "high_end": _above(0.0),
  "high_start": _above(0.0),
  "k_neg": _between(-1000.0, 1000.0),
  "k_pos": _between(-1000.0, 1000.0),
  "lambda_neg": _between(0.0, 1000.0),
  "lambda_pos": _between(0.0, 1000.0),
  "low": _at_least(0.0),
  "low_end": _at_least(0.0),
  "low_start": _at_least(0.0),
  "ratio_cap": _at_least(0.0),
  "selected": _between(0.0, 1.0),
  "step": _above(0.0),
  "target": _above(0.0),
  "tau_neg": _above(0.0),
  "tau_pos": _above(0.0),
  "threshold": _above(0.0),
}
_BY_TYPE = {int: Rule(int, "an integer"), float: NUMBER, bool: FLAG, str: TEXT}
RULES |= {
  f"{room}.{name}.{option}": _OPTIONS.get(option, _BY_TYPE[type(default)])
  for room, methods in ROOMS.items()
  for name in methods.names()
  for option, default in methods.defaults(name).items()
}
