"""A sweep over k and lambda. `python -m experiments.kernel_grid`.

The paper says that VESPO is robust to moderate changes of them, and has no table; the grid is ours.
"""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import DENSE, METHODS, Experiment, synchronous

N = 16
NEGATIVE = [(k, lam) for k in (1.0, 2.0, 3.0, 4.0) for lam in (1.0, 2.0, 3.0)]
EDGES = [(0.5, 2.0), (2.0, 0.0)]  # no variance bound (K is infinite); the pure power W^2
POSITIVE = [(1.0, 1.0), (1.0, 3.0), (2.0, 1.0), (3.0, 2.0)]


def _cell(sign: str, k: float, lam: float):
  changes = (
    *METHODS["vespo"],
    ("staleness.minibatches", N),
    (f"objective.vespo.k_{sign}", k),
    (f"objective.vespo.lambda_{sign}", lam),
  )
  return f"{sign} ({k:g}, {lam:g})", N, DENSE, changes


EXPERIMENT = Experiment(
  name="kernel_grid",
  title="Kernels W^k exp(lambda (1 - W)) at N = 16, one sign changed from VESPO's",
  cells=[
    *synchronous(["vespo"], [N]),
    *(_cell("neg", k, lam) for k, lam in [*NEGATIVE, *EDGES] if (k, lam) != (3.0, 2.0)),
    *(_cell("pos", k, lam) for k, lam in POSITIVE),
  ],
  claims=[],
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
