"""Regenerates the problems of the code testbed: `python -m experiments.small_programs`.

'n plus 4, times 6, mod 9' asks for a program that reads n and prints what comes out, the steps one
after another: `print((int(input())+4)*6%9)`. Any program that prints the right numbers is right.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

PROBLEMS = Path(__file__).parent / "assets" / "programs"
COUNTS = {"train": 6000, "test": 500}
WORDS = {"plus": "+", "minus": "-", "times": "*", "mod": "%"}
STEPS = (2, 3)  # of a problem
NUMBERS = (2, 20)  # of a step, from and below
INPUTS = 2  # a program is tested with
_LOOSE = "+-"  # what binds less than the others, and needs parentheses before them


def problem(rng: np.random.Generator) -> dict[str, object]:
  """One problem, as a line of a `jsonl:` task whose verifier is `code`."""
  names = rng.choice(list(WORDS), int(rng.integers(STEPS[0], STEPS[1] + 1)))
  steps = [(str(name), int(rng.integers(*NUMBERS))) for name in names]
  inputs = rng.choice(100, INPUTS, replace=False).tolist()
  cases = [{"input": f"{n}\n", "output": f"{value(n, steps)}\n"} for n in inputs]
  return {
    "prompt": "n " + ", ".join(f"{name} {number}" for name, number in steps),
    "answer": program(steps),
    "metadata": {"kind": "stdin", "cases": cases},
  }


def value(n: int, steps: list[tuple[str, int]]) -> int:
  """What comes out of n."""
  for name, number in steps:
    n = {"plus": n + number, "minus": n - number, "times": n * number, "mod": n % number}[name]
  return n


def program(steps: list[tuple[str, int]]) -> str:
  """A shortest program."""
  text, loose = "int(input())", False
  for name, number in steps:
    if loose and WORDS[name] not in _LOOSE:
      text = f"({text})"
    loose = WORDS[name] in _LOOSE
    text += f"{WORDS[name]}{number}"
  return f"print({text})"


def write(folder: Path, make: Callable[[np.random.Generator], dict[str, object]]) -> None:
  """Writes what `make` makes to both files of `folder`; no question is in both."""
  rng, asked = np.random.default_rng(0), set()
  folder.mkdir(parents=True, exist_ok=True)
  for split, count in COUNTS.items():
    lines = []
    while len(lines) < count:
      made = make(rng)
      if made["prompt"] not in asked:
        asked.add(made["prompt"])
        lines.append(json.dumps(made) + "\n")
    data = gzip.compress("".join(lines).encode(), mtime=0)
    (folder / f"{split}.jsonl.gz").write_bytes(data)


if __name__ == "__main__":
  write(PROBLEMS, problem)
