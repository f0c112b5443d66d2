"""Reading and writing models: `load` and `save`, also `models.load` and `models.save`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp

from vespo_jax import exports
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
  path = _find(path)
  with _refusing_nonsense(path):
    room = gguf_model if path.is_file() else huggingface
    return room.load(path, dtype, shardings)


def read_spec(path: str | Path) -> ModelSpec:
  """The architecture of the model at `path`, of which only the description is read.

  Raises as `load`.
  """
  path = _find(path)
  with _refusing_nonsense(path):
    return (gguf_model if path.is_file() else huggingface).load_spec(path)


def _find(path: str | Path) -> Path:
  """The file or directory of the model at `path`."""
  path = Path(path)
  if path.is_file():
    shards.refuse_pickle(path)
    return path
  if not path.is_dir():
    raise FileNotFoundError(f"no such model: {path}")
  if (path / "metrics.jsonl").is_file():
    run, path = path, path / "model"
    if not path.is_dir():
      raise FileNotFoundError(f"no {path}: the run has not finished, or saved no model")
    if (run / "result.json").is_file() and exports.finished_updates(run) is None:
      raise FileNotFoundError(
        f"{path} is of an earlier end of the run, which has gone on since: finish it, or take what "
        f"it has: python -m vespo_jax.convert --model={run} --out=DIRECTORY"
      )
  return path


@contextlib.contextmanager
def _refusing_nonsense(path: Path) -> Iterator[None]:
  """Raises ValueError for what files say that is of another type or size than anybody writes."""
  try:
    yield
  except (ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
    raise ValueError(f"{path} is no model that can be read: {error!r:.200}") from error


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


__all__ = ["load", "load_adapters", "read_spec", "save", "save_adapters"]
