"""Colours, labels and axes shared by the figures: the drawing style of the run report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from experiments.estimators.families import NONE
from vespo_jax.report.curves import BLUE, GREEN, ORANGE, PURPLE

HIGHLIGHTS = {  # drawn in the same way wherever they appear
  "vespo": BLUE,
  "sequence_is": ORANGE,
  "grpo": GREEN,
  "gspo": PURPLE,
  "reinforce": "#1f2328",
}
OTHERS = ("#c2417a", "#a8860a", "#17858f", "#8b5e3c", "#e2705b", "#6d78d6")
FAINT = "#d3d7dd"
SAME = 0.008  # of the axis: lines nearer than this everywhere are drawn and named as one


def colours(names: Sequence[str]) -> dict[str, str]:
  """A colour for each method of one panel."""
  rest = iter(OTHERS)
  return {name: HIGHLIGHTS.get(name) or next(rest) for name in names}


def weight(name: str) -> dict[str, object]:
  """How the line of a method is drawn, beside its colour."""
  return {
    "linewidth": 2.4 if name == "vespo" else 1.5,
    "ls": (0, (4, 1.6)) if name == "reinforce" else "-",
    "zorder": 5 if name == "vespo" else 4 if name in HIGHLIGHTS else 3,
  }


def panels(families: Mapping[str, str]) -> dict[str, list[str]]:
  """The methods of each family in order of appearance, VESPO's family first; what has no weight is
  a reference in every panel and has none of its own."""
  order = sorted(dict.fromkeys(families.values()), key=lambda f: f != families.get("vespo"))
  return {f: [x for x in families if families[x] == f] for f in order if f != NONE}


def merged(lines: Mapping[str, np.ndarray], span: float) -> dict[str, list[str]]:
  """Groups of methods whose lines cannot be told apart on an axis of this span, by the first; a
  highlighted method comes first in its group."""
  groups: dict[str, list[str]] = {}
  for name in sorted(lines, key=lambda x: x not in HIGHLIGHTS):
    for first in groups:
      if np.allclose(lines[first], lines[name], rtol=0, atol=SAME * span, equal_nan=True):
        groups[first].append(name)
        break
    else:
      groups[name] = [name]
  return groups


def spread(positions: Sequence[float], sizes: Sequence[float]) -> np.ndarray:
  """Centres of intervals of these sizes near these positions, moved so that none overlap and, where
  they fit, all stay within [0, 1]."""
  order = np.argsort(positions, kind="stable")[::-1]
  size = np.array(sizes, float)[order]
  moved = np.array(positions, float)[order]
  for _ in range(300):
    moved[-1] = max(moved[-1], size[-1] / 2)
    moved[0] = min(moved[0], 1 - size[0] / 2)
    overlap = (size[1:] + size[:-1]) / 2 - (moved[:-1] - moved[1:])
    if (overlap <= 1e-3).all():
      break
    for i in np.flatnonzero(overlap > 0):
      moved[i] += overlap[i] / 2
      moved[i + 1] -= overlap[i] / 2
  result = np.empty_like(moved)
  result[order] = moved
  return result


def name_points(
  axes: Axes,
  points: Mapping[str, tuple[float, float]],
  names: Mapping[str, str],
  palette: Mapping[str, str],
  line_in: float = 0.13,
) -> None:
  """Writes names right of the axes, moved apart, each tied to its point, in its colour.

  Args:
    points: by method, in the axes' coordinates, whose limits are final.
    names: by method, what to write, in one or more rows.
    palette: by method, its colour.
    line_in: height of a row of text, in inches.
  """
  to_axes = axes.transData + axes.transAxes.inverted()
  ends = {name: float(np.clip(to_axes.transform(xy)[1], 0, 1)) for name, xy in points.items()}
  height_in = axes.get_position().height * axes.figure.get_figheight()
  rows = [1 + names[name].count("\n") for name in ends]
  heights = spread(list(ends.values()), [line_in * n / height_in for n in rows])
  low, high = axes.get_ylim()
  for (name, (x, y)), height in zip(points.items(), heights, strict=True):
    axes.annotate(
      names[name],
      xy=(x, min(max(y, low), high)),
      xytext=(1.06, height),
      textcoords="axes fraction",
      color=palette[name],
      fontsize=7.5,
      fontweight="bold" if name == "vespo" else "normal",
      linespacing=1.0,
      va="center",
      annotation_clip=False,
      arrowprops={"arrowstyle": "-", "color": palette[name], "lw": 0.5, "shrinkA": 0, "shrinkB": 0},
    )
