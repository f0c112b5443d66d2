"""A result file -> a Markdown table with intervals, paired tests and verdicts, and a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.suite import statistics
from experiments.suite.experiment import Experiment, by_cell
from experiments.suite.results import Result

SCORES = {  # nothing is selected: how a run ends, its last rewards, and its best evaluation
  "after": "held-out accuracy at the end",
  "last_reward": "mean reward, last tenth",
  "best": "best evaluation",
}
BASE = "vespo"


def markdown(experiment: Experiment, results: Sequence[Result]) -> str:
  """The table of an experiment: mean and 95 % interval over seeds, in per cent, p of the paired
  test of the first score against VESPO at the same staleness, and a verdict for every claim."""
  cells = by_cell(results)
  lines = [f"## {experiment.title}", ""]
  lines += [f"| method | N | seeds | {' | '.join(SCORES.values())} | p against VESPO | collapsed |"]
  lines += ["| --- " * (len(SCORES) + 5) + "|"]
  for method, staleness, _, _ in experiment.cells:
    cell = cells.get((method, staleness), {})
    if not cell:
      continue
    figures = [_interval([r[score] for r in cell.values()]) for score in SCORES]
    base = cells.get((BASE, staleness), {})
    p = "" if method == BASE or not base else _p(cell, base)
    collapsed = f"{sum(r['collapsed'] for r in cell.values())}"
    row = [method, str(staleness), str(len(cell)), *figures, p, collapsed]
    lines.append("| " + " | ".join(row) + " |")
  if experiment.claims:
    lines += ["", "| the paper says | its figures | here | verdict |", "| --- " * 4 + "|"]
  for claim in experiment.claims:
    differences = _differences(cells.get(claim.better, {}), cells.get(claim.worse, {}), claim.score)
    here, verdict = "not run", ""
    if differences:
      points = _interval(differences, sign="+")
      p = statistics.paired_p(differences)
      here = f"{points} points, p = {p:.3g}, {len(differences)} seeds"
      verdict = statistics.verdict(differences)
    lines.append(f"| {claim.text} | {claim.paper} | {here} | {verdict} |")
  return "\n".join([*lines, ""])


def draw(experiment: Experiment, results: Sequence[Result], path: Path) -> None:
  """Curves of every method, a column for each staleness and a row for each metric: the mean over
  seeds, and the range they span."""
  cells = by_cell(results)
  columns = sorted({staleness for _, staleness in cells})
  rows = experiment.curves
  size = (3.2 * len(columns) + 1.2, 2.4 * len(rows) + 0.6)
  figure, axes = plt.subplots(
    len(rows), len(columns), figsize=size, squeeze=False, sharex="col", sharey="row"
  )
  methods = list(dict.fromkeys(method for method, *_ in experiment.cells))
  for (method, staleness), cell in cells.items():
    if method not in methods:
      continue
    color = f"C{methods.index(method) % 10}"
    for i, name in enumerate(rows):
      curves = [r["curves"] for r in cell.values() if name in r["curves"]]
      if not curves:
        continue
      length = min(len(curve[name]) for curve in curves)
      values = np.array([curve[name][:length] for curve in curves])
      steps = np.array(curves[0]["step"][:length])
      axis = axes[i, columns.index(staleness)]
      axis.plot(steps, np.nanmean(values, axis=0), color=color, label=method, linewidth=1.4)
      axis.fill_between(
        steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0
      )
  for j, staleness in enumerate(columns):
    axes[0, j].set_title(f"N = {staleness}", fontsize=10)
    axes[-1, j].set_xlabel("update")
  for i, name in enumerate(rows):
    axes[i, 0].set_ylabel(name)
  axes[0, 0].legend(fontsize=8)
  figure.tight_layout()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=100)
  plt.close(figure)


def _interval(values: Sequence[float], sign: str = "") -> str:
  mean, half = statistics.mean_interval(values)
  return f"{100 * mean:{sign}.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def _differences(better: dict[int, Result], worse: dict[int, Result], score: str) -> list[float]:
  return [better[seed][score] - worse[seed][score] for seed in sorted(better) if seed in worse]


def _p(cell: dict[int, Result], base: dict[int, Result]) -> str:
  differences = _differences(cell, base, next(iter(SCORES)))
  return f"{statistics.paired_p(differences):.3g}" if len(differences) > 1 else ""
