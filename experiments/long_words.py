"""Regenerates the problems of the long testbed: `python -m experiments.long_words`.

What reasoning-gym's spell_backward asks, of words of 8 to 64 letters: its own words, joined and cut
to a length that is drawn uniformly.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from reasoning_gym.data import read_data_file

PROBLEMS = Path(__file__).parent / "assets" / "long_words"
COUNTS = {"train": 6000, "test": 500}
LETTERS = (8, 64)  # of a word, both included
QUESTION = "Spell this word backward (example: sun -> nus): {}"


def problem(words: np.ndarray, rng: np.random.Generator) -> dict[str, str]:
  """One problem, as a line of a `jsonl:` task whose verifier is `exact`."""
  length = int(rng.integers(LETTERS[0], LETTERS[1] + 1))
  word = "".join(rng.choice(words, length))[:length]
  return {"prompt": QUESTION.format(word), "answer": word[::-1]}


def main() -> int:
  """Writes both files, of which no word is in both."""
  words = np.array([w for w in read_data_file("words3to10.txt").split() if w.isalpha()])
  rng, asked = np.random.default_rng(0), set()
  PROBLEMS.mkdir(parents=True, exist_ok=True)
  for split, count in COUNTS.items():
    lines = []
    while len(lines) < count:
      made = problem(words, rng)
      if made["prompt"] not in asked:
        asked.add(made["prompt"])
        lines.append(json.dumps(made) + "\n")
    data = gzip.compress("".join(lines).encode(), mtime=0)
    (PROBLEMS / f"{split}.jsonl.gz").write_bytes(data)
  return 0


if __name__ == "__main__":
  sys.exit(main())
