"""A result file -> a Markdown table with intervals, paired tests and verdicts, and a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.suite import results as results_lib
from experiments.suite import statistics
from experiments.suite.experiment import ACCURACY, Claim, Experiment, by_cell, paired_differences
from experiments.suite.results import Result
from vespo_jax.report.drawing import STYLE

SCORES: Mapping[str, Callable[[Result], float]] = {
  "accuracy at the end": lambda result: result["after"],
  "mean over the second half": results_lib.second_half,
  "best evaluation": results_lib.best,
  "reward, last tenth": lambda result: result["last_reward"],
}
BASE = "vespo"
COLORS = {
  statistics.REPRODUCED: "C2",
  statistics.NOT_SEEN: "#9aa1ab",
  statistics.CONTRADICTED: "C3",
}
LEGEND = {
  "as claimed, p < 0.05": {"color": COLORS[statistics.REPRODUCED], "marker": "o"},
  "unclear": {"color": COLORS[statistics.NOT_SEEN], "marker": "o"},
  "the reverse, p < 0.05": {"color": COLORS[statistics.CONTRADICTED], "marker": "o"},
  "the paper's figures": {"color": "C1", "marker": "D", "mfc": "none"},
}
LINES = ("-", "--", ":", "-.")
COLUMNS = 4  # of panels, where there is one staleness

# panel -> line -> its points: what stands beside one, and its cell, (method, staleness)
Panels = Mapping[str, Mapping[str, Sequence[tuple[str, tuple[str, int]]]]]


def markdown(experiment: Experiment, results: Sequence[Result]) -> str:
  """The table of an experiment: mean and 95 % interval over seeds, in per cent, p of the paired
  test of the accuracy at the end against VESPO at the same staleness, and a verdict for every
  claim, of the same accuracy. Where the clock is measured, the seconds of training too."""
  cells = by_cell(results)
  timed = ["seconds of training"] if experiment.alone else []
  lines = [f"## {experiment.title}", ""]
  columns = ["method", "N", "seeds", *SCORES, "p against VESPO", "collapsed", *timed]
  lines += [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
  for method, staleness, _, _ in experiment.cells:
    cell = cells.get((method, staleness), {})
    if not cell:
      continue
    figures = [interval(list(map(score, cell.values()))) for score in SCORES.values()]
    base_name = ", ".join([BASE, *method.split(", ")[1:]])
    base = cells.get((base_name, staleness), {})
    p = "" if method == base_name or not base else _p(cell, base)
    collapsed = f"{sum(map(results_lib.collapsed, cell.values()))}"
    took = [_seconds(cell) for _ in timed]
    row = [method, str(staleness), str(len(cell)), *figures, p, collapsed, *took]
    lines.append("| " + " | ".join(row) + " |")
  if experiment.claims:
    lines += ["", "| claim | the paper's figures | here | verdict |", "| --- " * 4 + "|"]
  for claim in experiment.claims:
    differences = claim.differences(cells)
    here, verdict = "not run", ""
    if differences:
      points = interval(differences, sign="+")
      p = statistics.paired_p(differences)
      here = f"{points} points, p = {p:.3g}, {len(differences)} seeds"
      if len(differences) == 1:
        here = f"{points} points, one seed"
      verdict = statistics.verdict(differences, claim.paper is not None, experiment.verdict_seeds)
      verdict = statistics.TIE if claim.tie else verdict
    lines.append(f"| {claim.text} | {_published(claim)} | {here} | {verdict} |")
  if experiment.analysis:
    lines += ["", experiment.analysis(results).rstrip()]
  return "\n".join([*lines, ""])


def judged(
  experiment: Experiment, results: Sequence[Result]
) -> list[tuple[Claim, Sequence[float]]]:
  """The claims of an experiment that have a verdict, which needs all of its seeds, with their
  differences."""
  cells = by_cell(results)
  found = [(claim, claim.differences(cells)) for claim in experiment.claims if not claim.tie]
  return [(claim, d) for claim, d in found if len(d) >= experiment.verdict_seeds]


def draw(experiment: Experiment, results: Sequence[Result], path: Path) -> None:
  """Curves of every method: the mean over seeds, and the range they span. A column for each
  staleness and a row for each metric; with one staleness, the metrics side by side. What follows
  ", " in a method's name is told by the line, and what stands before it by the colour."""
  cells = by_cell(results)
  methods = list(dict.fromkeys(method for method, *_ in experiment.cells))
  names, kinds = (list(dict.fromkeys(m.partition(", ")[i] for m in methods)) for i in (0, 2))
  stalenesses = sorted({staleness for _, staleness, *_ in experiment.cells})
  panels = [(name, staleness) for name in experiment.curves for staleness in stalenesses]
  columns = len(stalenesses) if len(stalenesses) > 1 else min(len(panels), COLUMNS)
  rows = math.ceil(len(panels) / columns)
  path.parent.mkdir(parents=True, exist_ok=True)
  with matplotlib.rc_context(STYLE):
    beside = min(6, max(2, 3 * columns // 2))  # names that the legend has room for
    height = 2.1 * rows + 0.2 + 0.15 * math.ceil(len(methods) / beside)
    figure = Figure(figsize=(2.9 * columns, height))
    axes = figure.subplots(rows, columns, squeeze=False, sharex="col").ravel()
    for axis, (name, staleness) in zip(axes, panels, strict=False):
      for method in methods:
        first, _, kind = method.partition(", ")
        color, line = f"C{names.index(first) % 10}", LINES[kinds.index(kind) % len(LINES)]
        results_of = cells.get((method, staleness), {}).values()
        _curve(axis, name, results_of, color, line, method)
      axis.set_title(f"{name}, N = {staleness}" if len(stalenesses) > 1 else name, fontsize=9)
    for axis in axes[len(panels) :]:
      axis.set_axis_off()
    for axis in axes[len(panels) - columns : len(panels)]:
      axis.set_xlabel("update")
    handles = {line.get_label(): line for axis in axes for line in axis.lines}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=beside)
    figure.savefig(path, dpi=100)


def draw_points(
  panels: Panels,
  results: Sequence[Result],
  path: Path,
  x: Callable[[Result], float],
  xlabel: str,
  xscale: str = "linear",
) -> None:
  """The final accuracy of cells against a quantity `x` of their runs: the mean over seeds and the
  standard deviation. A cell without results is left out."""
  cells = by_cell(results)
  path.parent.mkdir(parents=True, exist_ok=True)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(3.4 * len(panels), 3.0))
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
      for label, points in lines.items():
        there = [(text, list(cells[cell].values())) for text, cell in points if cell in cells]
        across = [np.nanmean([x(run) for run in runs]) for _, runs in there]
        accuracy = [[run["after"] for run in runs] for _, runs in there]
        mean = [np.mean(of) for of in accuracy]
        spread = [np.std(of, ddof=1) if len(of) > 1 else 0.0 for of in accuracy]
        axis.errorbar(across, mean, spread, marker="o", markersize=4, label=label)
        for at, height, (text, _) in zip(across, mean, there, strict=True):
          axis.annotate(text, (at, height), fontsize=8)
      axis.set_xscale(xscale)
      axis.set_title(title)
      axis.set_xlabel(xlabel)
    axes[0].set_ylabel("final accuracy")
    axes[0].legend()
    figure.savefig(path, dpi=100)


