"""avg@k, pass@k and maj@k: what k samples of a problem are worth, from the n that were drawn.

Each is an expectation over the subsets of size k of the n samples, exact and hence unbiased; none
is estimated by drawing subsets.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

MAX_SAMPLES = 1000  # of a problem: the number of their subsets is a float


def pass_at_k(correct_PR: np.ndarray) -> np.ndarray:
  """The chance that one of k samples is correct, for k = 1 .. R: float64 [P, R].

  1 - C(n - c, k) / C(n, k) as the product of 1 - k / i over i = n - c + 1 .. n, n = R samples of
  which c are correct. Source: Chen et al., arXiv 2107.03374, eq. 1.

  Args:
    correct_PR: bool, one row per problem.
  """
  correct_PR = np.asarray(correct_PR, bool)
  n = correct_PR.shape[1]
  k_R1, i_1R = np.arange(1, n + 1)[:, None], np.arange(n, 0, -1)[None]
  all_wrong = np.cumprod(1 - k_R1 / i_1R, axis=1)  # [k, c], from c = 1
  table = 1 - np.concatenate([np.ones((n, 1)), all_wrong], axis=1)
  return table[:, correct_PR.sum(axis=1)].T


def maj_at_k(correct_PR: np.ndarray, answers_PR: Sequence[Sequence[str | None]]) -> np.ndarray:
  """The chance that the majority of k samples is correct, for k = 1 .. R: float64 [P, R].

  Every sample votes for the answer extracted from it, as a text; one without an answer does not
  vote. A tie is drawn by lot among the tied answers, and counts by that expectation; where nobody
  votes, nothing is correct. An answer whose samples were graded differently (one ran out of time)
  counts as their mean. Source of the vote: Wang et al., arXiv 2203.11171.

  Args:
    correct_PR: bool, one row per problem.
    answers_PR: the extracted answer of each sample, None where there is none.

  Raises ValueError for more than `MAX_SAMPLES` samples.
  """
  correct_PR = np.asarray(correct_PR, bool)
  if correct_PR.shape[1] > MAX_SAMPLES:
    raise ValueError(f"maj@k is computed for at most {MAX_SAMPLES} samples of a problem")
  rows = [_majority(*row) for row in zip(correct_PR, answers_PR, strict=True)]
  return np.array(rows).reshape(correct_PR.shape)


def _majority(correct_R: np.ndarray, answers_R: Sequence[str | None]) -> np.ndarray:
  votes: dict[str, list[bool]] = {}
  for right, answer in zip(correct_R, answers_R, strict=True):
    if answer is not None:
      votes.setdefault(answer, []).append(bool(right))
  counts = {answer: len(of) for answer, of in votes.items()}
  silent = len(answers_R) - sum(counts.values())
  value_R = np.zeros(len(answers_R))
  for answer, of in votes.items():
    if any(of):
      others = sorted(count for other, count in counts.items() if other != answer)
      value_R = value_R + np.mean(of) * _wins(counts[answer], tuple(others), silent)
  return value_R


@functools.lru_cache(maxsize=4096)  # problems are alike: 15 votes of 16 for one answer, say
def _wins(own: int, others: tuple[int, ...], silent: int) -> np.ndarray:
  """The chance that an answer with `own` of the n samples wins the vote of k, ties by lot, for
  k = 1 .. n, the others having `others` samples and `silent` none.

  The subsets in which it has t votes, nobody has more and r others have as many are counted by the
  coefficients of x^(k - t) y^r in the product, over the others, of
  sum_(s < t) C(count, s) x^s + C(count, t) x^t y; it wins 1 / (r + 1) of those.
  """
  n = own + sum(others) + silent
  wins = np.zeros(n + 1)  # by k
  for t in range(1, own + 1):
    rivals = sum(count >= t for count in others)
    ways = np.zeros((n + 1, rivals + 1))  # by samples of others, and how many of them tie
    ways[: silent + 1, 0] = _choices(silent)
    for count in others:
      choices, longer = _choices(count), np.zeros_like(ways)
      for s in range(min(t, count) + 1):
        tie = int(s == t)
        longer[s:, tie:] += choices[s] * ways[: n + 1 - s, : rivals + 1 - tie]
      ways = longer
    share = ways @ (1 / np.arange(1, rivals + 2))
    wins[t:] += _choices(own)[t] * share[: n + 1 - t]
  return wins[1:] / _choices(n)[1:]


@functools.lru_cache(maxsize=4096)
def _choices(n: int) -> np.ndarray:
  """C(n, s) for s = 0 .. n, as floats."""
  s = np.arange(n)
  return np.concatenate([[1.0], np.cumprod((n - s) / (s + 1))])
