"""Safetensors files: one, or several with an index that says which tensor is where."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

from vespo_jax.tokenizers import read_json
from vespo_jax.weights.source import Source, Stored

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 4 * 10**9
_FLOATS = ("F64", "F32", "F16", "BF16")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def open_directory(directory: Path) -> Source:
  """The tensors of the safetensors files in `directory`; only their headers are read here.

  Raises:
    FileNotFoundError: naming the file that is missing.
    ValueError: naming the file, and the tensor, if a file is truncated or corrupt, a tensor is in
      two files, the index and the files disagree, a type is no float, or there are only pickles.
  """
  index, tensors = _index(directory), {}
  for file in sorted({directory / SINGLE} if index is None else set(index.values())):
    if not file.is_file():
      raise FileNotFoundError(f"no {file.name} in {directory}, which {INDEX} names")
    for name, shape in _shapes(file).items():
      if name in tensors:
        raise ValueError(f"{name} is in two files: {tensors[name].file} and {file}")
      tensors[name] = Stored(name, file, shape)
  if index is not None:
    for name in sorted(set(index) | set(tensors)):
      if name not in index:
        raise ValueError(f"{name} in {tensors[name].file} is not in {INDEX}")
      if name not in tensors or tensors[name].file != index[name]:
        raise ValueError(f"{name} is not in {index[name]}, where {INDEX} has it")

  def read(names: Sequence[str]) -> Iterator[np.ndarray]:
    with contextlib.ExitStack() as stack:  # files are mapped: closing them frees their pages
      opened: dict[Path, safetensors.safe_open] = {}
      for name in names:
        file = tensors[name].file
        try:
          if file not in opened:
            opened[file] = stack.enter_context(safetensors.safe_open(file, "np"))
          yield opened[file].get_tensor(name)
        except safetensors.SafetensorError as error:
          raise ValueError(f"{name} in {file} is not readable: {error}") from error

  return Source(directory, tensors, read)


def write(directory: Path, sizes: Mapping[str, int], get: Callable[[str], np.ndarray]) -> None:
  """Writes one file, or shards of at most `MAX_SHARD_BYTES` and their index, over older ones.

  `sizes` are the bytes of each tensor, in the order they are written; `get` gives a tensor by name.
  """
  for pattern in (SINGLE, INDEX, "model-*-of-*.safetensors"):
    for old in directory.glob(pattern):
      old.unlink()
  groups: list[list[str]] = []
  room = 0
  for name, size in sizes.items():
    if not groups or size > room:
      groups.append([])
      room = MAX_SHARD_BYTES
    groups[-1].append(name)
    room -= size
  files = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
  if len(groups) == 1:
    files = [SINGLE]
  for file, names in zip(files, groups, strict=True):
    save({name: get(name) for name in names}, directory / file)
  if len(groups) > 1:
    where = {name: file for file, names in zip(files, groups, strict=True) for name in names}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def save(tensors: dict[str, np.ndarray], path: Path) -> None:
  """Writes a safetensors file. Raises OSError if that cannot be, for want of room say."""
  try:
    save_file(tensors, path, metadata={"format": "pt"})
  except safetensors.SafetensorError as error:
    raise OSError(f"{path} cannot be written: {error}") from error


def refuse_pickle(path: Path) -> None:
  """Raises ValueError if `path` is a pickle file by its name."""
  if path.suffix in _PICKLES:
    raise ValueError(
      f"{path} is a pickle, which runs code when it is read; convert it to safetensors"
    )


def _index(directory: Path) -> dict[str, Path] | None:
  """Tensor name -> file of a sharded model, or None where there is one file."""
  if (directory / SINGLE).is_file():
    return None
  if not (directory / INDEX).is_file():
    for path in sorted(directory.iterdir()):
      refuse_pickle(path)
    raise FileNotFoundError(f"no {SINGLE} and no {INDEX} in {directory}")
  index = read_json(directory / INDEX).get("weight_map")
  if not isinstance(index, dict) or not index:
    raise ValueError(f"{directory / INDEX} has no weight_map")
  for name, file in index.items():
    if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
      raise ValueError(f"{directory / INDEX}: {name} is in {file!r}, not a safetensors file beside")
  return {name: directory / file for name, file in index.items()}


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
  try:
    with safetensors.safe_open(file, framework="np") as opened:
      slices = {name: opened.get_slice(name) for name in opened.keys()}
      for name, piece in slices.items():
        if piece.get_dtype() not in _FLOATS:
          raise ValueError(f"{name} in {file} is {piece.get_dtype()}; known: {', '.join(_FLOATS)}")
      return {name: tuple(piece.get_shape()) for name, piece in slices.items()}
  except safetensors.SafetensorError as error:
    raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
