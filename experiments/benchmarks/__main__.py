"""`python -m experiments.benchmarks [--only=NAME] [--repetitions=3] [--json]`: measures and prints.

Repetitions of what is compared are interleaved; medians are shown, with the whole range. Exit
codes: 0 measured; 2 bad usage, or a machine that this cannot be measured on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from experiments.benchmarks import overlap

BENCHMARKS = {"async_overlap": overlap}  # name -> a module with `measure` and `describe`


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.benchmarks", description="How fast it is, as ratios."
  )
  parser.add_argument("--only", choices=BENCHMARKS, help="one benchmark")
  parser.add_argument("--repetitions", type=int, default=3, help="of everything that is compared")
  parser.add_argument("--json", action="store_true", help="print one JSON object")
  arguments = parser.parse_args(argv)
  results = {}
  for name in [arguments.only] if arguments.only else BENCHMARKS:
    try:
      results[name] = BENCHMARKS[name].measure(arguments.repetitions)
    except OSError as error:
      print(f"error: {name}: {error}", file=sys.stderr)
      return 2
    if not arguments.json:
      print(f"{name}\n{BENCHMARKS[name].describe(results[name])}\n")
  if arguments.json:
    print(json.dumps(results))
  return 0


if __name__ == "__main__":
  sys.exit(main())
