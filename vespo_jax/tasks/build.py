"""The process that builds a dataset: `python -m vespo_jax.tasks.build FD ORDER DIRECTORY`.

It answers its parent with one message: empty when the dataset is there, or what is wrong with the
order.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import io
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from vespo_jax.processes import serve_parent
from vespo_jax.tasks.base import Task, make

_DRAWS_PER_PROBLEM = 50  # how far to look for problems that are not repeats


def distinct_problems(
  task: Task, seed: int, train_size: int, test_size: int
) -> dict[str, list[tuple[str, str, str]]]:
  """The first distinct problems of the task: held-out ones first, then those for training."""
  wanted = train_size + test_size
  found: dict[str, tuple[str, str, str]] = {}
  limit = _DRAWS_PER_PROBLEM * wanted + 1000
  bar = tqdm.tqdm(total=wanted, desc=f"building {task.name}", unit="problem", delay=2, leave=False)
  for problem in task.generate(seed, limit):
    bar.update(problem[0] not in found)
    found.setdefault(problem[0], problem)
    if len(found) == wanted:
      problems = list(found.values())
      bar.close()
      return {"train": problems[test_size:], "test": problems[:test_size]}
  bar.close()
  raise ValueError(
    f"{task.name} has only {len(found)} distinct questions in {limit} draws with these options; "
    f"task.train_size + task.test_size = {wanted}"
  )


def build(order: dict[str, Any], directory: Path) -> None:
  """Builds the ordered dataset into `directory`.

  Raises ValueError if the task refuses the order or has too few problems.
  """
  importlib.import_module(order["module"])  # registers the task's family
  random.seed(0)  # a few generators draw from the global state
  np.random.seed(0)
  task = make(order["task"], **order["options"])
  splits = distinct_problems(task, order["seed"], order["train_size"], order["test_size"])

  class ProblemBuilder(tfds.core.GeneratorBasedBuilder):
    """Problems of one task."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
      return tfds.core.DatasetInfo(
        builder=self,
        description=json.dumps(order),
        disable_shuffling=True,
        features=tfds.features.FeaturesDict(
          {
            "id": np.int64,
            "question": tfds.features.Text(),
            "answer": tfds.features.Text(),
            "metadata": tfds.features.Text(),
          }
        ),
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      return {split: self._generate_examples(problems) for split, problems in splits.items()}

    def _generate_examples(
      self, problems: list[tuple[str, str, str]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
      for i, (question, answer, metadata) in enumerate(problems):
        yield i, {"id": i, "question": question, "answer": answer, "metadata": metadata}

  tfds.disable_progress_bar()
  builder = ProblemBuilder(data_dir=str(directory), file_format="array_record")
  with contextlib.redirect_stdout(io.StringIO()):  # what it says is about downloads
    builder.download_and_prepare()


def build_once(order: dict[str, Any], directory: Path) -> None:
  """Builds next to `directory` and renames, unless another run has done it in the meantime."""
  scratch = directory.with_name(f".{directory.name}.building")
  with _alone(directory.with_name(f".{directory.name}.lock")):
    if directory.is_dir():
      return
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
      build(order, scratch)
      scratch.rename(directory)
    finally:
      shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel gives it back however this process ends
    yield


def main(argv: list[str]) -> None:
  """Builds for the parent at descriptor `argv[1]`."""
  connection = serve_parent(int(argv[1]))
  try:
    build_once(json.loads(argv[2]), Path(argv[3]))
    connection.send_bytes(b"")
  except ValueError as error:
    connection.send_bytes(str(error).encode())


if __name__ == "__main__":
  main(sys.argv)
