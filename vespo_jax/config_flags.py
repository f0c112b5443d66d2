"""Flags that would change nothing: what was given by hand was given for a reason, so they are
refused. In a config file the same keys are there for other runs, and are no matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ml_collections import FrozenConfigDict

from vespo_jax.config_rules import ROOMS, ConfigError, shown

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


_WITHOUT_EFFECT: dict[str, _Where] = {  # by key, or section
  **{f"policy.{size}": _model for size in SIZES},
  "runtime.max_staleness": _synchronous,
  "runtime.sync_every": _synchronous,
  "task.name": _mixture,
  "task.options": _mixture,
  "lora.alpha": _no_adapters,
  "lora.targets": _no_adapters,
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
