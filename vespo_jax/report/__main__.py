"""`python -m vespo_jax.report --workdir=runs/NAME`: writes the report of a run.

`--workdir runs/A runs/B ... [--output=comparison.html]` lays the curves of several over another.

Exit codes: 0 written; 1 the directory cannot be read or written; 2 bad usage, or nothing there to
report on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vespo_jax import report


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the report and prints where it is; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m vespo_jax.report", description=report.__doc__)
  parser.add_argument(
    "--workdir", required=True, nargs="+", help="the run directory, for instance runs/NAME; several"
  )
  parser.add_argument(
    "--output", type=Path, help="of several runs, the page to write; comparison.html otherwise"
  )
  options = parser.parse_args(argv)
  several = len(options.workdir) > 1
  if options.output and not several:
    parser.error("--output is of several runs: the report of one is in its directory")
  try:
    if several:
      print(report.compare(options.workdir, options.output or Path("comparison.html")))
    else:
      print(report.write(options.workdir[0]))
  except report.RunError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except OSError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
