"""Splits on disk: exact, disjoint, the same in every process, never half-written."""

import json
import os
import subprocess
import sys

import hostile_family  # noqa: F401  (registers the family)
import pytest

from vespo_jax import tasks

SIZES = dict(seed=1, train_size=40, test_size=10)


def test_sizes_and_disjointness(tmp_path):
  task = tasks.make("reasoning_gym/chain_sum", min_digits=1, max_digits=1, max_terms=2)
  splits = tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  assert (len(splits.train), len(splits.test)) == (40, 10)
  questions = [example.question for split in (splits.train, splits.test) for example in split]
  assert len(set(questions)) == 50
  assert [example.id for example in splits.train] == list(range(40))


@pytest.mark.parametrize("dataset", ["chain_sum", "isomorphic_strings"])
def test_the_same_in_every_process(tmp_path, dataset):
  """isomorphic_strings depends on the hash seed of the process that generates it."""
  script = (
    "import sys, json\nfrom vespo_jax import tasks\n"
    f"task = tasks.make('reasoning_gym/{dataset}')\n"
    f"splits = tasks.open_splits(task, data_dir=sys.argv[1], **{SIZES!r})\n"
    "print(json.dumps([[e.question, e.answer] for s in (splits.train, splits.test) for e in s]))"
  )
  outputs = []
  for hash_seed in ("1", "2"):
    done = subprocess.run(
      [sys.executable, "-c", script, str(tmp_path / hash_seed)],
      env={**os.environ, "PYTHONHASHSEED": hash_seed},
      capture_output=True,
      text=True,
      timeout=200,
      check=True,
    )
    outputs.append(json.loads(done.stdout))
  assert outputs[0] == outputs[1] and len(outputs[0]) == 50


def test_other_seeds_and_options_are_other_data(tmp_path):
  task = tasks.make("hostile/x")
  one = tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  other = tasks.open_splits(task, data_dir=tmp_path, **{**SIZES, "seed": 2})
  assert one.test[0].question != other.test[0].question
  assert len(list(tmp_path.iterdir())) == 2


def test_too_few_distinct_questions_is_an_error_that_counts_them(tmp_path):
  task = tasks.make("hostile/x", distinct=7)
  with pytest.raises(ValueError, match="only 7 distinct questions"):
    tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  assert not list(tmp_path.iterdir())  # nothing half-built is left


def test_a_finished_dataset_is_not_built_again(tmp_path, monkeypatch):
  task = tasks.make("hostile/x")
  first = tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("built again"))
  again = tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  assert list(first.train) == list(again.train)


def test_a_killed_build_leaves_nothing_that_is_read(tmp_path, monkeypatch):
  task = tasks.make("hostile/x")
  real = subprocess.run

  def killed(*args, **kwargs):
    done = real(*args, **kwargs)  # the files are there, but the process did not end well
    done.returncode, done.stdout = -9, ""
    return done

  monkeypatch.setattr(subprocess, "run", killed)
  with pytest.raises(ValueError, match="exited with code -9"):
    tasks.open_splits(task, data_dir=tmp_path, **SIZES)
  monkeypatch.setattr(subprocess, "run", real)
  assert len(tasks.open_splits(task, data_dir=tmp_path, **SIZES).train) == 40
