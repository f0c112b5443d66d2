"""Every rollout of a run on disk, one Parquet file per update, so that any objective can be trained
on exactly the same data without a sampler.

A row is a rollout and a column one of its fields: the columns are read off `Rollout` itself. An
array is a list of its elements; what comes after its token axis stands in the column's metadata.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Rollout

FORMAT = 2
_KEY = b"vespo_jax.rollouts"
# by annotation
_SCALARS: dict[Any, pa.DataType] = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
_FIELDS = {field.name: field for field in dataclasses.fields(Rollout)}


@dataclasses.dataclass(frozen=True)
class Origin:
  """What makes the rollouts of one run fit another one.

  Attributes:
    vocabulary: digest of the token ids and their texts, from `vocabulary_digest`.
    task: its name.
    problems: digest of what makes them those that an `example_id` numbers.
    temperature: of the softmax that was sampled, which is the policy that is trained.
    prompts, samples_per_prompt: of a minibatch.
  """

  vocabulary: str
  task: str
  problems: str
  temperature: float
  prompts: int
  samples_per_prompt: int


def vocabulary_digest(tokenizer: Tokenizer) -> str:
  """SHA-256 of what every token id means."""
  vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
  return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


class RolloutWriter:
  """Writes the minibatches of a run, each as a whole file or not at all.

  Args:
    directory: made if missing.
    origin: what is written with every minibatch.
  """

  def __init__(self, directory: Path, origin: Origin):
    self._directory, self._origin = directory, origin
    directory.mkdir(parents=True, exist_ok=True)

  def write(self, update: int, rollouts: Sequence[Rollout]) -> Path:
    """Writes the graded minibatch of an update over an earlier one; returns its file.

    Args:
      update: the number of committed updates once this minibatch was trained on, from 1.
      rollouts: prompt-major.

    Raises ValueError if they are not whole groups, or arrays of one field differ in their type or
    in the axes after tokens.
    """
    P, R = self._origin.prompts, self._origin.samples_per_prompt
    groups = [rollout.group_id for rollout in rollouts]
    if len(groups) != P * R or groups != [group for group in groups[::R] for _ in range(R)]:
      raise ValueError(f"the minibatch of update {update} is not {P} groups of {R} rollouts")
    columns, fields = [], []
    for name in _FIELDS:
      values = [getattr(rollout, name) for rollout in rollouts]
      if any(value is not None for value in values):
        column, field = _column(name, values)
        columns.append(column)
        fields.append(field)
    about = _about(update, dataclasses.asdict(self._origin)) | {"digest": _digest(rollouts)}
    table = pa.table(columns, schema=pa.schema(fields, {_KEY: json.dumps(about)}))
    path = _file(self._directory, update)
    half = path.with_suffix(".tmp")
    pq.write_table(table, half, compression="zstd")
    os.replace(half, path)
    return path

  def truncate(self, update: int) -> None:
    """Removes the minibatches of later updates, and half a file that a crash has left."""
    for path in self._directory.glob("*.parquet"):
      if path.stem.isdecimal() and int(path.stem) > update:
        path.unlink()
    for half in self._directory.glob("*.tmp"):
      half.unlink()


class SavedRollouts:
  """The minibatches that another run has written.

  Args:
    directory: where its `RolloutWriter` wrote.
    expected: what they must come from.
    updates: how many minibatches, from the first, there must be.
    experts: (layers, experts of a token, experts) of a policy that replays the sampler's choices
      (R3); None: it does not, and is given none.

  Raises:
    ValueError: naming the directory or file and what is wrong: a minibatch that is missing, or a
      first one that `read` refuses.
  """

  def __init__(
    self,
    directory: Path,
    expected: Origin,
    updates: int,
    experts: tuple[int, int, int] | None = None,
  ):
    self._directory, self._expected, self._experts = directory, expected, experts
    check(directory, dataclasses.asdict(expected), updates)
    self.read(1)

  def read(self, update: int) -> list[Rollout]:
    """See the function `read`. Raises ValueError too if the experts that were chosen are wanted
    and are not there, or cannot be the policy's."""
    rollouts = read(self._directory, self._expected, update)
    if self._experts is None:
      return [dataclasses.replace(rollout, expert_ids=None) for rollout in rollouts]
    layers, active, experts = self._experts
    for rollout in rollouts:
      ids_TLA, name = rollout.expert_ids, _file(self._directory, update)
      if ids_TLA is None:
        raise ValueError(f"{name} has no choices of experts: its run was not of moe.replay=R3")
      if ids_TLA.shape[1:] != (layers, active) or ids_TLA.max(initial=0) >= experts:
        raise ValueError(
          f"{name} has choices of experts that are not {active} of {experts} in {layers} layers"
        )
    return rollouts


