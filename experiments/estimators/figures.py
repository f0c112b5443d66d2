"""The figures of a run, drawn from its records and from the objectives' kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.estimators import kernels, style
from experiments.estimators.families import NONE
from experiments.estimators.results import Point, Results
from experiments.estimators.run import Entry
from vespo_jax.objectives import Objective
from vespo_jax.report.curves import BLUE, GREY
from vespo_jax.report.drawing import STYLE

AXES = {
  "staleness": "updates from behaviour policy to policy",
  "drift": "std of a random change of every parameter",
  "noise": "rounding, or std of noise on the logits",
  "length": "maximum length, at the same drift per token",
}
BESIDE = {"noise": "rounding"}  # a sweep without an order, shown as points left of another
SIGNAL = "signal"
PLANES = 4  # staleness values in the bias-variance plane
LEAST = 3e-3  # the edges of that plane, where estimators without bias or without noise stand
KERNEL_ROWS = ("\u03d5, A > 0", "\u03d5, A < 0", "f, A > 0", "f, A < 0")
KERNEL_LIMITS = ((-0.08, 2.2), (-0.08, 2.2), (-2.2, 2.2), (-2.2, 2.2))


def draw(results: Results, every: Sequence[Entry], folder: Path) -> None:
  """Writes every figure to `folder` as NAME.png."""
  makers: dict[str, Callable[[], Figure]] = {
    "overview": lambda: _overview(results),
    "bias_variance": lambda: _planes(results),
    "cosine_staleness": lambda: _families(results, "staleness", "cosine"),
    "signal_staleness_own": lambda: _families(results, "staleness", SIGNAL, "own"),
    "signal_staleness_group": lambda: _families(results, "staleness", SIGNAL, "own", "group"),
    "kernels": lambda: _kernels(every),
  }
  for sweep in AXES:
    makers[f"signal_{sweep}"] = lambda sweep=sweep: _families(results, sweep, SIGNAL)
  with matplotlib.rc_context(STYLE):
    for name, make in makers.items():
      make().savefig(folder / f"{name}.png")


def _overview(results: Results) -> Figure:
  """The highlighted methods over all sweeps, with the best of the others."""
  canvas = Figure(figsize=(10.5, 6.6))
  canvas.suptitle("How much of a step is along the true gradient", x=0.01, ha="left", weight="bold")
  for axes, sweep in zip(canvas.subplots(2, 2).flat, AXES, strict=True):
    lines = {x: _line(results, sweep, x, SIGNAL, "common", "expected") for x in results.objectives}
    others = [x for x in lines if x not in style.HIGHLIGHTS]
    best = max(others, key=lambda x: lines[x].mean(), default=None)
    shown = [x for x in lines if x in style.HIGHLIGHTS or x == best]
    _draw_lines(axes, results, sweep, lines, shown)
    axes.set_title(sweep)
  canvas.supylabel("signal: 1 is the gradient itself, below 0 leads away", fontsize=9)
  return canvas


def _families(
  results: Results, sweep: str, metric: str, table: str = "common", advantage: str = "expected"
) -> Figure:
  """One panel per family, VESPO and REINFORCE in each of them, everything else faint."""
  canvas = Figure(figsize=(12.5, 6.6))
  whose = "the common aggregation" if table == "common" else "each method's own aggregation"
  advantages = "" if advantage == "expected" else " and group-normalised advantages"
  canvas.suptitle(
    f"{metric.capitalize()} against {sweep}, under {whose}{advantages}",
    x=0.01, ha="left", weight="bold",
  )  # fmt: skip
  lines = {x: _line(results, sweep, x, metric, table, advantage) for x in results.objectives}
  panels = style.panels(results.families)
  grid = canvas.subplots(2, -(-len(panels) // 2), sharey=True, squeeze=False)
  for axes, (family, members) in zip(grid.flat, panels.items(), strict=False):
    references = [x for x in ("vespo", "reinforce") if x in lines and x not in members]
    _draw_lines(axes, results, sweep, lines, members + references)
    axes.set_title(family)
  for axes in grid.flat[len(panels) :]:
    axes.set_axis_off()
  canvas.supylabel(metric, fontsize=9)
  return canvas


def _line(
  results: Results, sweep: str, name: str, metric: str, table: str, advantage: str
) -> np.ndarray:
  """[values] of what stands beside the sweep, if anything does, and then of the sweep."""
  sweeps = [BESIDE[sweep], sweep] if sweep in BESIDE else [sweep]
  return np.concatenate([results.line(x, name, metric, table, advantage) for x in sweeps])


def _draw_lines(
  axes: Axes, results: Results, sweep: str, lines: dict[str, np.ndarray], shown: Sequence[str]
) -> None:
  """Lines over the values of a sweep, equally spaced; those not `shown` are faint."""
  beside = results.values(BESIDE[sweep]) if sweep in BESIDE else []
  points = [(BESIDE[sweep], value) for value in beside]
  points += [(sweep, value) for value in results.values(sweep)]
  x = np.arange(len(points)) - 0.4 * (np.arange(len(points)) < len(beside))
  apart, joined = slice(len(beside)), slice(len(beside), None)
  everything = np.concatenate(list(lines.values()))
  low, high = min(everything.min(), 0.0), everything.max()
  margin = 0.04 * (high - low)
  axes.set_ylim(low - margin, high + margin)
  axes.set_xlim(x[0] - 0.3, x[-1] + 0.3)
  axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
  for line in lines.values():
    axes.plot(x[joined], line[joined], color=style.FAINT, linewidth=0.8, zorder=2)
  groups = style.merged({name: lines[name] for name in shown}, high - low)
  palette = style.colours(list(groups))
  for name in groups:
    drawn = {"color": palette[name], **style.weight(name)}
    axes.plot(x[joined], lines[name][joined], **drawn)
    axes.plot(x[apart], lines[name][apart], **(drawn | {"marker": "o", "ms": 4, "ls": "none"}))
  style.name_points(
    axes,
    {name: (x[-1], lines[name][-1]) for name in groups},
    {name: _joint_name(members) for name, members in groups.items()},
    palette,
  )
  esses = [results.mean(point, shown[0], "ess_fraction", "common") for point in points]
  labels = [f"{v}\n{100 * ess:.3g}" for (_, v), ess in zip(points, esses, strict=True)]
  axes.set_xticks(x, [label.replace("bfloat16", "bf16") for label in labels], fontsize=7)
  axes.set_xlabel(f"{AXES[sweep]}; below, ESS in %", fontsize=8)


def _joint_name(members: Sequence[str]) -> str:
  """The names of methods that share a line or point, two to a row of text."""
  return "\n".join(", ".join(members[i : i + 2]) for i in range(0, len(members), 2))


def _planes(results: Results) -> Figure:
  """Bias against standard deviation of a batch's estimate, a point per method, over staleness."""
  canvas = Figure(figsize=(11.5, 9.0))
  canvas.suptitle(
    "Bias and noise of a batch's estimate, in units of the true gradient",
    x=0.01, ha="left", weight="bold",
  )  # fmt: skip
  values = [value for value in results.values("staleness") if value != 0]
  chosen = sorted({round(i) for i in np.linspace(0, len(values) - 1, PLANES)})
  grid = canvas.subplots(2, 2, squeeze=False).flat
  families = [*style.panels(results.families), NONE]
  palette = dict(zip(families, (BLUE, *style.OTHERS), strict=False))
  for axes, index in zip(grid, chosen, strict=False):
    _plane(axes, results, ("staleness", values[index]), palette)
  for axes in list(grid)[len(chosen) :]:
    axes.set_axis_off()
  handles = [
    axes.plot([], [], "o", color=colour, markersize=5, label=family)[0]
    for family, colour in palette.items()
  ]
  canvas.legend(handles=handles, loc="outside lower center", ncols=4)
  return canvas


