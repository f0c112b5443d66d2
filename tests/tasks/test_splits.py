"""What is trained on and held out: disjoint, and given by the questions and a seed alone."""

import types

import numpy as np
import pytest

from vespo_jax.tasks import splits
from vespo_jax.tasks.sieve import key

KEYS = np.array([key(f"question {i}") for i in range(1000)], np.uint64)


def task(train_split="", test_split=""):
  return types.SimpleNamespace(train_split=train_split, test_split=test_split)


def divide(keys=KEYS, train="train", test="train", **changes):
  sizes = dict(held_out=0.1, seed=0, train_size=0, test_size=0) | changes
  return splits.divide({"train": keys, "test": KEYS[:30]}, train, test, **sizes)


@pytest.mark.parametrize(
  "stored,options,chosen",
  [
    (["test", "train"], {}, ("train", "test")),
    (["validation", "train"], {}, ("train", "validation")),
    (["validation", "test", "train"], {}, ("train", "test")),
    (["train"], {}, ("train", "train")),
    (["test"], {}, ("", "test")),
    (["test"], {"train_split": "test"}, ("test", "test")),
    (["test", "train"], {"test_split": "train"}, ("train", "train")),
    (["test", "train"], {"train_split": "test", "test_split": "train"}, ("test", "train")),
  ],
)
def test_the_publishers_splits_unless_the_task_says_otherwise(stored, options, chosen):
  assert splits.choose(task(**options), stored) == chosen


def test_a_split_that_is_not_stored_is_named():
  with pytest.raises(ValueError, match="test_split='dev' is not among its splits: test, train"):
    splits.choose(task(test_split="dev"), ["test", "train"])


def test_one_split_is_divided_whole_and_without_overlap():
  trained, held_out = divide()
  assert len(held_out) == 100
  np.testing.assert_array_equal(np.sort([*trained, *held_out]), np.arange(1000))


def test_what_is_held_out_depends_on_the_questions_and_the_seed_alone():
  held_out = set(KEYS[divide()[1]])
  shuffled = np.random.default_rng(0).permutation(KEYS)
  assert set(shuffled[divide(shuffled)[1]]) == held_out
  other = set(KEYS[divide(seed=1)[1]])
  assert len(other & held_out) < 25  # ten, if they have nothing to do with one another


def test_at_most_so_many_and_a_smaller_part_is_in_the_larger():
  trained, held_out = divide()
  fewer = divide(train_size=20, test_size=7)
  assert [len(part) for part in fewer] == [20, 7]
  np.testing.assert_array_equal(fewer[0], trained[:20])
  np.testing.assert_array_equal(fewer[1], held_out[:7])
  assert [len(part) for part in divide(train_size=5000, test_size=5000)] == [900, 100]


def test_splits_of_the_publisher_are_whole_and_in_the_order_of_the_seed():
  trained, held_out = divide(test="test")
  assert sorted(trained) == list(range(1000)) and sorted(held_out) == list(range(30))
  assert list(held_out) != sorted(held_out)
  assert list(divide(test="test", seed=5)[1]) != list(held_out)


def test_a_set_to_hold_out_alone_has_nothing_to_train_on():
  trained, held_out = divide(train="", test="test")
  assert (len(trained), len(held_out)) == (0, 30)


@pytest.mark.parametrize("size,fraction,held_out", [(2, 0.1, 1), (2, 0.99, 1), (10, 0.25, 2)])
def test_both_parts_have_a_problem(size, fraction, held_out):
  parts = divide(KEYS[:size], held_out=fraction)
  assert [len(part) for part in parts] == [size - held_out, held_out]


def test_a_single_problem_cannot_be_divided():
  with pytest.raises(ValueError, match="one problem"):
    divide(KEYS[:1])


def test_keys_are_the_same_whatever_the_white_space():
  assert key("a  b\n") == key(" a b") != key("ab")
