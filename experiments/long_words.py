"""Regenerates the problems of the long testbed: `python -m experiments.long_words`.

What reasoning-gym's spell_backward asks, of words of 8 to 64 letters: its own words, joined and cut
to a length that is drawn uniformly.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from reasoning_gym.data import read_data_file

from experiments import small_programs

PROBLEMS = Path(__file__).parent / "assets" / "long_words"
LETTERS = (8, 64)  # of a word, both included
QUESTION = "Spell this word backward (example: sun -> nus): {}"


def problem(words: np.ndarray, rng: np.random.Generator) -> dict[str, object]:
  """One problem, as a line of a `jsonl:` task whose verifier is `exact`."""
  length = int(rng.integers(LETTERS[0], LETTERS[1] + 1))
  word = "".join(rng.choice(words, length))[:length]
  return {"prompt": QUESTION.format(word), "answer": word[::-1]}


if __name__ == "__main__":
  known = np.array([word for word in read_data_file("words3to10.txt").split() if word.isalpha()])
  small_programs.write(PROBLEMS, functools.partial(problem, known))
