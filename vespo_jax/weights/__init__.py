"""Reading and writing models: `load` and `save`, also `models.load` and `models.save`."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from vespo_jax.models import ModelSpec
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Params
from vespo_jax.weights import gguf_model, huggingface, shards
from vespo_jax.weights.adapters import load_adapters, save_adapters


def load(
  path: str | Path, dtype: jnp.dtype = jnp.float32, shardings: Params | None = None
) -> tuple[ModelSpec, Params, Tokenizer]:
  """The model at `path`: a Hugging Face directory, a GGUF file, or a run directory with its last
  export.

  It is read tensor by tensor into arrays of type `dtype`, placed as `shardings` (a tree like that
  of `sharding.param_shardings`) says, or on the default device.

  Raises:
    FileNotFoundError: if there is nothing at `path`, or a file of the directory is missing.
    ValueError: naming the file and what in it is unsupported, unknown, missing, there twice,
      mis-shaped, truncated or corrupt; or that it is a pickle.
  """
  path = Path(path)
  if path.is_file():
    shards.refuse_pickle(path)
    return gguf_model.load(path, dtype, shardings)
  if not path.is_dir():
    raise FileNotFoundError(f"no such model: {path}")
  if (path / "metrics.jsonl").is_file():
    path /= "model"
    if not path.is_dir():
      raise FileNotFoundError(f"no {path}: the run has not finished, or saved no model")
  return huggingface.load(path, dtype, shardings)


def save(
  path: str | Path,
  spec: ModelSpec,
  params: Params,
  tokenizer: Tokenizer,
  *,
  format: str = "hf",
  dtype: jnp.dtype | None = None,
) -> None:
  """Writes the model to `path` as a Hugging Face directory, in the parameters' own type or `dtype`.

  Raises ValueError for a `format` other than "hf".
  """
  if format != "hf":
    raise ValueError(f"unknown model format {format!r}; known: hf")
  huggingface.save(Path(path), spec, params, tokenizer, dtype)


__all__ = ["load", "load_adapters", "save", "save_adapters"]
