"""pass@k and maj@k against all subsets, one by one, and against closed forms."""

import collections
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from vespo_jax.evaluation.estimators import MAX_SAMPLES, maj_at_k, pass_at_k


def passed(correct, answers, subset):
  return float(any(correct[i] for i in subset))


def majority(correct, answers, subset):
  """The expected correctness of a vote, ties by lot, of an answer as it was graded on average."""
  votes = collections.Counter(answers[i] for i in subset if answers[i] is not None)
  if not votes:
    return 0.0
  most = max(votes.values())
  winners = [answer for answer, count in votes.items() if count == most]
  graded = [[c for c, a in zip(correct, answers, strict=True) if a == winner] for winner in winners]
  return float(np.mean([np.mean(of) for of in graded]))


def by_enumeration(value, correct, answers):
  n = len(correct)
  return [
    np.mean([value(correct, answers, subset) for subset in itertools.combinations(range(n), k)])
    for k in range(1, n + 1)
  ]


def problems(samples, count, seed):
  """Answers of few kinds, some missing; an answer is graded the same but for some accidents."""
  rng = np.random.default_rng(seed)
  answers = rng.choice(
    ["a", "b", "c", "d", None], size=(count, samples), p=[0.3, 0.3, 0.1, 0.1, 0.2]
  )
  correct = (answers == "a") & (rng.random(answers.shape) > 0.1)
  correct[count // 2 :] |= answers[count // 2 :] == "c"  # two right answers
  return correct, answers.tolist()


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 8])
def test_both_are_the_mean_over_all_subsets(samples):
  correct_PR, answers_PR = problems(samples, 12, seed=samples)
  for value, found in (
    (passed, pass_at_k(correct_PR)),
    (majority, maj_at_k(correct_PR, answers_PR)),
  ):
    expected = [by_enumeration(value, c, a) for c, a in zip(correct_PR, answers_PR, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n, c", [(200, 1), (200, 199), (1000, 3), (1000, 500), (64, 0), (64, 64)])
def test_pass_at_k_of_many_samples(n, c):
  correct_1R = (np.arange(n) < c)[None]
  found = pass_at_k(correct_1R)[0]
  for k in (1, 2, n // 2, n - 1, n):
    expected = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert found[k - 1] == pytest.approx(float(expected), rel=1e-12, abs=1e-15)


def test_the_vote_between_two_answers_is_hypergeometric():
  n, own, k = 64, 37, np.arange(1, 65)
  correct = np.arange(n) < own
  draws = stats.hypergeom(n, own, k)
  half = draws.pmf(k / 2) / 2  # of an even k
  answers = ["right" if right else "wrong" for right in correct]
  np.testing.assert_allclose(
    maj_at_k(correct[None], [answers])[0], draws.sf(np.floor(k / 2)) + half, rtol=1e-10
  )


def test_a_tie_is_drawn_by_lot_and_the_silent_do_not_vote():
  found = maj_at_k(np.array([[True, False, False]]), [["a", "b", None]])
  # k = 1: one of three is right. k = 2: ab 1/2, a- 1, b- 0. k = 3: a tie
  np.testing.assert_allclose(found, [[1 / 3, 1 / 2, 1 / 2]])
  assert maj_at_k(np.array([[False, False]]), [[None, None]]).tolist() == [[0.0, 0.0]]


def test_the_majority_of_the_largest_number_of_samples():
  n = MAX_SAMPLES
  correct = np.arange(n) < 501
  answers = ["right" if right else "wrong" for right in correct]
  assert maj_at_k(correct[None], [answers])[0, -1] == pytest.approx(1.0, rel=1e-9)
  with pytest.raises(ValueError, match="at most 1000 samples"):
    maj_at_k(np.ones((1, n + 1), bool), [["a"] * (n + 1)])
