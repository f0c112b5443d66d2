"""Prompts by their success rates: what is drawn how often, and what the rates are made of."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vespo_jax.tasks import Curricula, Curriculum, MixtureStream

RATES = np.array([0.0, 0.1, 0.5, 0.9, 1.0], np.float32)


def curriculum(size=5, seed=3, floor=0.2, decay=0.5, rates=None):
  made = Curriculum(size, seed, floor=floor, decay=decay)
  made.rates[:] = made.rates if rates is None else rates
  return made


def test_prompts_are_drawn_as_often_as_there_is_to_learn_from_them():
  """Single draws against the weights of the formula; the floor is what is always solved gets."""
  made = curriculum(rates=RATES)
  weights = [0.2, 0.2 + 0.8 * 4 * 0.09, 1.0, 0.2 + 0.8 * 4 * 0.09, 0.2]
  np.testing.assert_allclose(made.weights(), weights, rtol=1e-6)
  n = 20_000
  drawn = np.bincount([made.indices(position, 1)[0] for position in range(n)], minlength=5) / n
  share = np.array(weights) / sum(weights)
  np.testing.assert_array_less(np.abs(drawn - share), 4 * np.sqrt(share * (1 - share) / n))


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 30))
def test_one_draw_repeats_no_prompt_before_all_are_drawn(size, position, count):
  made = curriculum(size=size)
  drawn = made.indices(position, count)
  assert drawn.dtype == np.int64 and len(drawn) == count
  for start in range(0, count, size):
    part = drawn[start : start + size]
    assert len(set(part.tolist())) == len(part) and set(part.tolist()) <= set(range(size))
  np.testing.assert_array_equal(drawn, curriculum(size=size).indices(position, count))


def test_draws_depend_on_seed_position_and_rates():
  base = curriculum(size=100).indices(0, 20)
  assert (curriculum(size=100, seed=4).indices(0, 20) != base).any()
  assert (curriculum(size=100).indices(20, 20) != base).any()
  known = curriculum(size=100)
  known.rates[base[:10]] = 1.0
  assert (known.indices(0, 20) != base).any()


def test_a_running_rate_forgets():
  made = curriculum(decay=0.75)
  made.measure(2, 1.0)
  made.measure(2, 1.0)
  assert made.rates.tolist() == [0.5, 0.5, 1 - 0.5 * 0.75**2, 0.5, 0.5]
  latest = curriculum(decay=0.0)
  latest.measure(0, 0.25)
  assert latest.rates[0] == 0.25


def test_several_curricula_have_one_numbering():
  parts = {"a": curriculum(size=2), "b": curriculum(size=3)}
  curricula = Curricula(parts)
  curricula.measure([1, 2, 4, 0], [1.0, 0.0, 1.0, math.nan])
  assert parts["a"].rates.tolist() == [0.5, 0.75]
  assert parts["b"].rates.tolist() == [0.25, 0.5, 0.75]
  assert curricula.mean == pytest.approx(2.75 / 5)
  saved = curricula.rates
  curricula.measure([0], [0.0])
  assert saved["a"][0] == 0.5  # a copy
  other = {"a": curriculum(size=2), "b": curriculum(size=3)}
  Curricula(other).restore(saved)
  assert other["b"].rates.tobytes() == parts["b"].rates.tobytes()
  stream = MixtureStream(list(other.values()), [2, 3], [1, 1])
  assert set(stream.indices(0, 10).tolist()) == set(range(5))
  with pytest.raises(ValueError, match="not those of the prompts of b"):
    Curricula(other).restore({"a": saved["a"], "b": saved["a"]})
  with pytest.raises(ValueError, match="not those of the prompts of b"):
    Curricula(other).restore({"a": saved["a"]})


def test_nothing_to_draw():
  with pytest.raises(ValueError, match="at least one"):
    Curriculum(0, 0, floor=0.5, decay=0.5)
