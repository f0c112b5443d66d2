"""Which of a stored dataset's problems are trained on, and which are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vespo_jax.tasks.base import StoredTask

_TEST = ("test", "validation")  # what a publisher calls problems to hold out, best first


def choose(task: StoredTask, stored: Sequence[str]) -> tuple[str, str]:
  """The names of the stored splits to train on and to hold out; "" where there is none to train on.

  They are the same where the publisher holds nothing out: it is then divided.

  Raises ValueError if the task names a split that is not stored.
  """
  for option in ("train_split", "test_split"):
    name = getattr(task, option)
    if name and name not in stored:
      raise ValueError(f"{option}={name!r:.60} is not among its splits: {', '.join(stored)}")
  train = task.train_split or ("train" if "train" in stored else "")
  named = [name for name in _TEST if name in stored]
  return train, task.test_split or (named[0] if named else train or stored[0])


def divide(
  keys: Mapping[str, np.ndarray],
  train: str,
  test: str,
  *,
  held_out: float,
  seed: int,
  train_size: int,
  test_size: int,
) -> tuple[np.ndarray, np.ndarray]:
  """The problems to train on and those held out, as indices into their stored splits.

  Args:
    keys: a number of each question, by split.
    train, test: from `choose`.
    held_out: the fraction that is held out of one split; at least one problem, and not all.
    seed: of the order of the problems, which depends on nothing but it and the questions.
    train_size, test_size: at most so many of each; 0: all.

  Raises ValueError if a single problem should be divided.
  """
  order = {name: np.argsort(_mix(keys[name], seed), kind="stable") for name in {train, test} - {""}}
  if train == test:
    size = len(keys[train])
    if size < 2:
      raise ValueError("it has one problem, which cannot be both trained on and held out")
    cut = min(max(round(held_out * size), 1), size - 1)
    order = {"held out": order[train][:cut], "trained on": order[train][cut:]}
    train, test = "trained on", "held out"
  trained = order[train] if train else np.zeros(0, np.int64)
  return trained[: train_size or None], order[test][: test_size or None]


def _mix(keys_N: np.ndarray, seed: int) -> np.ndarray:
  """Each key shuffled by the seed, [N] uint64: a bijection, so that no two become the same.

  Source: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
  """
  offset = (seed + 1) * 0x9E3779B97F4A7C15 % 2**64
  mixed_N = keys_N ^ np.uint64(offset)
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(shift))) * np.uint64(factor)
  return mixed_N ^ (mixed_N >> np.uint64(31))
