"""Detectors of a fall, on curves whose answer is plain."""

import numpy as np
import pytest

from experiments import early_warning

STEPS = list(range(10, 330, 10))


def run(accuracies, signal, before=0.2):
  """A run of 32 points with four evaluations."""
  evaluations = [list(pair) for pair in zip((80, 160, 240, 320), accuracies, strict=True)]
  curves = {"step": STEPS, "signal": list(signal)}
  return {"before": before, "evaluations": evaluations, "curves": curves}


FALLEN = (0.5, 0.8, 0.3, 0.2)
STANDING = (0.5, 0.8, 0.3, 0.8)


@pytest.mark.parametrize(
  ("accuracies", "before", "expected"),
  [
    (FALLEN, 0.2, 240),
    (STANDING, 0.2, None),  # it has come back
    ((0.1, 0.1, 0.1, 0.1), 0.2, 80),
    ((0.5, 0.3, 0.8, 0.1), 0.2, 320),
    ((0.5, 0.8, 0.65, 0.65), 0.2, None),
    ((0.0, 0.0, 0.0, 0.0), 0.0, None),
  ],
)
def test_a_fall_is_from_where_every_evaluation_is_low(accuracies, before, expected):
  assert early_warning.fall(run(accuracies, np.zeros(32), before)) == expected


def test_a_statistic_that_moves_first_is_worth_its_lead():
  early, late = np.zeros(32), np.zeros(32)
  early[10:], late[25:] = 5.0, 5.0
  standing = [run(STANDING, np.full(32, 0.1 * i)) for i in range(10)]
  found = early_warning.detect("signal", np.positive, [run(FALLEN, early), *standing])
  assert (found.caught, found.falls) == (1, 1)
  soon = np.zeros(32)
  soon[17:] = 5.0  # after the evaluation at 160, which is as it should be
  later = early_warning.detect("signal", np.positive, [run(FALLEN, soon), *standing])
  assert (found.close, later.caught, later.close) == (0, 1, 1)
  assert found.lead == pytest.approx(240 - STEPS[10])
  assert early_warning.detect("signal", np.positive, [run(FALLEN, late), *standing]).caught == 0
  mirrored = [run(STANDING, -np.array(r["curves"]["signal"])) for r in standing]
  assert (
    early_warning.detect("signal", np.negative, [run(FALLEN, -early), *mirrored]).lead == found.lead
  )
  text = early_warning.markdown([found], 11, 1)
  assert "1 of 11 runs ended below 80%" in text and "| 1 of 1 |" in text
  assert "1 of the falls are of learning rates above" in text


def test_a_reward_warns_by_how_far_it_is_below_its_best():
  assert early_warning.drawdown(np.array([0.2, 0.5, 0.4, 0.6])).tolist() == pytest.approx(
    [0.0, 0.0, 0.1, 0.0]
  )
