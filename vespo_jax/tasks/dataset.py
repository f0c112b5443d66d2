"""A task's problems on disk: built once through tensorflow-datasets, without TensorFlow.

Building runs in a process of its own with a fixed hash seed, because some generators depend on it,
and appears in one rename, so that a run never sees a half-written dataset.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vespo_jax.processes import Child
from vespo_jax.tasks.base import Example, Task

BUILD_TIMEOUT_S = 3600.0
_FORMAT = 2  # of the files; part of their path
_FEATURES = {  # every text that `features.json` may hold
  *("int64", "none"),
  "tensorflow_datasets.core.features.features_dict.FeaturesDict",
  "tensorflow_datasets.core.features.tensor_feature.Tensor",
  "tensorflow_datasets.core.features.text_feature.Text",
}


class Split:
  """One split: random access to `Example`s in an array_record file."""

  def __init__(self, source: Any):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __iter__(self) -> Iterator[Example]:
    return (self[i] for i in range(len(self)))

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f"no problem {index} among {len(self)}")
    row = self._source[index]
    return Example(
      id=int(row["id"]),
      **{field: row[field].decode() for field in ("question", "answer", "metadata")},
    )


@dataclasses.dataclass(frozen=True)
class Splits:
  """Training and held-out problems; all questions are distinct, within and across."""

  train: Split
  test: Split


def open_splits(
  task: Task, *, data_dir: str | os.PathLike[str], seed: int, train_size: int, test_size: int
) -> Splits:
  """The splits of `task`, built on first use and read from `data_dir` afterwards.

  Raises:
    ValueError: if the task does not have that many distinct questions; it says how many. Or if what
      is in `data_dir` was not written here.
    TimeoutError: if building, or waiting for another run that builds it, takes longer than
      `BUILD_TIMEOUT_S`.
    ChildDied: if the building process fails, with its own message on the terminal.
  """
  import tensorflow_datasets as tfds  # half a second to import

  order = {
    "task": task.name,
    "options": dict(task.options),
    "module": type(task).__module__,
    "version": task.version,
    "seed": seed,
    "train_size": train_size,
    "test_size": test_size,
    "format": _FORMAT,
  }
  text = json.dumps(order, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  directory = Path(data_dir) / f"{task.name.replace('/', '-')}-{digest}"
  if not directory.is_dir():
    _build_in_child(text, directory)
  files = _builder_directory(directory)
  _check_features(files / "features.json")
  builder = tfds.builder_from_directory(str(files))
  return Splits(*(Split(builder.as_data_source(split=split)) for split in ("train", "test")))


def _build_in_child(order: str, directory: Path) -> None:
  child = Child(
    "vespo_jax.tasks.build",
    name="dataset builder",
    env={"PYTHONHASHSEED": "0", "JAX_PLATFORMS": "cpu"},
    args=[order, str(directory)],
  )
  try:
    reason = child.receive(BUILD_TIMEOUT_S).decode()
  except TimeoutError as error:
    raise TimeoutError(f"building {directory.name} took over {BUILD_TIMEOUT_S:g} s") from error
  finally:
    child.close()
  if reason:
    raise ValueError(reason)


def _check_features(path: Path) -> None:
  """Raises ValueError if the file names another class than ours do: it would be imported."""
  texts: set[str] = set()

  def collect(value: dict[str, Any]) -> dict[str, Any]:
    texts.update(text for text in value.values() if isinstance(text, str))
    return value

  json.loads(path.read_text(), object_hook=collect)
  if not texts <= _FEATURES:
    raise ValueError(f"{path} was not written here: it names {min(texts - _FEATURES)!r:.100}")


def _builder_directory(directory: Path) -> Path:
  return next(directory.glob("*/*/dataset_info.json")).parent
