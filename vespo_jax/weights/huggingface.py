"""Reading and writing a model as a Hugging Face directory: configs, safetensors, tokenizer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vespo_jax.models import ModelSpec
from vespo_jax.tokenizers import Tokenizer, read_json
from vespo_jax.types import Params
from vespo_jax.weights import shards
from vespo_jax.weights.names import Row, table
from vespo_jax.weights.source import assemble


def load(
  directory: Path, dtype: jnp.dtype = jnp.float32, shardings: Params | None = None
) -> tuple[ModelSpec, Params, Tokenizer]:
  """The model in `directory`: `config.json`, safetensors and `tokenizer.json`, and, if they are
  there, `tokenizer_config.json`, `chat_template.jinja` and `generation_config.json`.

  Raises:
    FileNotFoundError: naming the missing file.
    ValueError: naming an unsupported config key, or what `shards.open_directory`,
      `source.assemble` or the tokenizer refuses.
  """
  config = read_json(directory / "config.json")
  spec = read_spec(config, directory / "config.json")
  source = shards.open_directory(directory)
  generation = {key: config.get(key) for key in ("bos_token_id", "eos_token_id")}
  path = directory / "generation_config.json"
  if path.is_file():
    generation |= {k: v for k, v in read_json(path).items() if v is not None}
  tokenizer = Tokenizer.load(directory, generation)
  check_vocabulary(spec, tokenizer, directory)
  return spec, assemble(spec, source, dtype, shardings), tokenizer


def load_spec(directory: Path) -> ModelSpec:
  """The architecture of the model in `directory`. Raises FileNotFoundError or ValueError."""
  path = directory / "config.json"
  return read_spec(read_json(path), path)


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
  rows = {row.name: row for row in table(spec)}

  def stacked(row: Row) -> Any:
    value: Any = params
    for key in row.path:
      value = value[key]
    return value

  def stored_type(row: Row) -> np.dtype:
    return np.dtype(stacked(row).dtype if dtype is None else dtype)

  def tensor(name: str) -> np.ndarray:
    row = rows[name]
    value = np.asarray(stacked(row)[row.index])
    return np.ascontiguousarray(value.T if row.transposed else value, dtype=stored_type(row))

  ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
  config = {
    **spec.to_hf_config(),
    "torch_dtype": stored_type(next(iter(rows.values()))).name,
    **ids,
  }
  stops = tokenizer.stop_ids
  generation = {**tokenizer.generation, **ids}
  generation["eos_token_id"] = list(stops) if len(stops) > 1 else stops[0]
  directory.mkdir(parents=True, exist_ok=True)
  sizes = {name: math.prod(row.shape) * stored_type(row).itemsize for name, row in rows.items()}
  shards.write(directory, sizes, tensor)
  _write_json(directory / "config.json", config)
  _write_json(directory / "generation_config.json", generation)
  tokenizer.save(directory)


def read_spec(config: dict[str, Any], path: Path) -> ModelSpec:
  """The spec of a `config.json`. Raises ValueError naming the key, and the file at `path`."""
  try:
    return ModelSpec.from_hf_config(config)
  except KeyError as error:
    raise ValueError(f"{path}: {error.args[0]} is missing") from error
  except (TypeError, ValueError) as error:
    raise ValueError(f"{path}: {error}") from error


def check_vocabulary(spec: ModelSpec, tokenizer: Tokenizer, path: Path) -> None:
  """Raises ValueError if the tokenizer has an id that the model has no embedding for."""
  last = max(tokenizer.backend.get_vocab().values())
  if last >= spec.vocab_size:
    raise ValueError(
      f"the tokenizer of {path} has an id {last}, its model a vocabulary of {spec.vocab_size}"
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n")
