"""Figure 2: the coefficient phi(W) of a sequence and the surrogate f(W) it is the slope of.

    python -m experiments.kernels        # seconds; docs/experiments/kernels.png

phi comes from the objectives themselves, on sequences of one token, where a token's ratio is the
sequence's weight; f(W) is the integral of phi(w) / w from 0 (equation 40), and for VESPO it is held
against its closed form, (e^lambda / lambda^k) times the lower incomplete gamma function (41).
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import integrate, special

from vespo_jax import objectives

METHODS = ("grpo", "sapo", "vespo")
KERNELS = {1.0: (2.0, 3.0), -1.0: (3.0, 2.0)}  # sign of the advantage -> VESPO's (k, lambda)
WEIGHTS = np.geomspace(1e-6, 6.0, 20_001)
OUT = Path("docs/experiments/kernels.png")


def phi(name: str, sign: float) -> np.ndarray:
  """The coefficient of a sequence of each of `WEIGHTS` with an advantage of this sign."""
  log_w = jnp.log(jnp.asarray(WEIGHTS, jnp.float32))[:, None]
  advantages = jnp.full(len(WEIGHTS), sign, jnp.float32)
  mask = jnp.ones(log_w.shape, bool)
  return np.asarray(objectives.make(name)(log_w, advantages, mask)[0][:, 0], np.float64)


def surrogate(coefficient: np.ndarray) -> np.ndarray:
  """f(W): the integral of phi(w) / w from 0 to each of `WEIGHTS`."""
  return integrate.cumulative_trapezoid(coefficient, np.log(WEIGHTS), initial=0.0)


def error(sign: float) -> float:
  """The largest difference of VESPO's f from its closed form, relative to the largest f."""
  k, lam = KERNELS[sign]
  exact = np.exp(lam) * lam**-k * special.gammainc(k, lam * WEIGHTS) * special.gamma(k)
  found = surrogate(phi("vespo", sign))
  return float(np.abs(found - exact).max() / exact.max())


def main() -> int:
  """Draws the figure and prints how exact VESPO's curves are."""
  figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True)
  for column, (sign, title) in enumerate(((1.0, "A > 0"), (-1.0, "A < 0"))):
    for name in METHODS:
      coefficient = phi(name, sign)
      axes[0, column].plot(WEIGHTS, coefficient, label=name)
      axes[1, column].plot(WEIGHTS, surrogate(coefficient), label=name)
    axes[0, column].set_title(title)
    axes[1, column].set_xlabel("W")
    print(f"{title}: VESPO's f is within {error(sign):.1e} of its closed form")
  axes[0, 0].set_ylabel("phi(W)")
  axes[1, 0].set_ylabel("f(W)")
  axes[0, 0].set_ylim(-0.05, 3.0)
  axes[0, 1].set_ylim(-0.05, 3.0)
  axes[1, 0].legend()
  figure.tight_layout()
  OUT.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(OUT, dpi=100)
  plt.close(figure)
  return 0


if __name__ == "__main__":
  sys.exit(main())
