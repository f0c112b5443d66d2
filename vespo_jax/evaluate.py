"""Evaluates a policy on held-out problems, or compares two evaluations.

    python -m vespo_jax.evaluate --workdir=RUN [--checkpoint=STEP]
    python -m vespo_jax.evaluate --model=PATH --task=FAMILY/DATASET
    python -m vespo_jax.evaluate --compare A B

Every answer is written to RUN/evaluation or --out; the same command goes on with what was
interrupted, and reads what is there. Exit codes: 0; 1 a process or the disk failed; 2 bad usage, or
nothing that can be evaluated; 75 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from vespo_jax import evaluate_flags, files, subjects
from vespo_jax.evaluation import comparison, records, summary
from vespo_jax.learner.checkpoint import CheckpointError
from vespo_jax.metrics import printable
from vespo_jax.processes import ChildDied
from vespo_jax.runtime import SamplersFailed

STOPPED = 75  # exit code


def main(argv: list[str]) -> int:
  """Runs one command line; returns the exit code."""
  flags = evaluate_flags.parse(argv[1:], __doc__ or "")
  try:
    found, text = _compare(flags) if flags.compare else _evaluate(flags)
  except (SamplersFailed, ChildDied, TimeoutError) as error:
    return _fail(error, 1)
  except (ValueError, FileNotFoundError, CheckpointError) as error:
    return _fail(error, 2)
  except OSError as error:
    return _fail(error, 1)
  except KeyboardInterrupt:
    print("stopped; the same command goes on", file=sys.stderr)
    return STOPPED
  print(json.dumps(found) if flags.json else printable(text))
  return 0


def _evaluate(flags: argparse.Namespace) -> tuple[dict[str, Any], str]:
  if flags.workdir:
    subject = subjects.of_run(flags.workdir, flags.checkpoint)
  else:
    subject = subjects.of_model(flags.model, evaluate_flags.task_settings(flags))
  subject, seeds = subjects.change(subject, evaluate_flags.changes(flags))
  evaluated, path = subjects.evaluate(subject, seeds)
  found = summary.summary(evaluated) | {"records": str(path)}
  files.write(path.with_suffix(".json"), json.dumps(found, indent=2) + "\n")
  return found, f"{summary.table(found)}\nrecords: {path}"


def _compare(flags: argparse.Namespace) -> tuple[dict[str, Any], str]:
  paths = [records.newest(place) for place in flags.compare]
  found = comparison.compare(*map(records.read, paths)) | {"records": list(map(str, paths))}
  return found, f"{comparison.table(found)}\nrecords: {paths[0]}, {paths[1]}"


def _fail(error: Exception, code: int) -> int:
  print(f"error: {error}", file=sys.stderr)
  return code


if __name__ == "__main__":
  sys.exit(main(sys.argv))
