"""What this machine can do at most, and how the time of something is taken."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

SETTLE_S = 0.1  # the threads of a BLAS go on spinning for a while
Times = dict[str, list[float]]  # name -> seconds of each repetition


def interleaved(tasks: Mapping[str, Callable[[], Any]], repetitions: int) -> Times:
  """Seconds of every task in every round, after one that is not counted.

  All tasks run in every round, so that whatever slows the machine meets all of them.
  """
  times: Times = {name: [] for name in tasks}
  for i in range(repetitions + 1):
    for name, task in tasks.items():
      time.sleep(SETTLE_S)
      started = time.perf_counter()
      jax.block_until_ready(task())
      if i:
        times[name].append(time.perf_counter() - started)
  return times


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
  """The median of the ratios of the rounds."""
  return statistics.median(a / b for a, b in zip(above, below, strict=True))


def spread(values: Sequence[float], unit: str = "s", digits: int = 3) -> str:
  """The median and, in brackets, the whole range."""
  low, middle, high = min(values), statistics.median(values), max(values)
  return f"{middle:.{digits}f} {unit} [{low:.{digits}f}, {high:.{digits}f}]"


def products(shapes: Sequence[tuple[int, int, int]]) -> Callable[[], Any]:
  """A task that multiplies matrices [M, K] @ [K, N] of each shape, one after another, by NumPy's
  BLAS and into memory that is there already: what the cores can do."""
  rng = np.random.default_rng(0)
  arrays = {
    (M, K, N): [rng.normal(size=shape).astype(np.float32) for shape in ((M, K), (K, N), (M, N))]
    for M, K, N in set(shapes)
  }

  def run() -> None:
    for shape in shapes:
      a, b, c = arrays[shape]
      np.matmul(a, b, out=c)

  return run


def product_flops(shapes: Sequence[tuple[int, int, int]]) -> float:
  """Multiplications and additions of `products`."""
  return float(sum(2 * M * K * N for M, K, N in shapes))


def linear_products(
  tokens: int, kernels: Sequence[tuple[int, int]], *, backward: bool
) -> list[tuple[int, int, int]]:
  """The products of linear layers on `tokens` rows, and if asked those of their gradients."""
  shapes = [(tokens, K, N) for K, N in kernels]
  if backward:
    shapes += [(tokens, N, K) for K, N in kernels] + [(K, tokens, N) for K, N in kernels]
  return shapes


def copy(nbytes: int) -> Callable[[], Any]:
  """A task that copies so many bytes within memory."""
  source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
  return lambda: np.copyto(target, source)


def peak_rss_mb() -> float:
  """The most resident memory this process has had, in MB (10^6 bytes)."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
