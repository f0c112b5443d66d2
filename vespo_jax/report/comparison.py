"""Several runs on one page: curves over one another, and runs that differ in the seed alone as one.

The page loads nothing and holds no model text. Of every panel of a run's report it has one metric:
the panel's main one.
"""

from __future__ import annotations

import dataclasses
import html
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

import vespo_jax
from vespo_jax import files
from vespo_jax.report import curves, drawing, page
from vespo_jax.report.rundir import Run, RunError, evaluations, load

COLOURS = ("#2f6bd8", "#d9712b", "#23936a", "#8558c9", "#c2417f", "#7a6a2f", "#1f8a9c", "#6b7280")
SEED = "seed"  # the one key of the config that runs of a group may differ in


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs of one config, seed by seed.

  Attributes:
    label: what sets them apart from the other groups: their values of the keys that differ.
    colour: of their curves.
    runs: in the order they were given.
    columns: of each, `drawing.columns_of` its rows.
  """

  label: str
  colour: str
  runs: list[Run]
  columns: list[dict[str, np.ndarray]]


def compare(workdirs: Sequence[str | os.PathLike[str]], path: Path) -> Path:
  """Writes the page of several runs to `path` and returns it. The runs may be going on.

  Raises RunError as `rundir.load` does, and for more kinds of runs than there are colours.
  """
  groups = group([load(workdir, rollouts=False) for workdir in workdirs])
  files.write(path, _render(groups))
  return path


def group(runs: Sequence[Run]) -> list[Group]:
  """The runs by config, the seed apart, in the order in which each is met first."""
  by_config: dict[str, list[Run]] = {}
  for run in runs:
    settings = {k: v for k, v in page.flatten(run.config).items() if k != SEED}
    by_config.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
  if len(by_config) > len(COLOURS):
    raise RunError(f"{len(by_config)} kinds of runs: at most {len(COLOURS)} can be told apart")
  settings = [json.loads(text) for text in by_config]
  keys = dict.fromkeys(key for each in settings for key in each)
  differing = [key for key in keys if len({json.dumps(each.get(key)) for each in settings}) > 1]
  return [
    Group(
      label=_label(each, differing) or of_it[0].name,
      colour=colour,
      runs=of_it,
      columns=[drawing.columns_of(run.rows) for run in of_it],
    )
    for each, of_it, colour in zip(settings, by_config.values(), COLOURS, strict=False)
  ]


def _label(settings: dict[str, Any], differing: Sequence[str]) -> str:
  """The method by its name alone, which its own options need not follow; the rest as key=value."""
  name = settings.get("objective.name")
  others = [
    f"{key}={settings[key]}"
    for key in differing
    if key in settings and (not _is_option(key) or key.startswith(f"objective.{name}."))
  ]
  return ", ".join([f"{name}"] * ("objective.name" in differing) + others)


def _is_option(key: str) -> bool:
  """Whether a key is the objective's name, or an option of some method."""
  return key == "objective.name" or (key.startswith("objective.") and key.count(".") == 2)


def _render(groups: Sequence[Group]) -> str:
  drawn: dict[str, list[str]] = {}
  with matplotlib.rc_context({**drawing.STYLE, "figure.constrained_layout.use": False}):
    for figure in curves.FIGURES:
      panels = [p for p in figure.panels if not p.shares and _has(groups, _main(p))]
      if panels:
        png = _png(_draw(figure.title, panels, groups))
        shown = page.figure(png, figure.title, ", ".join(map(_main, panels)))
        drawn.setdefault(figure.section, []).append(shown)
  return Template(page.asset("comparison.html")).substitute(
    css="\n".join(map(page.asset, ("page.css", "comparison.css"))),
    rows="\n".join(map(_row, groups)),
    curves=page.sections(drawn),
    version=vespo_jax.__version__,
  )


def _main(panel: curves.Panel) -> str:
  """The metric that stands for a panel: its mean, where it has one."""
  keys = [line.key for line in panel.lines]
  return next((key for key in keys if key.endswith("mean")), keys[0])


