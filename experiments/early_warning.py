"""Past the paper: what warns of a fall before the reward? `python -m experiments.early_warning`.

Proposition 3.1 bounds the second moment of the coefficients. This runs nothing: it reads the runs
of all other experiments for what their minibatches said about their weights. Each statistic is a
detector, which alarms where its running mean first passes a threshold (of the reward: where it is
so far below its best). The threshold is the one that leaves 90 % of the runs that did not fall in
peace, so that detectors are compared at equal cost; it is that of these same runs. What counts is
how many falling runs are caught before an evaluation shows the fall, and how long before. The
reward of training, which is of weights up to N updates older, is one of them.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from configs.testbed import LEARNING_RATE
from experiments.suite import results as results_lib
from experiments.suite.cli import FIGURES
from experiments.suite.results import Result
from vespo_jax.report.drawing import STYLE

FALL = 0.8  # a run has fallen that ends below this share of its best evaluation
FALSE_ALARMS = 0.1
WINDOW = 4  # points of a curve that a running mean is over


def drawdown(values: np.ndarray) -> np.ndarray:
  """How far each value is below the largest so far."""
  return np.maximum.accumulate(values) - values


DETECTORS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {  # statistic: large is alarming
  "objective/ess_fraction": np.negative,  # 1 / (E[phi^2] / E[phi]^2), whose numerator is bounded
  "weight/ess_fraction": np.negative,
  "weight/log_w_std": np.positive,
  "kl/behaviour_policy": np.positive,
  "grad/norm": np.positive,
  "entropy/mean": np.negative,
  "reward/mean": drawdown,
}


@dataclasses.dataclass(frozen=True)
class Detection:
  """What one statistic was worth.

  Attributes:
    name: of the statistic.
    caught: falling runs it alarmed in before an evaluation showed the fall.
    falls: falling runs there were.
    close: of those caught, the runs in which the alarm came after the last evaluation that was as
      it should be: no evaluation called it a false one.
    lead: median over those caught, updates from alarm to that evaluation; NaN if none was.
  """

  name: str
  caught: int
  close: int
  falls: int
  lead: float


def fall(run: Result) -> int | None:
  """The update of the evaluation from which on all are below `FALL` of the best before them; None
  if the run did not end so."""
  steps, accuracies = zip((0, run["before"]), *run["evaluations"], strict=True)
  low = accuracies < FALL * np.maximum.accumulate(accuracies)
  if not low[-1]:
    return None
  return steps[len(low) - np.argmin(low[::-1])]  # the first accuracy is its own best, so not low


def detect(
  name: str, alarm: Callable[[np.ndarray], np.ndarray], runs: Sequence[Result]
) -> Detection:
  """Holds one statistic against runs, falling and not; `alarm` is what grows with the danger."""
  falling, standing = [], []
  for run in runs:
    score = alarm(_running_mean(np.asarray(run["curves"][name], float)))
    at = fall(run)
    if at is None:
      standing.append(score.max())
    else:
      healthy = max((step for step, _ in run["evaluations"] if step < at), default=0)
      falling.append((score, at, healthy, run["curves"]["step"]))
  threshold = np.quantile(standing, 1 - FALSE_ALARMS) if standing else math.inf
  leads, close = [], 0
  for score, at, healthy, steps in falling:
    alarms = np.flatnonzero(score > threshold)
    if len(alarms) and steps[alarms[0]] < at:
      leads.append(at - steps[alarms[0]])
      close += steps[alarms[0]] > healthy
  lead = float(np.median(leads)) if leads else math.nan
  return Detection(name, len(leads), close, len(falling), lead)


def read_all() -> list[Result]:
  """Every run there is a result of, once, that has all statistics."""
  files = sorted(results_lib.RESULTS.glob("*.jsonl"))
  runs = {run["key"]: run for path in files for run in results_lib.read(path)}
  return [run for run in runs.values() if set(DETECTORS) <= set(run["curves"])]


def markdown(detections: Sequence[Detection], runs: int, deliberate: int = 0) -> str:
  """The table, with Wilson's 95 % intervals of the share that is caught; `deliberate` falls are of
  learning rates above the testbed's."""
  falls = detections[0].falls
  lines = [
    "## Past the paper: what warns of a fall before the reward does",
    "",
    f"{falls} of {runs} runs ended below {FALL:.0%} of their best evaluation. Thresholds leave",
    f"{1 - FALSE_ALARMS:.0%} of the others in peace, and are set by these same runs, of every N,",
    f"task and policy; {deliberate} of the falls are of learning rates above the testbed's. An",
    "alarm counts whenever it first came before the evaluation that shows the fall; in the third",
    "column only if no evaluation in between was as it should be.",
    "",
    "| statistic | caught before an evaluation | 95 % interval | since the last good one | updates "
    "before, median |",
    "| --- | --- | --- | --- | --- |",
  ]
  for d in detections:
    interval = stats.binomtest(d.caught, d.falls).proportion_ci(method="wilson")
    share = f"{interval.low:.0%} to {interval.high:.0%}"
    lead = "" if math.isnan(d.lead) else f"{d.lead:.0f}"
    lines.append(f"| `{d.name}` | {d.caught} of {d.falls} | {share} | {d.close} | {lead} |")
  return "\n".join([*lines, ""])


def draw(detections: Sequence[Detection], path: Path) -> None:
  """The share that each statistic caught."""
  with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
    figure = Figure(figsize=(5.0, 2.6))
    axis = figure.subplots()
    axis.barh([d.name for d in detections][::-1], [d.caught / d.falls for d in detections][::-1])
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of falls that it told of before an evaluation did")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
  """Writes the table and the figure; exit code 1 where no run has fallen."""
  runs = read_all()
  detections = [detect(name, alarm, runs) for name, alarm in DETECTORS.items()]
  if not detections[0].falls:
    print("no run has fallen: there is nothing to warn of", file=sys.stderr)
    return 1
  rates = [run["changes"].get("optimizer.learning_rate", 0.0) for run in runs if fall(run)]
  text = markdown(detections, len(runs), sum(rate > LEARNING_RATE for rate in rates))
  draw(detections, FIGURES / "early_warning.png")
  (FIGURES / "early_warning.md").write_text(text)
  print(text)
  return 0


def _running_mean(values: np.ndarray) -> np.ndarray:
  """The mean of up to the last `WINDOW` values at every point."""
  total = np.concatenate([[0.0], np.cumsum(values)])
  stop = np.arange(1, len(values) + 1)
  start = np.maximum(stop - WINDOW, 0)
  return (total[stop] - total[start]) / (stop - start)


if __name__ == "__main__":
  sys.exit(main())
