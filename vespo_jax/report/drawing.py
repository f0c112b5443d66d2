"""Draws the figures of a run: raw values as light lines, a smoothed line on top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from vespo_jax.diagnostics import HISTOGRAM_EDGES
from vespo_jax.report import curves
from vespo_jax.report.rundir import Run, RunError, evaluations

SIZE_IN = (5.0, 3.3)
MARGINS_IN = {"left": 0.8, "right": 0.12, "bottom": 0.46, "top": 0.38}
LEGEND_IN = 0.17  # more at the top, where there is a legend below the title
FEW = 12  # measurements drawn as points, without a trend
PERCENT = FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}%")
STYLE = {
  "figure.dpi": 180,
  "figure.constrained_layout.use": True,
  "font.size": 9,
  "text.color": "#1f2328",
  "axes.edgecolor": "#9aa1ab",
  "axes.labelcolor": "#4b535d",
  "axes.labelsize": 9,
  "axes.titlesize": 11,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.grid.axis": "y",
  "grid.color": "#e3e6ea",
  "grid.linewidth": 0.7,
  "xtick.color": "#9aa1ab",
  "ytick.color": "#9aa1ab",
  "xtick.labelcolor": "#4b535d",
  "ytick.labelcolor": "#4b535d",
  "legend.frameon": False,
  "legend.fontsize": 8.5,
  "legend.handlelength": 1.2,
  "legend.columnspacing": 1.4,
}


def draw(run: Run) -> dict[str, Path]:
  """Writes `figures/NAME.png` for everything the run measured; returns the files by name, in the
  order of `curves.FIGURES` with `accuracy` (held-out, before and after) first."""
  folder = run.workdir / "figures"
  if folder.is_symlink():
    raise RunError(f"{folder} is a symbolic link: figures are written into the run directory alone")
  folder.mkdir(exist_ok=True)
  columns = columns_of(run.rows)
  cycle = run.setting("staleness.minibatches") or 1
  canvases = {}
  with matplotlib.rc_context({**STYLE, "figure.constrained_layout.use": False}):
    if accuracies := evaluations(run.result):
      canvases["accuracy"] = _draw_accuracies(accuracies)
    for figure in curves.FIGURES:
      panels = [p for p in figure.panels if len(_measured(p, columns)) > p.shares]
      if figure.histogram and any(figure.histogram in row for row in run.rows):
        canvases[figure.name] = _draw_histogram(figure, run.rows)
      if panels:
        canvases[figure.name] = _draw_figure(figure.title, panels, columns, cycle)
    for name, canvas in canvases.items():
      (folder / f"{name}.png").unlink(missing_ok=True)
      canvas.savefig(folder / f"{name}.png")
  return {name: folder / f"{name}.png" for name in canvases}


def smooth(values: np.ndarray, cycle: int, width: float) -> np.ndarray:
  """The trend of a noisy series: a moving average over one cycle, which takes out what repeats
  with it (the staleness ramp of a rollout batch), then a Gaussian average.

  Args:
    values: [n]; what is not finite weighs nothing, and is NaN again only if all around it is.
    cycle: length of the cycle in entries; 1 for none. Near the ends the window stays whole.
    width: standard deviation of the Gaussian, in entries.
  """
  known = np.isfinite(values)
  cycle = min(cycle, len(values))
  starts = np.clip(np.arange(len(values)) - (cycle - 1) // 2, 0, len(values) - cycle)
  counts = np.cumsum(np.concatenate([[0], known]))
  totals = np.cumsum(np.concatenate([[0.0], np.where(known, values, 0.0)]))
  weights = (counts[starts + cycle] - counts[starts]).astype(float)
  weighted = totals[starts + cycle] - totals[starts]
  reach = min(int(np.ceil(3 * width)), len(values) - 1)
  kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
  weights = np.convolve(weights, kernel)[reach : reach + len(values)]
  weighted = np.convolve(weighted, kernel)[reach : reach + len(values)]
  return np.divide(weighted, weights, out=np.full(len(values), np.nan), where=weights > 0)


def place(canvas: Canvas, **more_in: float) -> None:
  """Fixes the margins, which lets a figure be drawn in half the time that finding them takes."""
  left, right, bottom, top = (MARGINS_IN[side] + more_in.get(side, 0.0) for side in MARGINS_IN)
  width, height = canvas.get_size_inches()
  canvas.subplots_adjust(
    left=left / width,
    right=1 - right / width,
    bottom=bottom / height,
    top=1 - top / height,
    hspace=0.3,
  )


def columns_of(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
  """The metrics with at least one finite value, as arrays over rows; what a row lacks is NaN."""
  keys = {key for row in rows for key, value in row.items() if not isinstance(value, list)}
  columns = {key: np.array([row.get(key, np.nan) for row in rows], float) for key in keys}
  finite = {key: np.where(np.isfinite(v), v, np.nan) for key, v in columns.items()}
  return {key: values for key, values in finite.items() if not np.isnan(values).all()}


def _draw_figure(
  title: str, panels: list[curves.Panel], columns: Mapping[str, np.ndarray], cycle: int
) -> Canvas:
  more = max(len(panels) - 2, 0)
  canvas = Canvas(figsize=(SIZE_IN[0], SIZE_IN[1] + more))
  ratios = ([2.0] * (1 + more) + [1.2])[: len(panels)]
  stack = canvas.subplots(len(panels), squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
  for axes, panel in zip(stack, panels, strict=True):
    (_draw_shares if panel.shares else _draw_panel)(axes, panel, columns, cycle)
  canvas.align_ylabels(stack)
  stack[0].set_title(title, pad=20 if stack[0].get_legend() else 8)
  first, last = columns["step"][0], columns["step"][-1]
  margin = max(0.02 * (last - first), 0.5)
  stack[-1].set_xlim(first - margin, last + margin)
  stack[-1].set_xlabel("update")
  stack[-1].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
  place(canvas, top=LEGEND_IN if stack[0].get_legend() else 0.0)
  return canvas


def _draw_panel(
  axes: Axes, panel: curves.Panel, columns: Mapping[str, np.ndarray], cycle: int
) -> None:
  lines = _measured(panel, columns)
  everything = np.concatenate([columns[line.key] for line in lines])
  logarithmic = panel.decades and _spans_decades(everything)
  steps = columns["step"]

  def sparse(values: np.ndarray) -> bool:
    return panel.points or np.isfinite(values).sum() < FEW

  def trend(values: np.ndarray) -> np.ndarray:
    if sparse(values):
      return values
    width = max(len(values) / 50, 1.0)
    if not logarithmic:
      return smooth(values, cycle, width)
    return np.exp(smooth(np.log(np.where(values > 0, values, np.nan)), cycle, width))

  for line in lines:
    values = columns[line.key]
    if sparse(values):
      known = np.isfinite(values)
      axes.plot(steps[known], values[known], "o-", color=line.colour, ms=3.5, label=line.label)
    else:
      axes.plot(steps, values, color=line.colour, linewidth=0.8, alpha=0.3)
      axes.plot(steps, trend(values), color=line.colour, linewidth=1.8, label=line.label)
  if panel.spread in columns and panel.lines[0] in lines:
    mean, std = trend(columns[panel.lines[0].key]), trend(columns[panel.spread])
    colour = panel.lines[0].colour
    axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.16, linewidth=0)
  if logarithmic:
    axes.set_yscale("log")
  else:
    scale(axes, panel)
  axes.set_ylim(*panel.limits)
  axes.set_ylabel(panel.ylabel)
  if len(lines) > 1:
    _add_legend(axes)


def scale(axes: Axes, panel: curves.Panel) -> None:
  """Labels the linear vertical axis of what has been drawn."""
  if panel.percent:
    axes.yaxis.set_major_formatter(PERCENT)
  elif np.abs(axes.dataLim.intervaly).max() >= 10_000:
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_shares(
  axes: Axes, panel: curves.Panel, columns: Mapping[str, np.ndarray], cycle: int
) -> None:
  lines, steps = _measured(panel, columns), columns["step"]
  parts = [np.nan_to_num(columns[line.key]) for line in lines]
  if len(steps) >= FEW:
    parts = [smooth(part, cycle, max(len(part) / 100, 1.0)) for part in parts]
  total = np.sum(parts, axis=0)
  shares = np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)
  style = {"colors": [line.colour for line in lines], "labels": [line.label for line in lines]}
  if len(steps) >= FEW:
    axes.stackplot(steps, shares, linewidth=0, **style)
  else:
    for share, bottom, colour, label in zip(
      shares, np.cumsum(shares, axis=0) - shares, *style.values(), strict=True
    ):
      axes.bar(steps, share, 0.9, bottom, color=colour, label=label)
  axes.set_axisbelow(True)
  axes.set_ylim(0, 1)
  axes.yaxis.set_major_formatter(PERCENT)
  axes.set_ylabel(panel.ylabel)
  _add_legend(axes)


def _add_legend(axes: Axes) -> None:
  columns = len(axes.get_legend_handles_labels()[1])
  axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=columns, borderpad=0.1)


def _measured(panel: curves.Panel, columns: Mapping[str, np.ndarray]) -> list[curves.Line]:
  return [line for line in panel.lines if line.key in columns]


def _draw_histogram(figure: curves.Figure, rows: list[dict[str, Any]]) -> Canvas:
  rows = [row for row in rows if figure.histogram in row]
  steps = np.array([row["step"] for row in rows], float)
  counts = np.array([row[figure.histogram] for row in rows], float)
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  canvas = Canvas(figsize=SIZE_IN)
  axes = canvas.subplots()
  middles = (steps[1:] + steps[:-1]) / 2
  edges = np.concatenate([[steps[0] - 0.5], middles, [steps[-1] + 0.5]])
  bins = np.arange(counts.shape[1] + 1)
  norm = PowerNorm(0.4, vmin=0.0, vmax=shares.max())  # a few outliers are what one looks for
  mesh = axes.pcolormesh(edges, bins, shares.T, cmap="Blues", norm=norm)
  ends = np.flatnonzero(counts.sum(axis=0))
  axes.set_ylim(max(ends.min() - 1, 0), min(ends.max() + 2, counts.shape[1]))
  labels = [f"{edge:g}" for edge in HISTOGRAM_EDGES]
  axes.set_yticks(np.arange(1, len(labels) + 1), labels)
  axes.grid(False)
  axes.set_title(figure.title, pad=8)
  axes.set_ylabel("log W (nats)")
  axes.set_xlabel("update")
  axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
  canvas.colorbar(mesh, label="share of sequences", format=PERCENT)
  place(canvas)
  return canvas


def _spans_decades(values: np.ndarray) -> bool:
  positive = values[values > 0]
  return positive.size > 0 and positive.max() > 10 * positive.min()


def _draw_accuracies(accuracies: Mapping[str, Mapping[str, Any]]) -> Canvas:
  canvas = Canvas(figsize=(SIZE_IN[0], 0.9 + 0.42 * len(accuracies)))
  axes = canvas.subplots()
  for row, (when, evaluation) in enumerate(accuracies.items()):
    accuracy, low, high = (evaluation[key] for key in ("accuracy", "low", "high"))
    colour = curves.BLUE if when == "after" else curves.GREY
    axes.hlines(row, low, high, colour, linewidth=7, alpha=0.3, clip_on=False)
    axes.plot(accuracy, row, "o", color=colour, markersize=8, clip_on=False)
    axes.text(accuracy, row - 0.2, f"{accuracy:.1%}", color=colour, ha="center", va="bottom")
  axes.set_yticks(range(len(accuracies)), [f"{when} training" for when in accuracies])
  axes.set_ylim(len(accuracies) - 0.5, -0.75)
  axes.set_xlim(0, 1)
  axes.xaxis.set_major_formatter(PERCENT)
  axes.grid(True, axis="x")
  axes.grid(False, axis="y")
  axes.tick_params(axis="y", length=0, pad=10)
  axes.spines["left"].set_visible(False)
  axes.set_xlabel("accuracy on held-out problems, with its confidence interval")
  place(canvas, left=0.3, right=0.1, top=-0.28)
  return canvas
