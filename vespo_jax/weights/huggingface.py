"""Reading and writing a model as a Hugging Face directory: config, safetensors, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from vespo_jax.models import ModelSpec, describe
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Params
from vespo_jax.weights.names import table


def load(directory: Path, dtype: jnp.dtype = jnp.float32) -> tuple[ModelSpec, Params, Tokenizer]:
  """The model in `directory`: `config.json`, `model.safetensors`, `tokenizer.json`.

  Every tensor is checked against the config before it is used.

  Raises:
    FileNotFoundError: naming the missing file.
    ValueError: naming an unsupported config key, or an unknown, missing or mis-shaped tensor.
  """
  config = _read_json(directory / "config.json")
  spec = ModelSpec.from_hf_config(config)
  path = directory / "model.safetensors"
  if not path.is_file():
    raise FileNotFoundError(f"no model.safetensors in {directory}")
  params = {
    key: {name: np.empty(info.shape, dtype) for name, info in value.items()}
    if isinstance(value, dict)
    else np.empty(value.shape, dtype)
    for key, value in describe(spec).items()
  }
  rows = {row.name: row for row in table(spec)}
  try:
    with safetensors.safe_open(path, framework="np") as file:
      names = set(file.keys())
      if spec.tied_embeddings and "lm_head.weight" in names:  # some writers store the tied copy
        names.discard("lm_head.weight")
      for problem, group in (("unknown", names - set(rows)), ("missing", set(rows) - names)):
        if group:
          raise ValueError(f"{problem} tensors in {path}: {', '.join(sorted(group)[:5])}")
      for name, row in rows.items():
        tensor = file.get_tensor(name)
        if tensor.shape != row.shape:
          raise ValueError(f"{name} in {path} has shape {tensor.shape}, expected {row.shape}")
        target: Any = params
        for key in row.path:
          target = target[key]
        if row.layer is not None:
          target = target[row.layer]
        target[...] = tensor.T if row.transposed else tensor
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
  special = _read_json(directory / "tokenizer_config.json")
  bos = special["bos_token"] if special.get("add_bos_token", True) else None
  tokenizer = Tokenizer.load(directory, bos=bos, eos=special["eos_token"])
  return spec, _to_jax(params), tokenizer


def save(
  directory: Path,
  spec: ModelSpec,
  params: Params,
  tokenizer: Tokenizer,
  dtype: jnp.dtype | None = None,
) -> None:
  """Writes a directory that `load`, and `transformers`, read back.

  `dtype` is that of the stored tensors; None keeps the parameters' own, so that nothing is rounded.
  """
  directory.mkdir(parents=True, exist_ok=True)
  tensors = {}
  for row in table(spec):
    value: Any = params
    for key in row.path:
      value = value[key]
    value = np.asarray(value if row.layer is None else value[row.layer])
    value = value.T if row.transposed else value
    tensors[row.name] = np.ascontiguousarray(value, dtype=dtype)
  stored = next(iter(tensors.values())).dtype
  config = {**spec.to_hf_config(), "torch_dtype": str(stored)}
  config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
  special = {
    "bos_token": tokenizer.bos,
    "eos_token": tokenizer.eos,
    "add_bos_token": tokenizer.bos is not None,
    "tokenizer_class": "PreTrainedTokenizerFast",
  }
  save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
  (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
  (directory / "tokenizer_config.json").write_text(json.dumps(special, indent=2) + "\n")
  tokenizer.save(directory)


def _to_jax(params: Params) -> Params:
  return {k: _to_jax(v) if isinstance(v, dict) else jnp.asarray(v) for k, v in params.items()}


def _read_json(path: Path) -> dict:
  if not path.is_file():
    raise FileNotFoundError(f"no {path.name} in {path.parent}")
  return json.loads(path.read_text())
