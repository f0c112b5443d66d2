"""The process that builds a dataset: `python -m vespo_jax.tasks.build FD ORDER DIRECTORY`.

An order names a task that generates problems, or a layout and the files to read them from. It
answers its parent with one message: empty when the dataset is there, or JSON of what is wrong,
`{"error": TEXT, "system": whether it is with this machine rather than with the order}`.
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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from vespo_jax import files
from vespo_jax.metrics import printable
from vespo_jax.processes import serve_parent
from vespo_jax.tasks import layouts, prepare, rows
from vespo_jax.tasks.base import GeneratedTask, make
from vespo_jax.tasks.dataset import KEY, keys_file
from vespo_jax.tasks.sieve import Sieve

Fields = tuple[str, str, str]  # question, answer, metadata

_DRAWS_PER_PROBLEM = 50  # how far to look for problems that are not repeats


def distinct_problems(
  task: GeneratedTask, seed: int, train_size: int, test_size: int
) -> dict[str, list[Fields]]:
  """The first distinct problems of the task: held-out ones first, then those for training."""
  wanted = train_size + test_size
  found: dict[str, Fields] = {}
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


def generate(order: dict[str, Any], directory: Path) -> None:
  """Builds the problems of a task. Raises ValueError if it refuses the order or has too few."""
  importlib.import_module(order["module"])  # registers the task's family
  random.seed(0)  # a few generators draw from the global state
  np.random.seed(0)
  task = cast(GeneratedTask, make(order["task"], **order["options"]))
  splits = distinct_problems(task, order["seed"], order["train_size"], order["test_size"])
  write(splits, json.dumps(order), directory)


def read(order: dict[str, Any], directory: Path) -> None:
  """Builds the problems in a publisher's files, with a report and the keys of their questions.

  Raises ValueError naming the file and the row if a file is damaged or is not of the layout, or if
  it has changed since it was ordered.
  """
  layout = layouts.BY_NAME[order["layout"]]
  sieve = Sieve(layout)
  sources = [prepare.Source(**source) for source in order["sources"]]
  paths = prepare.by_split(sources)
  counts = [rows.count(Path(source.path)) for source in sources]
  total = None if None in counts else sum(filter(None, counts))
  with tqdm.tqdm(
    total=total, desc=f"reading {layout.name}", unit="row", delay=2, leave=False
  ) as bar:
    splits = {split: sieve.problems(split, found, bar.update) for split, found in paths.items()}
    write(splits, order["digest"], directory)
  if [prepare.Source.of(source.path, source.split) for source in sources] != sources:
    raise ValueError("the files have changed while they were read; give the command again")
  for split, keys in sieve.keys.items():
    np.array(keys, KEY).tofile(directory / keys_file(split))
  report = prepare.Report(
    name=layout.name,
    digest=order["digest"],
    version=layout.version,
    sources=sources,
    read=dict(sieve.read),
    kept=dict(sieve.kept),
    rejected=sieve.rejected,
  )
  files.write(directory / prepare.REPORT, report.to_json())


def write(splits: Mapping[str, Iterable[Fields]], description: str, directory: Path) -> None:
  """Writes each split, in order, through tensorflow-datasets; what raises an iterable raises it."""

  class ProblemBuilder(tfds.core.GeneratorBasedBuilder):
    """Problems of one task."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
      return tfds.core.DatasetInfo(
        builder=self,
        description=description,
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

    def _generate_examples(self, problems: Iterable[Fields]) -> Iterator[tuple[int, dict]]:
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
      (read if "layout" in order else generate)(order, scratch)
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
  except (OSError, ValueError) as error:
    told = {"error": printable(str(error)), "system": isinstance(error, OSError)}
    connection.send_bytes(json.dumps(told).encode())


if __name__ == "__main__":
  main(sys.argv)