def _has(groups: Sequence[Group], key: str) -> bool:
  return any(key in columns for each in groups for columns in each.columns)


def _row(each: Group) -> str:
  """A group's line of the table."""
  names = ", ".join(run.name for run in each.runs)
  states = ", ".join(dict.fromkeys(page.state(run)[0] for run in each.runs))
  updates = [run.updates for run in each.runs]
  cells = [
    f'<span style="color:{each.colour}">&#9632;</span> {html.escape(each.label)}',
    html.escape(names),
    *(_accuracy(each.runs, when) for when in ("before", "after")),
    html.escape(_range([float(n) for n in updates], "{:.0f}")),
    html.escape(states),
  ]
  return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _accuracy(runs: Sequence[Run], when: str) -> str:
  """The mean of the runs that have been evaluated, and the lowest and the highest of several; of
  one, its own interval."""
  found = [e[when] for run in runs if when in (e := evaluations(run.result))]
  if not found:
    return ""
  if len(found) == 1:
    return "{accuracy:.1%} ({low:.1%} to {high:.1%})".format(**found[0])
  return _range([each["accuracy"] for each in found], "{:.1%}")


def _range(values: Sequence[float], style: str) -> str:
  low, high = style.format(min(values)), style.format(max(values))
  return low if low == high else f"{style.format(np.mean(values))} ({low} to {high})"


def _draw(title: str, panels: Sequence[curves.Panel], groups: Sequence[Group]) -> Canvas:
  canvas = Canvas(figsize=drawing.SIZE_IN)
  ratios = ([2.0] + [1.2] * len(panels))[: len(panels)]
  stack = canvas.subplots(len(panels), squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
  for axes, panel in zip(stack, panels, strict=True):
    for each in groups:
      draw_group(axes, panel, each)
    low, high = axes.dataLim.intervaly
    if panel.decades and high > 10 * low > 0:
      axes.set_yscale("log")
    else:
      drawing.scale(axes, panel)
    axes.set_ylim(*panel.limits)
    axes.set_ylabel(panel.ylabel)
  canvas.align_ylabels(stack)
  stack[0].set_title(title, pad=8)
  stack[-1].set_xlabel("update")
  drawing.place(canvas)
  return canvas


def draw_group(axes: Axes, panel: curves.Panel, each: Group) -> None:
  """The mean over the runs of a group as far as all of them have come, and the range they span."""
  both = zip(each.runs, each.columns, strict=True)
  found = [series for run, columns in both if (series := _series(run, columns, panel))]
  if not found:
    return
  steps = sorted(set.intersection(*(set(series) for series in found)))
  values_RT = np.array([[series[step] for step in steps] for series in found])
  style = "o-" if len(steps) < drawing.FEW else "-"
  axes.plot(steps, values_RT.mean(axis=0), style, color=each.colour, linewidth=1.6, markersize=3.5)
  if len(found) > 1:
    low, high = values_RT.min(axis=0), values_RT.max(axis=0)
    axes.fill_between(steps, low, high, color=each.colour, alpha=0.16, linewidth=0)


def _series(run: Run, columns: dict[str, np.ndarray], panel: curves.Panel) -> dict[int, float]:
  """What a run has of a panel's metric, by update: smoothed where there is much of it."""
  key = _main(panel)
  if key not in columns:
    return {}
  values = columns[key]
  known = np.isfinite(values)
  if not panel.points and known.sum() >= drawing.FEW:
    cycle = run.setting("staleness.minibatches") or 1
    values = drawing.smooth(values, cycle, max(len(values) / 50, 1.0))
  steps = columns["step"].astype(int)[known]
  return dict(zip(steps.tolist(), values[known].tolist(), strict=True))


def _png(canvas: Canvas) -> bytes:
  file = io.BytesIO()
  canvas.savefig(file, format="png")
  return file.getvalue()
