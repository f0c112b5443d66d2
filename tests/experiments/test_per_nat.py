"""Staleness against mismatch of the same KL, on results whose answer is known."""

import math

import numpy as np

from experiments import per_nat


def made(cell, seed, kl, after):
  method, staleness = cell
  run = {"method": method, "staleness": staleness, "seed": seed, "after": after}
  return {**run, "curves": {} if kl is None else {"kl/behaviour_policy": [kl, kl]}}


def noisy(seed, without=()):
  """Every tenfold of the KL from 1e-5 on costs mismatch ten points."""
  doses = enumerate(per_nat.NOISES[1:])
  cells = {i: per_nat._noisy("vespo", noise)[:2] for i, noise in doses if noise not in without}
  return [made(cell, seed, 10.0 ** (i - 5), 0.9 - 0.1 * i) for i, cell in cells.items()]


def test_mismatch_is_read_off_at_the_kl_of_the_stale_run():
  stale = made(("vespo", 16), 1, 10**-3.5, 0.8)
  ((seed, (kl, accuracy, mismatched)),) = per_nat.pairs([*noisy(1), stale], "vespo", 16).items()
  assert seed == 1
  np.testing.assert_allclose([kl, accuracy, mismatched], [10**-3.5, 0.8, 0.75])


def test_seeds_that_cannot_be_compared_are_left_out():
  stale = [made(("vespo", 4), seed, kl, 0.5) for seed, kl in enumerate((1e-6, 1.0, 1e-3, None))]
  doses = [run for seed in range(4) for run in noisy(seed)]
  assert list(per_nat.pairs([*doses, *stale], "vespo", 4)) == [2]
  doses[2 * len(doses) // 4 + 1]["curves"] = {}  # of seed 2, its second: not finite
  assert per_nat.pairs([*doses, *stale], "vespo", 4) == {}
  holes = noisy(2, without=per_nat.NOISES[2:3])
  assert per_nat.pairs([*holes, *stale], "vespo", 4) == {}


def test_the_table_has_a_paired_test_over_seeds():
  stale = [made(("vespo", 64), seed, 1e-3, 0.68 + 0.02 * seed) for seed in range(3)]
  table = per_nat.at_equal_kl([run for seed in range(3) for run in noisy(seed)] + stale)
  (row,) = [line for line in table.splitlines() if line.startswith("| vespo")]
  method, n, seeds, kl, accuracy, mismatched, difference, p = map(str.strip, row.split("|")[1:-1])
  assert (method, n, seeds, kl, mismatched) == ("vespo", "64", "3", "0.001", "70.0 ± 0.0")
  assert accuracy.startswith("70.0 ±") and difference.startswith("+0.0 ±")
  assert math.isclose(float(p), 1.0, abs_tol=1e-6)


def test_the_last_row_is_of_the_mean_of_all_seed_by_seed():
  doses = [run for seed in range(2) for run in noisy(seed)]
  four = [made(("vespo", 4), seed, 1e-3, 0.6) for seed in range(2)]  # 10 points below, twice
  sixteen = [made(("vespo", 16), 0, 1e-3, 0.8)]  # 10 above, of one seed alone
  row = per_nat.at_equal_kl([*doses, *four, *sixteen]).splitlines()[-1]
  assert row.startswith("| all |  | 2 |  |  |  | -5.0 ±")
