"""Several tasks in one stream: their proportions, and that each is still a stream of its own."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vespo_jax.tasks import MixtureStream, PromptStream, interleave, pattern, read_mixture
from vespo_jax.tasks.mixture import LONGEST_PERIOD

SIZES = {"train_size": 100, "test_size": 10}
WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=7)


@given(WEIGHTS)
@settings(max_examples=40)
def test_every_prefix_is_within_one_prompt_of_the_weights(weights):
  """Tijdeman's bound, 1 - 1 / (2n - 2); the whole period comes out even, so all others do too."""
  tasks, n = pattern(weights), len(weights)
  had = (tasks[:, None] == np.arange(n)).cumsum(axis=0)
  assert had[-1].tolist() == [len(tasks) * w // sum(weights) for w in weights]
  bound = 1 - Fraction(1, 2 * n - 2) if n > 1 else 0
  due = np.arange(1, len(tasks) + 1)[:, None] * np.array(weights)
  assert np.abs(had * sum(weights) - due).max() <= bound * sum(weights)


def test_weights_are_relative_and_read_as_decimals():
  assert pattern([0.7, 0.2, 0.1]).tolist() == pattern([7, 2, 1]).tolist()
  assert np.bincount(pattern([0.7, 0.2, 0.1])).tolist() == [7, 2, 1]
  assert pattern([1 / 3, 1 / 3]).tolist() == [0, 1]
  with pytest.raises(ValueError, match=f"more than {LONGEST_PERIOD} prompts; take rounder ones"):
    pattern([0.12345, 1])


@given(
  st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), min_size=1, max_size=4),
  st.integers(0, 200),
  st.integers(0, 60),
)
@settings(max_examples=60)
def test_seeking_equals_reading_each_task_from_its_start(tasks, position, count):
  sizes, weights = zip(*tasks, strict=True)
  make = lambda: [PromptStream(size, seed) for seed, size in enumerate(sizes)]
  everything = MixtureStream(make(), sizes, weights).indices(0, position + count)
  sought = MixtureStream(make(), sizes, weights).indices(position, count)
  np.testing.assert_array_equal(sought, everything[position:])
  assert sought.dtype == np.int64
  chosen = np.resize(pattern(weights), position + count)
  offsets = np.cumsum([0, *sizes])
  for task, stream in enumerate(make()):
    mine = everything[chosen == task]
    np.testing.assert_array_equal(mine - offsets[task], stream.indices(0, len(mine)))


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), min_size=1, max_size=4))
@settings(max_examples=40)
def test_held_out_problems_are_interleaved_until_one_task_has_no_more(tasks):
  sizes, weights = zip(*tasks, strict=True)
  places = interleave(sizes, weights)
  chosen = pattern(weights)
  assert places[:, 0].tolist() == np.resize(chosen, len(places)).tolist()
  for task, size in enumerate(sizes):
    numbers = places[places[:, 0] == task, 1].tolist()
    assert numbers == list(range(len(numbers))) and len(numbers) <= size
  if len(places) < sum(sizes):
    following = chosen[len(places) % len(chosen)]
    assert (places[:, 0] == following).sum() == sizes[following]


def test_a_mixture_has_names_weights_and_sizes():
  mixture = {
    "sums": {"name": "family/sums", "weight": 3, "options": {"terms": 2}},
    "words": {"name": "family/words", "weight": 0.5, "train_size": 7, "test_size": 3},
  }
  sums, words = read_mixture(mixture, **SIZES).values()
  backwards = dict(reversed(mixture.items()))  # a config written as JSON is sorted
  assert list(read_mixture(backwards, **SIZES)) == ["sums", "words"]
  assert (sums.name, sums.weight, sums.options) == ("family/sums", 3, {"terms": 2})
  assert (sums.train_size, sums.test_size) == (100, 10)
  assert (words.options, words.train_size, words.test_size) == ({}, 7, 3)
  assert read_mixture({}, **SIZES) == {}


@pytest.mark.parametrize(
  "mixture,words",
  [
    ({"a/b": {"name": "x/y", "weight": 1}}, "label 'a/b'"),
    ({"a": "x/y"}, "a must have name and weight"),
    ({"a": {"name": "x/y"}}, "a must have name and weight"),
    ({"a": {"name": "x/y", "weight": 1, "wieght": 1}}, "options, train_size, test_size"),
    ({"a": {"name": 3, "weight": 1}}, "a.name=3 must be a text"),
    ({"a": {"name": "x/y", "weight": 0}}, "a.weight=0 must be a number from 1e-6"),
    ({"a": {"name": "x/y", "weight": True}}, "a.weight=True"),
    ({"a": {"name": "x/y", "weight": 10**400}}, "a.weight=1000"),
    ({"a": {"name": "x/y", "weight": 1, "options": 3}}, "a.options=3 must be options by name"),
    ({"a": {"name": "x/y", "weight": 1, "test_size": -1}}, "a.test_size=-1 must be an integer"),
    (
      {"a": {"name": "x", "weight": 0.333333}, "b": {"name": "x", "weight": 1}},
      "0.333333, 1 come out even",
    ),
  ],
)
def test_a_bad_mixture_is_refused_by_name(mixture, words):
  with pytest.raises(ValueError, match=words):
    read_mixture(mixture, **SIZES)
