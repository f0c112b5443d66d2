"""`python -m experiments.benchmarks [--only=NAME] [--json]`: how fast it is, against this machine.

Each benchmark runs in a process of its own. What is compared is measured in turns, after one round
that is not counted; medians are shown, with the whole range. `--json` prints one object: the
medians of the reference step (`sample_s`, `update_s`, `rl_step_s`, `peak_rss_mb`) where it was
measured, and everything under `benchmarks`. Exit codes: 0 measured; 2 bad usage, or something that
this machine cannot measure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from experiments.benchmarks import (
  generate,
  logprobs_head,
  objectives,
  overlap,
  rl_step,
  startup,
  update,
  weights,
)
from experiments.benchmarks.workload import MODELS, Workload

BENCHMARKS = {  # name -> a module with `measure` and `describe`
  "generate": generate,
  "update": update,
  "rl_step": rl_step,
  "logprobs_head": logprobs_head,
  "objectives": objectives,
  "weights": weights,
  "startup": startup,
  "async_overlap": overlap,
}
STEP = ("sample_s", "update_s", "rl_step_s", "peak_rss_mb")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line; returns the exit code."""
  arguments = _parser().parse_args(argv)
  sizes = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Workload)}
  try:
    workload = Workload(**sizes)
    if arguments.only:
      results = {arguments.only: _measure(arguments.only, workload, arguments.repetitions)}
    else:
      results = {}
      for name in BENCHMARKS:
        results[name] = _in_own_process(name, workload, arguments.repetitions)
        if not arguments.json:
          _show(name, results[name], workload)
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if arguments.json:
    step = results.get("rl_step", {})
    print(json.dumps({**_medians(step, STEP), "benchmarks": results}))
  elif arguments.only:
    _show(arguments.only, results[arguments.only], workload)
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m experiments.benchmarks", description="How fast it is, against this machine."
  )
  parser.add_argument("--only", choices=BENCHMARKS, help="one benchmark")
  parser.add_argument("--json", action="store_true", help="print one JSON object")
  parser.add_argument("--repetitions", type=int, default=5, help="of everything that is compared")
  parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="the policy")
  for name, text in (
    ("prompts", "groups of a step"),
    ("samples", "responses to each"),
    ("prompt_tokens", "of every prompt"),
    ("new_tokens", "of every response"),
    ("minibatches", "updates of a step"),
    ("micro_batches", "pieces of an update"),
  ):
    default = getattr(Workload, name)
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=text)
  return parser


def _measure(name: str, workload: Workload, repetitions: int) -> dict[str, Any]:
  if repetitions < 1:
    raise ValueError(f"repetitions must be at least 1, got {repetitions}")
  return BENCHMARKS[name].measure(workload, repetitions)


def _in_own_process(name: str, workload: Workload, repetitions: int) -> dict[str, Any]:
  """The same, by this command in a new process, so that its memory is its own."""
  sizes = [
    f"--{key.replace('_', '-')}={value}" for key, value in dataclasses.asdict(workload).items()
  ]
  options = [f"--only={name}", "--json", f"--repetitions={repetitions}", *sizes]
  command = [sys.executable, "-m", "experiments.benchmarks", *options]
  process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
  if process.returncode:
    raise ValueError(f"{name} could not be measured")
  return json.loads(process.stdout)["benchmarks"][name]


def _show(name: str, results: dict[str, Any], workload: Workload) -> None:
  print("\n  ".join([name, *BENCHMARKS[name].describe(results, workload).splitlines()]), flush=True)


def _medians(results: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
  found = {name: results[name] for name in names if name in results}
  return {
    name: statistics.median(value) if isinstance(value, list) else value
    for name, value in found.items()
  }


if __name__ == "__main__":
  sys.exit(main())
