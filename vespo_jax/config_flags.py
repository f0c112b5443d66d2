"""Flags that would change nothing: what was given by hand was given for a reason, so they are
refused. In a config file the same keys are there for other runs, and are no matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ml_collections import FrozenConfigDict

from vespo_jax.config_rules import ROOMS, ConfigError, replayed, shown

SIZES = (  # of `policy`: of a model from random weights
  "width",
  "layers",
  "heads",
  "kv_heads",
  "head_width",
  "mlp_width",
  "rope_theta",
  "experts",
  "active_experts",
)

PROCESS_KEYS = (  # of `distributed`: of one of several processes
  "coordinator_address",
  "num_processes",
  "process_id",
  "initialization_timeout_s",
  "heartbeat_timeout_s",
)

# where keys have no effect, in words for after "with", or ""
_Where = Callable[[FrozenConfigDict], str]


def _model(config: FrozenConfigDict) -> str:
  path = config.policy.path
  return path and f"policy.path={shown(path)}, a model that has its own"


def _synchronous(config: FrozenConfigDict) -> str:
  return "runtime.mode='sync'" if config.runtime.mode == "sync" else ""


def _mixture(config: FrozenConfigDict) -> str:
  return "a task.mixture, whose tasks have their own" if config.task.mixture else ""


def _no_adapters(config: FrozenConfigDict) -> str:
  return "" if config.lora.rank else "lora.rank=0"


def _no_format(config: FrozenConfigDict) -> str:
  return "" if config.reward.format_weight else "reward.format_weight=0"


def _no_overlong(config: FrozenConfigDict) -> str:
  return "" if config.reward.overlong_buffer else "reward.overlong_buffer=0"


def _no_curriculum(config: FrozenConfigDict) -> str:
  return "" if config.task.curriculum.floor < 1 else "task.curriculum.floor=1"


def _no_filter(config: FrozenConfigDict) -> str:
  return "" if config.batch.dynamic.enabled else "batch.dynamic.enabled=False"


def _no_kl(config: FrozenConfigDict) -> str:
  return "" if config.kl.coefficient else "kl.coefficient=0"


def _no_step(config: FrozenConfigDict) -> str:
  return "proximal_step.divergence='none'" if config.proximal_step.divergence == "none" else ""


def _no_scaling(config: FrozenConfigDict) -> str:
  return "optimizer.ess_scaling='none'" if config.optimizer.ess_scaling == "none" else ""


def _no_pieces(config: FrozenConfigDict) -> str:
  return "" if config.runtime.weights == "pieces" else f"runtime.weights={config.runtime.weights!r}"


def _no_ray(config: FrozenConfigDict) -> str:
  used = config.runtime.transport == "ray"
  return "" if used else f"runtime.transport={config.runtime.transport!r}"


def _alone(config: FrozenConfigDict) -> str:
  return "" if config.distributed.enabled else "distributed.enabled=False"


def _replayed(config: FrozenConfigDict) -> str:
  source = config.sampler.source
  return "" if replayed(source) is None else f"sampler.source={shown(source)}, which has sampled"


_WITHOUT_EFFECT: dict[str, _Where] = {  # by key, or section
  **{f"policy.{size}": _model for size in SIZES},
  "runtime.max_staleness": _synchronous,
  "runtime.sync_every": _synchronous,
  "task.name": _mixture,
  "task.options": _mixture,
  "lora.alpha": _no_adapters,
  "lora.targets": _no_adapters,
  "reward.format": _no_format,
  "reward.overlong_factor": _no_overlong,
  "reward.max_length": _no_overlong,
  "task.curriculum.decay": _no_curriculum,
  "batch.dynamic.max_rounds": _no_filter,
  "kl.estimator": _no_kl,
  "kl.placement": _no_kl,
  "proximal_step.step_size": _no_step,
  "optimizer.ess_base": _no_scaling,
  "runtime.pieces": _no_pieces,
  "runtime.ray": _no_ray,
  **{f"distributed.{key}": _alone for key in PROCESS_KEYS},
  "sampler.weight_noise": _replayed,
}


def check_effect(keys: Iterable[str], config: FrozenConfigDict) -> None:
  """Raises ConfigError for the first of the overridden `keys` that has no effect in `config`."""
  for key in keys:
    where = next(
      (of(config) for known, of in _WITHOUT_EFFECT.items() if f"{key}.".startswith(f"{known}.")),
      _other_method(key, config),
    )
    if where:
      raise ConfigError(f"--config.{key} has no effect with {where}")


def _other_method(key: str, config: FrozenConfigDict) -> str:
  kind, _, inside = key.partition(".")
  method = inside.partition(".")[0]
  if kind not in ROOMS or method not in ROOMS[kind].names() or method == config[kind].name:
    return ""
  return f"{kind}.name={config[kind].name!r}"