def draw_claims(
  experiments: Sequence[Experiment], made: Mapping[str, Sequence[Result]], path: Path
) -> None:
  """Every claim that has its seeds: by how many points one cell ends above the other, the 95 %
  interval over seeds, and what the paper has where it has figures. `made`: results by name. Without
  such a claim, no figure."""
  rows: list[tuple[str, Claim | None, Sequence[float]]] = []
  for experiment in experiments:
    found = [(claim.text, claim, d) for claim, d in judged(experiment, made[experiment.name])]
    rows += [(experiment.name, None, ()), *found] if found else []
  if not rows:
    return
  reach = 0.0  # of the axis: all points are on it, and intervals may go on
  path.parent.mkdir(parents=True, exist_ok=True)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(7.2, 0.17 * len(rows) + 0.9))
    axis = figure.subplots()
    axis.axvline(0.0, color=STYLE["axes.edgecolor"], linewidth=0.8)
    for y, (_, claim, differences) in enumerate(rows):
      if claim is None:
        continue
      mean, half = statistics.mean_interval(differences)
      color = COLORS[statistics.verdict(differences)]
      style = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1.3}
      axis.errorbar(100 * mean, y, xerr=100 * half, **style)
      reach = max(reach, abs(100 * mean))
      if isinstance(claim.paper, tuple):
        published = claim.paper[0] - claim.paper[1]
        axis.plot(published, y, "D", color="C1", mfc="none", markersize=4)
        reach = max(reach, abs(published))
    axis.set_yticks(range(len(rows)), [text for text, *_ in rows], fontsize=7.5)
    for label, (_, claim, _) in zip(axis.get_yticklabels(), rows, strict=True):
      label.set_fontweight("normal" if claim else "bold")
    axis.set_ylim(len(rows) - 0.5, -0.7)
    axis.set_xlim(-1.2 * reach - 1, 1.2 * reach + 1)
    axis.set_xlabel("points that the first ends above the second")
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
    for label, style in LEGEND.items():
      axis.plot([], [], label=label, linestyle="", markersize=4, **style)
    figure.legend(loc="outside upper center", ncols=4, handletextpad=0.1)
    figure.savefig(path, dpi=130)


