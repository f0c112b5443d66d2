"""The paired test against counting, against scipy, and on nulls; and what may be compared."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from tests.evaluation.example import evaluated
from vespo_jax.evaluation import comparison
from vespo_jax.evaluation.comparison import compare, sign_flip_test


def differences(problems, samples, seed, shift=0.0):
  """Of two policies that are right with the same chance, or not, on every problem."""
  rng = np.random.default_rng(seed)
  chance_P = rng.beta(1, 1, size=problems)
  one, other = (
    rng.binomial(samples, np.clip(chance_P + by, 0, 1)) / samples for by in (shift, 0.0)
  )
  return one - other


@pytest.mark.parametrize("seed", range(4))
def test_all_sign_flips_are_counted(seed):
  difference_P = differences(9, 4, seed, shift=0.2)
  sums = [abs(np.dot(signs, difference_P)) for signs in itertools.product([-1, 1], repeat=9)]
  expected = np.mean(np.array(sums) >= abs(difference_P.sum()) - 1e-9)
  found = sign_flip_test(difference_P, 1 / 4)
  assert found.p == pytest.approx(expected, rel=1e-12) and found.permutations == 0
  assert found.differing == np.count_nonzero(difference_P)
  zeros = np.zeros(9)
  theirs = stats.permutation_test(
    (difference_P, zeros),
    lambda one, other, axis: np.mean(one - other, axis=axis),
    permutation_type="samples",
    n_resamples=np.inf,
    vectorized=True,
  )
  assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)


def test_a_unit_may_be_finer_than_the_differences():
  difference_P = differences(40, 4, seed=0, shift=0.1)
  assert sign_flip_test(difference_P, 1 / 16) == sign_flip_test(difference_P, 1 / 4)


def test_drawn_sign_flips_agree_with_counted_ones(monkeypatch):
  """p near 0.1 from 100,000 draws: four standard errors are 0.004."""
  difference_P = differences(40, 4, seed=1, shift=0.1)
  exact = sign_flip_test(difference_P, 1 / 4)
  assert 0.05 < exact.p < 0.3
  for drawn in (sign_flip_test(difference_P, None), _not_countable(difference_P, monkeypatch)):
    assert drawn.permutations == comparison.PERMUTATIONS
    assert drawn.p == pytest.approx(exact.p, abs=4 * np.sqrt(exact.p / 100_000))


def _not_countable(difference_P, monkeypatch):
  monkeypatch.setattr(comparison, "_COUNTABLE", 10)
  return sign_flip_test(difference_P, 1 / 4)


def test_no_difference_is_no_evidence():
  assert sign_flip_test(np.zeros(5), 1 / 4).p == 1
  assert sign_flip_test(np.zeros(5), None).p == 1
  assert sign_flip_test(np.full(10, 0.5), 1 / 4).p == 2 / 2**10


def test_its_level_on_nulls_and_its_power():
  """1000 pairs of equal policies: p <= 0.05 in at most 5 % + 2.1 points (3 standard errors), and
  not never; of policies 15 points apart, mostly."""
  null = np.mean([sign_flip_test(differences(30, 4, s), 1 / 4).p <= 0.05 for s in range(1000)])
  assert 0.02 <= null <= 0.071
  apart = np.mean([sign_flip_test(differences(30, 4, s, 0.15), 1 / 4).p <= 0.05 for s in range(99)])
  assert apart > 0.5


@pytest.mark.slow
def test_the_level_of_drawn_sign_flips():
  """As above, with rewards that have no unit; 300 nulls: 3 standard errors are 3.8 points."""
  rng = np.random.default_rng(0)
  found = [sign_flip_test(rng.standard_t(3, size=20), None).p <= 0.05 for _ in range(300)]
  assert 0.012 <= np.mean(found) <= 0.088


def test_a_comparison_of_two_evaluations():
  rng = np.random.default_rng(0)
  one, other = (rng.random((1, 60, 4)) < p for p in (0.7, 0.5))
  found = compare(evaluated(one, model="A"), evaluated(other, model="B", temperature=0.5))
  average = found["differences"]["avg@4"]
  assert average["values"] == [one.mean(), other.mean()]
  assert average["difference"] == pytest.approx(one.mean() - other.mean())
  assert average["low"] < average["difference"] < average["high"]
  assert set(found["differences"]) == {"avg@4", "pass@2", "pass@4", "maj@2", "maj@4"}
  assert found["settings"] == {"temperature": [1.0, 0.5]}
  p = sign_flip_test(one[0].mean(axis=1) - other[0].mean(axis=1), 1 / 4).p
  assert found["sign_flip_test"]["p"] == p
  text = comparison.table(found)
  assert "A: A" in text and "differs: temperature: 1.0, 0.5" in text
  assert f"avg@4   {one.mean():.1%}" in text and "(all sign flips)" in text


def test_seeds_are_averaged_over():
  rng = np.random.default_rng(1)
  one, other = rng.random((3, 20, 2)) < 0.6, rng.random((2, 20, 2)) < 0.6
  found = compare(evaluated(one), evaluated(other))
  assert found["differences"]["avg@2"]["values"] == [one.mean(), pytest.approx(other.mean())]
  assert found["sign_flip_test"]["permutations"] == 0  # counted, in units of 1 / 12
  assert found["settings"] == {"seeds": [[0, 1, 2], [0, 1]]}


def test_rounding_is_no_difference():
  """The same three means of seeds in another order, whose mean differs in its last bit."""
  right = np.arange(10) < np.array([1, 2, 3])[:, None]
  one, other = right[:, None], right[::-1, None]
  means = [rewards.mean(axis=2).mean(axis=0) for rewards in (one, other)]
  assert means[0] != means[1]
  test = compare(evaluated(one), evaluated(other))["sign_flip_test"]
  assert (test["p"], test["permutations"], test["differing"]) == (1, 0, 0)


def test_rewards_between_right_and_wrong_have_no_unit():
  one = np.full((1, 5, 2), 0.3)
  assert compare(evaluated(one), evaluated(one * 0))["sign_flip_test"]["permutations"] > 0


@pytest.mark.parametrize(
  "name, changes",
  [
    ("task", {"task": "family/other"}),
    ("options", {"options": {}}),
    ("reward", {"reward": "my:f 12"}),
  ],
)
def test_what_is_of_another_task_is_refused(name, changes):
  rewards = np.ones((1, 3, 2))
  with pytest.raises(ValueError, match=f"cannot be compared: {name} is"):
    compare(evaluated(rewards), evaluated(rewards, **changes))


@pytest.mark.parametrize("name, shape", [("problems", (1, 4, 2)), ("samples", (1, 3, 1))])
def test_another_number_of_problems_or_samples_is_refused(name, shape):
  with pytest.raises(ValueError, match=f"cannot be compared: {name} is"):
    compare(evaluated(np.ones((1, 3, 2))), evaluated(np.ones(shape)))


@pytest.mark.parametrize("field", ["question", "answer"])
def test_other_problems_are_refused(field):
  rewards = np.ones((1, 3, 2))
  one, other = evaluated(rewards), evaluated(rewards)
  other.records[0][1] = dataclasses.replace(other.records[0][1], **{field: "another"})
  with pytest.raises(ValueError, match="problem 1 is not the same"):
    compare(one, other)
