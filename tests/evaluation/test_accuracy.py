"""The accuracy and its interval."""

import numpy as np
import pytest
from scipy import stats

from vespo_jax.evaluation import Evaluation, summarise
from vespo_jax.evaluation.accuracy import shown_ks


def wilson(p, n):
  z = 1.959964
  centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def few(problems, samples):
  """Korn and Graubard's factor: the problems' variance is known from so few of them."""
  t = stats.t(df=[problems * samples - 1, problems - 1]).ppf(0.975)
  return (t[0] / t[1]) ** 2


def test_the_interval_counts_problems_that_agree_with_themselves_once():
  # three problems of four are right, one never: p = 3/4, var (ddof 1) = 1/4, SE^2 = 1/16, n = 3
  result = summarise(np.array([[1.0] * 5, [1.0] * 5, [0.0] * 5, [1.0] * 5]))
  assert (result.accuracy, result.problems, result.samples_per_problem) == (0.75, 4, 5)
  np.testing.assert_allclose((result.low, result.high), wilson(0.75, 3 * few(4, 5)), rtol=1e-6)


def test_samples_of_a_problem_that_differ_count_for_more():
  # per problem 1/2, 1/2, 1, 0: p = 1/2, var (ddof 1) = 1/6, SE^2 = 1/24, n = 6
  result = summarise(np.array([[1.0, 0], [0, 1], [1, 1], [0, 0]]))
  np.testing.assert_allclose((result.low, result.high), wilson(0.5, 6 * few(4, 2)), rtol=1e-6)


def test_no_interval_is_of_more_samples_than_there_are():
  correct = np.zeros((2, 1000))
  correct[0, :500], correct[1, :501] = 1.0, 1.0  # their means are closer than those of 2,000 draws
  result = summarise(correct)
  np.testing.assert_allclose((result.low, result.high), wilson(0.5005, 2000), rtol=1e-6)


@pytest.mark.parametrize("problems", [3, 5, 20])
def test_it_holds_the_truth_as_often_as_it_says_however_few_problems_there_are(problems):
  """Of problems that differ in difficulty, from Beta(1, 1), 32 samples each. Without the factor it
  is 81 % of the time with three."""
  rng = np.random.default_rng(0)
  rates_NP = rng.beta(1, 1, (1000, problems))
  drawn_NPR = (rng.random((1000, problems, 32)) < rates_NP[..., None]).astype(float)
  found = [summarise(correct_PR) for correct_PR in drawn_NPR]
  assert np.mean([one.low <= 0.5 <= one.high for one in found]) > 0.93


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_at_the_ends_each_problem_counts_once(p):
  result = summarise(np.full((20, 4), p))
  np.testing.assert_allclose((result.low, result.high), wilson(p, 20), atol=1e-6)


def test_where_all_problems_have_one_mean_each_counts_once():
  """The mean of three times 1/5 is not 1/5 to the last bit."""
  result = summarise(np.array([[1.0, 0, 0, 0, 0]] * 3))
  np.testing.assert_allclose((result.low, result.high), wilson(0.2, 3), rtol=1e-6)


def test_it_reads_well_and_is_plain():
  result = Evaluation(0.5, 0.25, 0.75, 4, 2)
  assert str(result) == "50.0% [25.0%, 75.0%] (4 problems x 2 samples)"
  assert Evaluation(**result.to_dict()) == result


def test_pass_at_k_stands_beside_it_where_there_are_several_samples():
  rewards = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]])
  assert summarise(rewards).pass_at_k == {"2": 0.25, "4": 0.5}
  assert summarise(rewards[:, :1]).pass_at_k == {}
  assert summarise(np.full((2, 2), 0.5)).pass_at_k == {"2": 0.0}  # no response is right
  assert "pass" not in str(summarise(rewards))


def test_powers_of_two_and_all_samples_are_shown():
  shown = {1: [1], 2: [1, 2], 3: [1, 2, 3], 10: [1, 2, 4, 8, 10], 16: [1, 2, 4, 8, 16]}
  assert {n: shown_ks(n) for n in shown} == shown


def test_a_result_of_before_pass_at_k_is_read():
  old = {"accuracy": 0.5, "low": 0.25, "high": 0.75, "problems": 4, "samples_per_problem": 2}
  assert Evaluation(**old) == Evaluation(0.5, 0.25, 0.75, 4, 2)
