"""Named tensors of a file -> the stacked parameters of a spec, one parameter at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax.models import ModelSpec, describe
from vespo_jax.models.params import ParamInfo
from vespo_jax.types import Params
from vespo_jax.weights.names import Row, table

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Stored:
  """One tensor as a file has it: its name there, the file, and its shape, rows first."""

  name: str
  file: Path
  shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Source:
  """The tensors of a model.

  Attributes:
    place: the file or directory, for messages.
    tensors: by Hugging Face name.
    read: names -> their arrays in that order; one at a time is in memory.
  """

  place: Path
  tensors: Mapping[str, Stored]
  read: Callable[[Sequence[str]], Iterator[np.ndarray]]


def assemble(
  spec: ModelSpec, source: Source, dtype: jnp.dtype = jnp.float32, shardings: Params | None = None
) -> Params:
  """The parameters of `spec`, of type `dtype`, read from `source`.

  Names and shapes are checked before anything is read. On the host there is never more than one
  parameter, or with `shardings` (a tree of them) one device's part of it, besides the result; a
  tensor is read once for every part that needs it.

  Raises:
    ValueError: naming the tensor and the file, if one is unknown, missing, mis-shaped, not
      readable, or not finite, or a head is stored that a model with tied embeddings would ignore.
  """
  if spec.layers * max(spec.experts, 1) > len(source.tensors):  # before a table of them is made
    raise ValueError(
      f"{source.place} has {len(source.tensors)} tensors, too few for {spec.layers} layers"
      + (f" of {spec.experts} experts" if spec.experts else "")
    )
  rows = list(table(spec))
  _check(spec, rows, source)
  _check_tied(spec, source)
  groups: dict[tuple[str, ...], list[Row]] = {}
  for row in rows:
    groups.setdefault(row.path, []).append(row)

  def build(path: tuple, info: ParamInfo, sharding: Any = None) -> jax.Array:
    group = groups[tuple(entry.key for entry in path)]

    def part(index: Any) -> np.ndarray:
      return _part(group, info.shape, index, source, dtype)

    if sharding is None:
      return jnp.asarray(part((slice(None),) * len(info.shape)))
    return jax.make_array_from_callback(info.shape, sharding, part)

  trees = (describe(spec),) if shardings is None else (describe(spec), shardings)
  return jax.tree_util.tree_map_with_path(build, *trees)


def _part(
  group: Sequence[Row],
  shape: tuple[int, ...],
  index: tuple[slice, ...],
  source: Source,
  dtype: jnp.dtype,
) -> np.ndarray:
  """The block `index` of a parameter of `shape`, from the tensors of its layers (and experts)."""
  ranges = [range(size)[part] for size, part in zip(shape, index, strict=True)]
  block = np.empty([len(r) for r in ranges], dtype)
  stacked = len(group[0].index)
  inside = index[stacked:]
  rows = [
    row for row in group if all(i in r for i, r in zip(row.index, ranges[:stacked], strict=True))
  ]
  for row, tensor in zip(rows, source.read([row.name for row in rows]), strict=True):
    target = block[tuple(i - r.start for i, r in zip(row.index, ranges, strict=False))]
    target[...] = (tensor.T if row.transposed else tensor)[inside]
    if not np.isfinite(target).all():
      stored = source.tensors[row.name]
      raise ValueError(f"{stored.name} in {stored.file} is not finite as {np.dtype(dtype).name}")
  return block


def _check_tied(spec: ModelSpec, source: Source) -> None:
  if not spec.tied_embeddings or _HEAD not in source.tensors:
    return
  embedding, head = source.read([_EMBEDDING, _HEAD])
  if not np.array_equal(embedding, head):
    raise ValueError(
      f"{_HEAD} in {source.tensors[_HEAD].file} is not the embedding, and tie_word_embeddings says "
      "that it is; set that to false in config.json if the head is meant"
    )


def _check(spec: ModelSpec, rows: Sequence[Row], source: Source) -> None:
  names = {name for name in source.tensors if not name.endswith(".rotary_emb.inv_freq")}
  if spec.tied_embeddings:  # some writers store the tied copy, and old ones the frequencies
    names.discard(_HEAD)
  known = {row.name for row in rows}
  unknown = [source.tensors[name].name for name in names - known]
  for problem, group in (("unknown", unknown), ("missing", known - names)):
    if group:
      raise ValueError(f"{problem} tensors in {source.place}: {', '.join(sorted(group)[:5])}")
  for row in rows:
    stored = source.tensors[row.name]
    if stored.shape != row.shape:
      raise ValueError(
        f"{stored.name} in {stored.file} has shape {stored.shape}, expected {row.shape}"
      )
