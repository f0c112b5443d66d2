"""The process that builds a dataset: `python -m vespo_jax.tasks.build ORDER DIRECTORY`.

What goes wrong is printed for the parent to raise.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

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
  builder.download_and_prepare()


if __name__ == "__main__":
  try:
    build(json.loads(sys.argv[1]), Path(sys.argv[2]))
  except ValueError as error:
    print(error)
    sys.exit(1)
