"""Past the paper: does VCPO's part help VESPO? `python -m experiments.combination`.

VCPO is a baseline of least variance for the advantage and a step size that follows the effective
sample size (arXiv 2602.17616); neither is about the kernel, so each can be added to VESPO. A gain
has to have p < 0.05 over 8 seeds.
"""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, Claim, Experiment, variants

N = 32
BASELINE = ("advantage.name", "vcpo")
STEP = ("optimizer.ess_scaling", "sqrt")
VARIANTS = {
  "vespo": (),
  "vespo + baseline": (BASELINE,),
  "vespo + step": (STEP,),
  "vespo + both": (BASELINE, STEP),
}

EXPERIMENT = Experiment(
  name="combination",
  title="VESPO with VCPO's baseline and step size at N = 32",
  cells=variants(VARIANTS, (N,)),
  claims=[
    Claim(f"{name} ends above VESPO", None, (name, N), ("vespo", N))
    for name in VARIANTS
    if name != "vespo"
  ],
  curves=(ACCURACY, "reward/mean", "grad/norm", "kl/behaviour_policy", "weight/ess_fraction"),
  seeds=8,
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
