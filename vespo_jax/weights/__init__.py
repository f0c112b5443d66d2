"""Reading and writing models: `load` and `save`, also `models.load` and `models.save`."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from vespo_jax.models import ModelSpec
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Params
from vespo_jax.weights import huggingface


def load(path: str | Path, dtype: jnp.dtype = jnp.float32) -> tuple[ModelSpec, Params, Tokenizer]:
  """The model at `path`: a Hugging Face directory, or a run directory with its last export.

  Raises:
    FileNotFoundError: if there is no such directory, or a file of it is missing.
    ValueError: naming what in it is unsupported, unknown, missing or mis-shaped.
  """
  directory = Path(path)
  if not directory.is_dir():
    raise FileNotFoundError(f"no such model directory: {directory}")
  if (directory / "metrics.jsonl").is_file():
    directory /= "model"
  return huggingface.load(directory, dtype)


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
