"""LoRA adapters as a directory in PEFT's layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from vespo_jax.models.lora import MODULES, LoraSettings
from vespo_jax.tokenizers import read_json
from vespo_jax.types import Params
from vespo_jax.weights.shards import save

_NAME = "base_model.model.model.layers.{}.{}.lora_{}.weight"
_LAYER = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.")
# Of PEFT's config, what is read, or says nothing about W + s A B; all else must be off.
_HARMLESS = frozenset(
  (
    *("r", "lora_alpha", "target_modules", "task_type", "inference_mode", "lora_dropout"),
    *("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "layers_pattern"),
    *("megatron_core", "qalora_group_size", "runtime_config", "eva_config"),
  )
)
# that leave W as it is; others, as PiSSA's, take what they start from off it
_INITS = (True, False, "gaussian", "orthogonal", "eva")
_ONE_VALUE = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": _INITS}


def save_adapters(directory: str | Path, adapters: Params, settings: LoraSettings) -> None:
  """Writes `adapter_config.json` and `adapter_model.safetensors`, which PEFT loads too."""
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  tensors = {}
  for key, adapter in adapters["layers"].items():
    for part, letter in (("a", "A"), ("b", "B")):
      for layer, kernel in enumerate(np.asarray(adapter[part])):
        tensors[_NAME.format(layer, MODULES[key], letter)] = np.ascontiguousarray(kernel.T)
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": settings.rank,
    "lora_alpha": settings.alpha,
    "target_modules": [MODULES[key].rpartition(".")[2] for key in adapters["layers"]],
    "bias": "none",
    "lora_dropout": 0.0,
    "inference_mode": True,
  }
  save(tensors, directory / "adapter_model.safetensors")
  (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_adapters(directory: str | Path) -> tuple[Params, LoraSettings]:
  """Adapters as `lora.attach` and `lora.merge` take them, and their settings.

  Raises:
    FileNotFoundError: naming the missing file.
    ValueError: naming a file that is not readable, a key of the config that is missing or not
      supported, or a tensor that is unknown, or missing in some layer.
  """
  directory = Path(directory)
  for name in ("adapter_config.json", "adapter_model.safetensors"):
    if not (directory / name).is_file():
      raise FileNotFoundError(f"no {name} in {directory}")
  config = read_json(directory / "adapter_config.json")
  for key in ("peft_type", "r", "lora_alpha", "target_modules"):
    if key not in config:
      raise ValueError(f"{key} is missing in {directory}/adapter_config.json")
  targets = config["target_modules"]
  unsupported = [key for key in config if not _is_supported(key, config[key])]
  unsupported += [] if isinstance(targets, list) else ["target_modules"]  # a pattern, or a keyword
  if unsupported:
    key = unsupported[0]
    raise ValueError(f"{key}={config[key]!r} in {directory}/adapter_config.json is not supported")
  settings = LoraSettings(config["r"], config["lora_alpha"], "|".join(targets))
  path = directory / "adapter_model.safetensors"
  try:
    with safetensors.safe_open(path, framework="np") as file:
      tensors = {name: file.get_tensor(name) for name in file.keys()}
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path} is not readable: {error}") from error
  numbers = [int(found[1]) for name in tensors if (found := _LAYER.match(name))]
  layers = 1 + max(numbers, default=-1)
  if layers > len(tensors):
    raise ValueError(f"{directory} has {len(tensors)} tensors, too few for {layers} layers")
  adapters: Params = {}
  for key, module in MODULES.items():
    names = {p: [_NAME.format(i, module, p.upper()) for i in range(layers)] for p in ("a", "b")}
    present = [name for part in names.values() for name in part if name in tensors]
    if not present:
      continue
    missing = sorted({name for part in names.values() for name in part} - set(present))
    if missing:
      raise ValueError(f"missing tensors in {directory}: {', '.join(missing[:5])}")
    adapters[key] = {
      p: jnp.stack([jnp.asarray(tensors.pop(name).T) for name in part]) for p, part in names.items()
    }
  if tensors:
    raise ValueError(f"unknown tensors in {directory}: {', '.join(sorted(tensors)[:5])}")
  return {"layers": adapters}, settings


def _is_supported(key: str, value: Any) -> bool:
  """Whether adapters of such a config are W + s A B in all layers, at all tokens."""
  if key in _ONE_VALUE:
    return value is None or value in _ONE_VALUE[key]
  return key in _HARMLESS or not value
