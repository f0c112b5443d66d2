"""The report of a run, figures in `figures/` and one self-contained page, `report.html`; and a page
that lays the curves of several runs over one another."""

from __future__ import annotations

import os
from pathlib import Path

from vespo_jax import files
from vespo_jax.report.comparison import compare
from vespo_jax.report.drawing import draw
from vespo_jax.report.page import render
from vespo_jax.report.rundir import RunError, load

__all__ = ["PAGE", "RunError", "compare", "write"]

PAGE = "report.html"


def write(workdir: str | os.PathLike[str]) -> Path:
  """Draws `figures/*.png` and writes `report.html` in a run directory; returns the page's path.

  It may be called while the run goes on. Raises RunError, with one clear message, if the directory
  is missing, has no committed update yet, or holds a file that cannot be read, or a link where
  figures go.
  """
  run = load(workdir)
  path = run.workdir / PAGE
  files.write(path, render(run, draw(run)))
  return path