def check(directory: Path, expected: Mapping[str, Any], updates: int) -> None:
  """Raises ValueError if one of so many minibatches is missing, or the first one says that it is
  not from what is `expected`, some fields of `Origin`. No rollout is read."""
  missing = [u for u in range(1, updates + 1) if not _file(directory, u).is_file()]
  if missing:
    raise ValueError(
      f"{directory} lacks {len(missing)} of {updates} minibatches: that of update {missing[0]} "
      f"would be in {_file(directory, missing[0]).name}"
    )
  first = _file(directory, 1)
  try:
    _described(pq.read_schema(first), 1, expected)
  except (OSError, pa.ArrowException, ValueError) as error:
    raise ValueError(f"{first} cannot be trained on: {error}") from error


def read(directory: Path, expected: Origin, update: int) -> list[Rollout]:
  """The minibatch of an update as it was sampled and graded, equal to the bit.

  Raises:
    ValueError: naming the file and what is wrong: missing, truncated or corrupt, of another format,
      vocabulary, task, problems, temperature or group size.
  """
  path = _file(directory, update)
  try:
    file = pq.ParquetFile(pa.py_buffer(path.read_bytes()))
    about = _described(file.schema_arrow, update, dataclasses.asdict(expected))
    rows, groups = file.metadata.num_rows, expected.prompts
    if rows != groups * expected.samples_per_prompt:  # a billion equal rows are a small file
      raise ValueError(f"it has {rows} rollouts, which are not {groups} groups")
    rollouts = _rollouts(file.read(use_threads=False))
    if _digest(rollouts) != about.get("digest"):
      raise ValueError("its rollouts are not those that were written")
  except (OSError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
    raise ValueError(f"{path} cannot be trained on: {error}") from error
  return rollouts


def _about(update: int, origin: Mapping[str, Any]) -> dict[str, Any]:
  return {"format": FORMAT, "update": update, **origin}


def _described(schema: pa.Schema, update: int, expected: Mapping[str, Any]) -> dict[str, Any]:
  """What a file says of itself. Raises ValueError if it is not what is expected."""
  about = json.loads((schema.metadata or {}).get(_KEY, b"{}"))
  for key, wanted in _about(update, expected).items():
    if about.get(key) != wanted:
      raise ValueError(f"its {key} is {about.get(key)!r}, this run's is {wanted!r}")
  return about


def _digest(rollouts: Sequence[Rollout]) -> str:
  """SHA-256 of every field's name, type, shape and bits."""
  digest = hashlib.sha256()
  for rollout in rollouts:
    for name, field in _FIELDS.items():
      value = getattr(rollout, name)
      if value is not None:
        bits = _bits(value, _SCALARS.get(field.type))
        digest.update(f"{name} {bits.dtype} {bits.shape}".encode() + bits.tobytes())
  return digest.hexdigest()


def _bits(value: Any, scalar: pa.DataType | None) -> np.ndarray:
  if scalar == pa.string():
    return np.frombuffer(str(value).encode(), np.uint8)
  return np.asarray(value, scalar and scalar.to_pandas_dtype())


def _file(directory: Path, update: int) -> Path:
  return directory / f"{update:06d}.parquet"


_LIST_VALUES = 2**31 - 1  # of a minibatch, that lists with offsets of 32 bits can hold


def _column(name: str, values: Sequence[Any]) -> tuple[pa.Array, pa.Field]:
  """The values of one field, of which not all are None."""
  if scalar := _SCALARS.get(_FIELDS[name].type):
    return pa.array(values, scalar), pa.field(name, scalar, nullable=False)
  arrays = [np.asarray(value) for value in values if value is not None]
  dtype, inner = arrays[0].dtype, arrays[0].shape[1:]
  if any((array.dtype, array.shape[1:]) != (dtype, inner) for array in arrays):
    raise ValueError(f"{name} differs in type or in the axes after tokens from rollout to rollout")
  sizes = [0 if value is None else np.size(value) for value in values]
  lists = pa.ListArray if sum(sizes) <= _LIST_VALUES else pa.LargeListArray
  offsets = pa.int32() if lists is pa.ListArray else pa.int64()
  column = lists.from_arrays(
    pa.array(np.cumsum([0, *sizes]), offsets),
    pa.array(np.concatenate([array.reshape(-1) for array in arrays])),
    mask=pa.array([value is None for value in values]),
  )
  return column, pa.field(name, column.type, metadata={"inner_shape": json.dumps(inner)})


def _rollouts(table: pa.Table) -> list[Rollout]:
  columns = {field.name: _values(table[field.name], field) for field in table.schema}
  rows = zip(*columns.values(), strict=True)
  return [Rollout(**dict(zip(columns, row, strict=True))) for row in rows]


def _values(column: pa.ChunkedArray, field: pa.Field) -> list[Any]:
  if not (pa.types.is_list(field.type) or pa.types.is_large_list(field.type)):
    return column.to_pylist()
  inner = json.loads(field.metadata[b"inner_shape"])
  lists = [row.values if row.is_valid else None for row in column]
  return [
    None if x is None else x.to_numpy(zero_copy_only=False).reshape(-1, *inner) for x in lists
  ]
