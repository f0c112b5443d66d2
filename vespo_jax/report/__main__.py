"""`python -m vespo_jax.report --workdir=runs/NAME`: writes the report of a run.

Exit codes: 0 written; 1 the directory cannot be read or written; 2 bad usage, or nothing there to
report on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vespo_jax import report


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the report and prints where it is; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m vespo_jax.report", description=report.__doc__)
  parser.add_argument("--workdir", required=True, help="the run directory, for instance runs/NAME")
  try:
    print(report.write(parser.parse_args(argv).workdir))
  except report.RunError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except OSError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
