"""Past the paper: what kernels leave of long responses. `python -m experiments.gradient_mass`.

The coefficients phi(W) of sequences from mu have the mean Z = E_mu[phi(W)] (section 3, where Q =
mu phi / Z). Here log W of T tokens is normal with variance T s^2, and E_mu[W] = 1, as it must be;
s = 0.088 makes the deviation of log W 0.25 at 8 tokens. Z is an integral, taken by Gauss-Hermite
quadrature, not sampled. Three kernels: the published one; lambda alone over T / 8; and k and lambda
both, which is `objective.vespo.length_reference=8`. Seconds; docs/experiments/gradient_mass.png.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from vespo_jax import objectives

REFERENCE = 8
DEVIATION = 0.25  # of log W, at `REFERENCE` tokens
LENGTHS = REFERENCE * 2 ** np.arange(8)
NODES = 200
SIGNS = {1.0: "A > 0", -1.0: "A < 0"}
KERNELS: dict[str, Callable[[float], dict[str, float]]] = {
  "as published": lambda longer: {},
  "lambda / (T / 8)": lambda longer: {"lambda_pos": 3 / longer, "lambda_neg": 2 / longer},
  "k and lambda / (T / 8)": lambda longer: {"length_reference": REFERENCE},
}
OUT = Path("docs/experiments/gradient_mass.png")


def mass(kernel: str, sign: float, length: int) -> float:
  """Z of a kernel of `KERNELS` at a length, for an advantage of this sign; the coefficients are the
  objective's own."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
  deviation = DEVIATION * (length / REFERENCE) ** 0.5
  log_w = deviation * nodes - deviation**2 / 2
  log_ratio = np.tile(log_w[:, None] / length, (1, length))
  objective = objectives.make("vespo", **KERNELS[kernel](length / REFERENCE))
  given = (
    jnp.asarray(log_ratio, jnp.float32),
    jnp.full(NODES, sign),
    jnp.ones((NODES, length), bool),
  )
  phi = np.asarray(objective(*given)[0][:, 0], np.float64)
  return float(phi @ weights / weights.sum())


def main() -> int:
  """Draws the figure and prints the table."""
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharex=True, sharey=True)
  for axis, (sign, title) in zip(axes, SIGNS.items(), strict=True):
    for kernel in KERNELS:
      masses = [mass(kernel, sign, length) for length in LENGTHS]
      axis.loglog(LENGTHS, masses, label=kernel)
      print(f"{title}, {kernel}:", *(f"{z:.3f}" for z in masses))
    axis.set_title(title)
    axis.set_xlabel("tokens")
  axes[0].set_ylabel("Z")
  axes[0].set_ylim(0.05, 1000.0)
  axes[0].legend()
  figure.tight_layout()
  OUT.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(OUT, dpi=100)
  plt.close(figure)
  return 0


if __name__ == "__main__":
  sys.exit(main())
