"""The command line that every experiment shares: `python -m experiments.NAME [options]`."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.suite import page
from experiments.suite import results as results_lib
from experiments.suite.experiment import Experiment
from experiments.suite.pool import Pool

QUICK = (  # what `--quick` changes: a run of a few seconds, to see that everything works
  ("updates", 8),
  ("evaluation.every", 0),
  ("evaluation.problems", 40),
)
FIGURES = Path("docs/experiments")


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> int:
  """Runs what is missing of an experiment and writes its figure and table.

  Exit codes: 0 all runs have results; 1 some do not (stopped, out of budget, or failed: which and
  why is printed); 2 bad usage.
  """
  parser = _parser(experiment)
  options = parser.parse_args(argv)
  if min(options.seeds, options.jobs) < 1 or options.budget <= 0:
    parser.error("--seeds, --jobs and --budget must be positive")
  paper = options.preset == "paper"
  if paper and (options.quick or not experiment.paper):
    parser.error("--preset=paper: there is no quick one, and none of what is about the testbed")
  settings = (QUICK if options.quick else (), experiment.paper if paper else None)
  runs = experiment.runs(1 if options.quick else options.seeds, *settings)
  if options.only:
    wanted = set(options.only)
    unknown = wanted - {run.method for run in runs}
    if unknown:
      known = sorted({run.method for run in runs})
      parser.error(f"--only: no method {sorted(unknown)[0]!r}; there are {known}")
    runs = [run for run in runs if run.method in wanted]
  results_at, figures_at = results_lib.RESULTS, FIGURES
  if paper:
    results_at, figures_at = results_at / "paper", figures_at / "paper"
  elif options.quick:
    results_at = figures_at = options.scratch / "quick"
  path = results_at / f"{experiment.name}.jsonl"
  jobs = None if experiment.alone or paper else options.jobs
  pool = Pool(path, options.scratch, jobs=jobs, budget_s=60 * options.budget)
  if options.commands:
    for run in pool.missing(runs):
      print(shlex.join(run.command(options.scratch / run.key)))
    return 0
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
  try:
    failures = [] if options.figures else pool.work(runs)
  except KeyboardInterrupt:
    print("stopped; the same command goes on", file=sys.stderr)
    return 1
  for failure in failures:
    print(f"failed: {failure}", file=sys.stderr)
  results = experiment.own(results_lib.read(path), *settings)
  if not results:
    print("there are no results yet", file=sys.stderr)
    return 1
  draw = experiment.draw or page.draw
  draw(experiment, results, figures_at / f"{experiment.name}.png")
  text = page.markdown(experiment, results)
  (figures_at / f"{experiment.name}.md").write_text(text)
  print(text)
  missing = pool.missing(runs)
  if missing:
    print(f"{len(missing)} of {len(runs)} runs have no result yet", file=sys.stderr)
  return 1 if missing else 0


def _parser(experiment: Experiment) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog=f"python -m experiments.{experiment.name}", description=experiment.title
  )
  parser.add_argument("--seeds", type=int, default=experiment.seeds)
  parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a core each")
  parser.add_argument("--budget", type=float, default=1e6, help="minutes after which none is begun")
  parser.add_argument("--preset", choices=("cpu", "paper"), default="cpu", help="whose scale")
  parser.add_argument(
    "--commands", action="store_true", help="print what is missing, to be run elsewhere"
  )
  parser.add_argument("--quick", action="store_true", help="tiny runs, kept apart, to see it work")
  parser.add_argument("--only", nargs="+", metavar="METHOD", help="as the table calls them")
  parser.add_argument("--figures", action="store_true", help="run nothing: figure and table only")
  parser.add_argument("--scratch", type=Path, default=Path("runs/experiments"))
  return parser
