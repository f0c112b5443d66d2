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


def products(shapes: Sequence[tuple[int, int, int]]) -> dict[str, Callable[[], Any]]:
  """Tasks that multiply matrices [M, K] @ [K, N] of each shape, one after another: what the cores
  can do. `blas_s` is NumPy's BLAS, into memory that is there already; `xla_s` is one program of
  them, free to run several at a time, which layers that wait for one another cannot."""
  rng = np.random.default_rng(0)
  pairs = [
    [rng.normal(size=size).astype(np.float32) for size in ((M, K), (K, N))] for M, K, N in shapes
  ]
  outputs = [np.zeros((M, N), np.float32) for M, _, N in shapes]
  program = jax.jit(lambda pairs: [a @ b for a, b in pairs])
  placed = jax.device_put(pairs)

  def blas() -> None:
    for (a, b), c in zip(pairs, outputs, strict=True):
      np.matmul(a, b, out=c)

  return {"blas_s": blas, "xla_s": lambda: program(placed)}


def share(gflop: float, seconds: float, times: Times, products_gflop: float) -> str:
  """A rate, and what part it is of those of both tasks of `products`, which did so many GFLOP."""
  rate = gflop / seconds
  blas, xla = (products_gflop / statistics.median(times[name]) for name in ("blas_s", "xla_s"))
  return (
    f"{rate:.0f} GFLOP/s of {blas:.0f} that the linear layers' products reach one after another: "
    f"{rate / blas:.0%} of the limit ({rate / xla:.0%} of {xla:.0f}, all of them at once)"
  )


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