def _plane(axes: Axes, results: Results, point: Point, palette: dict[str, str]) -> None:
  means = lambda metric: {x: results.mean(point, x, metric, "common") for x in results.objectives}
  bias = {name: max(value, LEAST) for name, value in means("bias").items()}
  noise = {name: max(value**0.5, LEAST) for name, value in means("variance").items()}
  axes.set(xscale="log", yscale="log")
  noises = list(noise.values())
  axes.set_xlim(0.8 * LEAST, 1.5 * max(bias.values()))
  axes.set_ylim(0.7 * min(noises), 1.5 * max(noises))
  angle = np.linspace(1e-4, np.pi / 2 - 1e-4, 500)
  for error in 10.0 ** np.arange(-3, 4, 0.5):  # of equal root mean squared error
    x, y = error * np.cos(angle), error * np.sin(angle)
    axes.plot(x, y, color=style.FAINT, linewidth=0.8, zorder=1)
  spans = np.ptp(np.log([axes.get_xlim(), axes.get_ylim()]), axis=1)
  groups = style.merged({x: np.log([bias[x], noise[x]]) / spans for x in bias}, 1.0)
  own = {name: palette[results.families[name]] for name in groups}
  for name, colour in own.items():
    size = 8 if name == "vespo" else 4.5
    axes.plot(bias[name], noise[name], "o", color=colour, markersize=size, zorder=3)
  style.name_points(
    axes,
    {name: (bias[name], noise[name]) for name in groups},
    {name: _joint_name(members) for name, members in groups.items()},
    own,
  )
  ess = results.mean(point, results.objectives[0], "ess_fraction", "common")
  axes.set_title(f"staleness {point[1]} (ESS {ess:.1%})")
  axes.set_xlabel(f"bias / |g|, {LEAST:g} or less at the edge")
  axes.set_ylabel("standard deviation / |g|")
  axes.grid(False)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter("{x:g}")
  axes.yaxis.set_minor_formatter(lambda y, _: f"{y:.1g}" if np.ptp(np.log10(noises)) < 1 else "")


