"""What every key of a config may be, in words and as a test."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from vespo_jax import models, objectives
from vespo_jax.models import quantize
from vespo_jax.runtime import TRANSPORTS
from vespo_jax.sampler import PARTIAL_ROLLOUTS

REPLAY = "replay:"  # what a value starts with that names a run to replay

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


def _one_of_or_replay(*choices: str) -> _Rule:
  text, is_choice = _one_of(*choices)
  return f"{text}, or 'replay:RUN'", lambda value: is_choice(value) or value.startswith(REPLAY)


def _is_pattern(text: str) -> bool:
  try:
    re.compile(text)
  except re.error:
    return False
  return True


RULES: dict[str, _Rule] = {
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
  "moe.balance_coefficient": _at_least(0),
  "moe.z_coefficient": _at_least(0),
  "moe.replay": _one_of("off", "R2", "R3"),
  "batch.prompts": _at_least(1),
  "batch.samples_per_prompt": _at_least(1),
  "batch.micro_batches": _at_least(1),
  "staleness.minibatches": _at_least(1),
  "runtime.mode": _one_of("sync", "async"),
  "runtime.max_staleness": _at_least(0),
  "runtime.sync_every": _at_least(1),
  "runtime.clock": _one_of_or_replay("wall", "logical"),
  "runtime.partial_rollouts": _one_of(*PARTIAL_ROLLOUTS),
  "runtime.transport": _one_of(*TRANSPORTS),
  "runtime.integrity": _one_of("off", "flag", "quarantine"),
  "runtime.ray.num_cpus": _at_least(0),
  "runtime.ray.num_gpus": _at_least(0),
  "runtime.profile_updates": _at_least(0),
  "runtime.timeout_s": _above(0),
  "runtime.hang_timeout_s": _above(0),
  "runtime.max_failures": _at_least(0),
  "runtime.gpu_memory_fraction": _fraction(open_top=False),
  "sampler.source": _one_of_or_replay("process"),
  "sampler.processes": _at_least(1),
  "sampler.slots": _at_least(0),
  "sampler.max_new_tokens": _at_least(1),
  "sampler.top_k": _at_least(0),
  "sampler.top_p": _fraction(open_top=False),
  "sampler.min_p": _fraction(open_top=True),
  "sampler.weight_noise": _at_least(0),
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
  "policy.experts": _at_least(0),
  "policy.active_experts": _at_least(0),
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
  "checkpoint.keep_last": _at_least(1),
  "checkpoint.keep_every": _at_least(0),
  "checkpoint.keep_best": _at_least(0),
  "checkpoint.best_metric": ("a metric, like 'reward/mean'", lambda value: "/" in value),
  "checkpoint.save_within_s": _above(0),
  "guards.max_grad_norm": _at_least(0),
  "guards.max_log_w": _at_least(0),
  "guards.max_skipped": _at_least(0),
  "rollouts.save_groups": _at_least(-1),
}
