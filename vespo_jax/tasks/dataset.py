"""A task's problems on disk: built once through tensorflow-datasets, without TensorFlow.

Those of a generated task are made when they are first asked for; those of a stored one were read
from files (`prepare`), and are divided here. Building runs in a process of its own with a fixed
hash seed, because some generators depend on it, and appears in one rename, so that a run never sees
a half-written dataset.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from vespo_jax.processes import Child
from vespo_jax.tasks import splits
from vespo_jax.tasks.base import Example, GeneratedTask, StoredTask, Task

BUILD_TIMEOUT_S = 3600.0
KEY = np.dtype("<u8")
_FORMAT = 3  # of the files, and of what is drawn from a seed; part of their path
_FEATURES = {  # every text that `features.json` may hold
  *("int64", "none"),
  "tensorflow_datasets.core.features.features_dict.FeaturesDict",
  "tensorflow_datasets.core.features.tensor_feature.Tensor",
  "tensorflow_datasets.core.features.text_feature.Text",
}


class Split:
  """Random access to `Example`s in array_record files.

  Args:
    source: what tensorflow-datasets reads them with.
    indices: which of them, in which order; None: all.
  """

  def __init__(self, source: Any, indices: np.ndarray | None = None):
    self._source = source
    self._indices = np.arange(len(source)) if indices is None else indices

  def __len__(self) -> int:
    return len(self._indices)

  def __iter__(self) -> Iterator[Example]:
    return (self[i] for i in range(len(self)))

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f"no problem {index} among {len(self)}")
    row = self._source[int(self._indices[index])]
    return Example(
      id=index,
      **{field: row[field].decode() for field in ("question", "answer", "metadata")},
    )

  def where(self, keep: Callable[[Example], bool]) -> Split:
    """The problems to keep, numbered anew."""
    kept = [i for i, example in enumerate(self) if keep(example)]
    return Split(self._source, self._indices[kept])


@dataclasses.dataclass(frozen=True)
class Splits:
  """Training and held-out problems; all questions are distinct, within and across."""

  train: Split
  test: Split


def open_splits(
  task: Task, *, data_dir: str | os.PathLike[str], seed: int, train_size: int, test_size: int
) -> Splits:
  """The splits of `task`, built on first use and read from `data_dir` afterwards.

  Args:
    task: a `GeneratedTask` or a `StoredTask`.
    data_dir: where built datasets are kept.
    seed: of what is generated; of a stored task, of what is held out and of the order.
    train_size, test_size: so many problems; of a stored task at most so many, and 0 for all.

  Raises:
    ValueError: if a task does not generate that many distinct questions; it says how many. If a
      stored one is not prepared; it says the command. Or if what is in `data_dir` was not written
      here.
    TimeoutError: if building, or waiting for another run that builds it, takes longer than
      `BUILD_TIMEOUT_S`.
    ChildDied: if the building process fails, with its own message on the terminal.
  """
  if isinstance(task, StoredTask):
    return _open_stored(task, Path(data_dir), seed, train_size, test_size)
  directory = _generate(cast(GeneratedTask, task), Path(data_dir), seed, train_size, test_size)
  builder = _builder(directory)
  return Splits(*(Split(builder.as_data_source(split=split)) for split in ("train", "test")))


def _open_stored(
  task: StoredTask, data_dir: Path, seed: int, train_size: int, test_size: int
) -> Splits:
  directory = task.locate(data_dir)
  builder = _builder(directory)
  train, test = splits.choose(task, list(builder.info.splits))
  keys = {}
  for name in {train, test} - {""}:
    file = directory / keys_file(name)
    keys[name] = np.fromfile(file, KEY) if file.is_file() else np.empty(0, KEY)
    if len(keys[name]) != builder.info.splits[name].num_examples:
      raise ValueError(f"{file} is damaged; prepare the dataset again")
  trained, held_out = splits.divide(
    keys,
    train,
    test,
    held_out=task.held_out,
    seed=seed,
    train_size=train_size,
    test_size=test_size,
  )
  sources = {name: builder.as_data_source(split=name) for name in keys}
  return Splits(Split(sources[train or test], trained), Split(sources[test], held_out))


def keys_file(split: str) -> str:
  """The file in a stored dataset with `sieve.key` of a split's questions, a `KEY` each."""
  return f"{split}.keys"


def _generate(
  task: GeneratedTask, data_dir: Path, seed: int, train_size: int, test_size: int
) -> Path:
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
  directory = data_dir / f"{task.name.replace('/', '-')}-{digest}"
  if not directory.is_dir():
    build_in_child(text, directory)
  return directory


def _builder(directory: Path) -> Any:
  """What reads a built dataset. Raises ValueError if it was not written here."""
  import tensorflow_datasets as tfds  # half a second to import

  files = next(directory.glob("*/*/dataset_info.json")).parent
  _check_features(files / "features.json")
  return tfds.builder_from_directory(str(files))


def build_in_child(order: str, directory: Path) -> None:
  """Has a process of its own build what is ordered; see `build`. Raises as `open_splits`."""
  child = Child(
    "vespo_jax.tasks.build",
    name="dataset builder",
    env={"PYTHONHASHSEED": "0", "JAX_PLATFORMS": "cpu"},
    args=[order, str(directory)],
  )
  try:
    reason = child.receive(BUILD_TIMEOUT_S)
  except TimeoutError as error:
    raise TimeoutError(f"building {directory.name} took over {BUILD_TIMEOUT_S:g} s") from error
  finally:
    child.close()
  if reason:
    told = json.loads(reason)
    raise (OSError if told["system"] else ValueError)(told["error"])


def _check_features(path: Path) -> None:
  """Raises ValueError if the file names another class than ours do: it would be imported."""
  texts: set[str] = set()

  def collect(value: dict[str, Any]) -> dict[str, Any]:
    texts.update(text for text in value.values() if isinstance(text, str))
    return value

  json.loads(path.read_text(), object_hook=collect)
  if not texts <= _FEATURES:
    raise ValueError(f"{path} was not written here: it names {min(texts - _FEATURES)!r:.100}")
