"""Evaluates a finished run on its held-out problems: `python -m vespo_jax.evaluate --workdir=DIR`.

Prints the accuracy and its 95 % interval. Exit codes: 0, or 2 if the run cannot be evaluated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from vespo_jax import config as config_lib
from vespo_jax import models, parts
from vespo_jax.runtime import WorkerSettings, start_sampler


def main(argv: list[str]) -> int:
  """Runs one command line; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m vespo_jax.evaluate", description=__doc__)
  parser.add_argument("--workdir", required=True, type=Path, help="run directory")
  parser.add_argument("--problems", type=int, help="held-out problems; default: the run's own")
  parser.add_argument("--samples", type=int, help="samples of each; default: the run's own")
  parser.add_argument("--json", action="store_true", help="print one JSON object")
  arguments = parser.parse_args(argv[1:])
  try:
    config = config_lib.read(arguments.workdir / "config.json")
    spec, params, tokenizer = models.load(arguments.workdir)
    problems = arguments.problems or config.evaluation.problems
    samples = arguments.samples or config.evaluation.samples_per_problem
    if not 1 <= problems <= (config.task.test_size or problems) or samples < 1:
      raise ValueError(f"--problems must be from 1 to {config.task.test_size}, --samples above 0")
  except (ValueError, FileNotFoundError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  with contextlib.ExitStack() as stack:
    _, test_problems = parts.open_problems(config, tokenizer, stack)
    sampler = start_sampler("threads", spec, WorkerSettings(config.sampler.dtype))
    stack.callback(sampler.close)
    sampler.publish(0, params)
    evaluator = parts.make_evaluator(config, test_problems, problems=problems, samples=samples)
    evaluation = evaluator.run(sampler, 0)
  print(json.dumps(evaluation.to_dict()) if arguments.json else f"held-out accuracy: {evaluation}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