def _kernels(every: Sequence[Entry]) -> Figure:
  """phi and f of every method against W, for both signs of the advantage; a column per family."""
  canvas = Figure(figsize=(15.0, 10.0))
  canvas.suptitle(
    f"Kernel \u03d5 and implicit objective f of a response of {kernels.LENGTH} tokens with equal "
    "ratios, a batch of its own (f: closed form for vespo, else integrated numerically)",
    x=0.01, ha="left", weight="bold",
  )  # fmt: skip
  lines_4W = {entry.objective.name: _kernel_lines(entry.objective) for entry in every}
  panels = style.panels({entry.objective.name: entry.family for entry in every})
  grid = canvas.subplots(len(KERNEL_ROWS), len(panels), sharex=True, sharey="row", squeeze=False)
  for column, (family, members) in zip(grid.T, panels.items(), strict=True):
    names = members + [x for x in ("vespo", "reinforce") if x in lines_4W and x not in members]
    groups = style.merged({x: lines_4W[x] for x in names}, KERNEL_LIMITS[0][1])
    palette = style.colours(list(groups))
    for axes, limits, row in zip(column, KERNEL_LIMITS, range(len(KERNEL_ROWS)), strict=True):
      axes.set(xscale="log", ylim=limits)
      axes.axvline(1, color=GREY, linewidth=0.8, zorder=1)
      for name, joint in groups.items():
        drawn = {"color": palette[name], "label": _joint_name(joint), **style.weight(name)}
        axes.plot(np.exp(kernels.LOG_W), lines_4W[name][row], **drawn)
    column[0].set_title(family, fontsize=9)
    column[-1].set_xlabel("W")
    column[-1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), fontsize=8)
  for axes, label in zip(grid[:, 0], KERNEL_ROWS, strict=True):
    axes.set_ylabel(label)
  return canvas


def _kernel_lines(objective: Objective) -> np.ndarray:
  """[4, W]: the rows of the figure, cut to a little more than what is seen of them."""
  functions = (kernels.phi, kernels.surrogate)
  rows = [function(objective, sign) for function in functions for sign in (1.0, -1.0)]
  return np.stack(
    [
      np.clip(row, 1.2 * low, 1.2 * high)
      for row, (low, high) in zip(rows, KERNEL_LIMITS, strict=True)
    ]
  )
