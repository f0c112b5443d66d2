"""Detectors of a fall, on curves whose answer is plain."""

import numpy as np
import pytest

from experiments import early_warning


def run(reward, signal):
  steps = list(range(10, 10 * (len(reward) + 1), 10))
  return {"curves": {"step": steps, "reward/mean": list(reward), "signal": list(signal)}}


RISE = np.linspace(0.2, 0.8, 20)
FALL = np.concatenate([RISE, np.full(12, 0.1)])
STAND = np.concatenate([RISE, np.full(12, 0.8)])


def test_a_fall_is_where_it_stays_down():
  at = early_warning.fall(FALL)
  assert 20 <= at <= 22
  assert early_warning.fall(STAND) is None
  dip = STAND.copy()
  dip[22:25] = 0.1
  assert early_warning.fall(dip) is None


def test_a_statistic_that_moves_first_is_worth_its_lead():
  early, late = np.zeros(32), np.zeros(32)
  early[10:], late[25:] = 5.0, 5.0
  standing = [run(STAND, np.full(32, 0.1 * i)) for i in range(10)]
  found = early_warning.detect("signal", np.positive, [run(FALL, early), *standing])
  assert (found.caught, found.falls) == (1, 1)
  assert found.lead == pytest.approx(100, abs=30)
  assert early_warning.detect("signal", np.positive, [run(FALL, late), *standing]).caught == 0
  mirrored = [run(r["curves"]["reward/mean"], -np.array(r["curves"]["signal"])) for r in standing]
  assert (
    early_warning.detect("signal", np.negative, [run(FALL, -early), *mirrored]).lead == found.lead
  )
  text = early_warning.markdown([found], 11)
  assert "1 of 11 runs fell" in text and "| 1 of 1 |" in text


def test_a_reward_warns_by_how_far_it_is_below_its_best():
  assert early_warning.drawdown(np.array([0.2, 0.5, 0.4, 0.6])).tolist() == pytest.approx(
    [0.0, 0.0, 0.1, 0.0]
  )