def _curve(
  axis: Axes, name: str, results: Iterable[Result], color: str, line: str, label: str
) -> None:
  """One method's mean and range of a metric over updates, where it has it; a run that ended before
  others is a line of its own, to a cross."""
  runs = [points for result in results if (points := _points(result, name))]
  if not runs:
    return
  last = max(steps[-1] for steps, _ in runs)
  for steps, short in runs:
    if steps[-1] < last:
      style = {"color": color, "linestyle": line, "label": label, "linewidth": 0.8}
      axis.plot(steps, short, marker="x", markevery=[-1], markersize=5, **style)
  values = np.array([values for steps, values in runs if steps[-1] == last])
  steps = next(steps for steps, _ in runs if steps[-1] == last)
  style = {"color": color, "linestyle": line, "label": label, "linewidth": 1.3}
  axis.plot(steps, values.mean(axis=0), **style)
  low, high = values.min(axis=0), values.max(axis=0)
  axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def _points(result: Result, name: str) -> tuple[Sequence[float], Sequence[float]] | None:
  """Updates, and what a metric was there; None where the run does not have it."""
  if name == ACCURACY:
    steps, accuracies = zip((0, result["before"]), *result["evaluations"], strict=True)
    return steps, accuracies
  curves = result["curves"]
  return (curves["step"], curves[name]) if name in curves else None


def interval(values: Sequence[float], sign: str = "") -> str:
  """The mean of shares and its 95 % interval, in per cent, as tables have it."""
  mean, half = statistics.mean_interval(values)
  return f"{100 * mean:{sign}.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def _seconds(cell: Mapping[int, Result]) -> str:
  times = [results_lib.training_seconds(result) for result in cell.values()]
  if not (whole := [time for time in times if not math.isnan(time)]):
    return ""
  mean, half = statistics.mean_interval(whole)
  return f"{mean:.0f}" + ("" if math.isnan(half) else f" ± {half:.0f}")


def _published(claim: Claim) -> str:
  if claim.paper is None:
    return "not in the paper"
  return claim.paper if isinstance(claim.paper, str) else "{} against {}".format(*claim.paper)


def _p(cell: dict[int, Result], base: dict[int, Result]) -> str:
  differences = paired_differences(cell, base)
  return f"{statistics.paired_p(differences):.3g}" if len(differences) > 1 else ""
