"""`python -m experiments.benchmarks.peers [--rounds=3] [--only=NAME] [--json]`: the peers and us.

In every round the reference step (see `experiments.benchmarks.workload`) is run by this project and
by each peer, one after another, each in a process of its own. Shown are medians over the rounds,
with the whole range, and the median of the ratios of each round. Exit codes: 0 measured; 2 bad
usage, or a peer that did not run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from experiments.benchmarks import machine

OURS = "vespo_jax"
# name -> script and its options; in pieces of 32 sequences, which is the fastest, and all at once
PEERS = {
  "trl": ("trl_grpo", ["--batch=32"]),
  "trl-whole": ("trl_grpo", ["--batch=0"]),
  "tunix": ("tunix_grpo", ["--batch=32"]),
  "tunix-whole": ("tunix_grpo", ["--batch=0"]),
}
SIZES = {"prompts": 32, "samples": 8, "prompt-tokens": 32, "new-tokens": 64}
COLUMNS = {"sample_s": "generate", "update_s": "update", "rl_step_s": "step"}
MEMORY = "peak_rss_mb"
TIMEOUT_S = 1800.0
CORES = 2  # that all are held to


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.peers")
  parser.add_argument("--python", default=".venv-peers/bin/python", help="the peers' interpreter")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--repetitions", type=int, default=2, help="counted steps of each process")
  parser.add_argument("--only", choices=PEERS, help="one peer")
  parser.add_argument("--json", action="store_true", help="print one JSON object")
  for name, value in SIZES.items():
    parser.add_argument(f"--{name}", type=int, default=value)
  parser.add_argument("--micro-batches", type=int, default=16, help="pieces of our update")
  options = parser.parse_args(argv)
  if min(options.rounds, options.repetitions) < 1:
    parser.error("--rounds and --repetitions must be at least 1")
  sizes = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in SIZES]
  sizes.append(f"--repetitions={options.repetitions}")
  ours = [sys.executable, "-m", "experiments.benchmarks", "--only=rl_step", "--json"]
  commands = {OURS: [*ours, *sizes, f"--micro-batches={options.micro_batches}"]}
  for name in [options.only] if options.only else PEERS:
    script, arguments = PEERS[name]
    module = f"experiments.benchmarks.peers.{script}"
    commands[name] = [options.python, "-m", module, *arguments, *sizes]
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # of this, and what it starts
  rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
  for i in range(options.rounds):
    for name, command in list(commands.items()):
      try:
        rounds[name].append(_run(command))
        step = rounds[name][-1]["rl_step_s"]
        print(f"round {i + 1}/{options.rounds}: {name} {step:.2f} s a step", file=sys.stderr)
      except OSError as error:
        print(f"error: {name}: {error}", file=sys.stderr)
        del commands[name]
  if OURS not in commands:
    return 2
  print(json.dumps(rounds) if options.json else describe({n: rounds[n] for n in commands}))
  return 0 if len(commands) == len(rounds) else 2


def describe(rounds: dict[str, list[dict[str, Any]]]) -> str:
  """A table with a row of each library, the ratios to ours in brackets."""
  lines = ["| | " + " | ".join([*COLUMNS.values(), "peak memory"]) + " |", "| --- " * 5 + "|"]
  for name, results in rounds.items():
    cells = []
    for key, unit, digits in [*((key, "s", 2) for key in COLUMNS), (MEMORY, "MB", 0)]:
      values = [result[key] for result in results]
      ratio = machine.median_ratio(values, [result[key] for result in rounds[OURS]])
      text = machine.spread(values, unit, digits)
      cells.append(text if name == OURS else f"{text} ({ratio:.2f}x)")
    versions = results[0].get("versions", {})
    label = ", ".join([name, *(f"{k} {v}" for k, v in versions.items())])
    lines.append(f"| {label} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def _run(command: list[str]) -> dict[str, Any]:
  """The medians that a process prints on its last line. Raises OSError if it fails."""
  try:
    process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
  except subprocess.TimeoutExpired as error:
    raise OSError(f"took longer than {TIMEOUT_S:g} s") from error
  except subprocess.CalledProcessError as error:
    raise OSError(f"exit code {error.returncode}: {error.stderr[-2000:]}") from error
  try:
    result = json.loads(process.stdout.splitlines()[-1])
  except (IndexError, json.JSONDecodeError) as error:
    raise OSError(f"it printed no result: {process.stdout[-2000:]!r}") from error
  medians = {
    key: statistics.median(result[key]) if isinstance(result[key], list) else result[key]
    for key in (*COLUMNS, MEMORY)
  }
  return {**medians, "versions": result.get("versions", {})}


if __name__ == "__main__":
  sys.exit(main())
