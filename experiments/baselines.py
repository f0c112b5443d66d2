"""Figure 11 and table 3, and newer rivals, at N = 8. `python -m experiments.baselines`.

All but VCPO with GRPO's advantages, so that what is compared is the objective; "(own)" are those
that were published with others: TOPR's rewards of -1 and 1, R - mean of DPPO and of MiniRL, whose
ratio is against the recomputation. TOPR is held against VESPO with the whole ratio of a sequence,
as its own paper has it, and with the length-normalised one that VESPO's describes.
"""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, DENSE, METHODS, Claim, Experiment, synchronous

N = 8
PAPER = {"topr": 48.7, "cispo": 48.7, "bapo": 63.6}  # table 3; VESPO has 70.0
OWN = {
  "topr (own)": (*METHODS["topr"], ("advantage.name", "constant")),
  "topr (length-normalised)": (*METHODS["topr"], ("objective.topr.length_norm", "linear")),
  "dppo_tv (own)": (*METHODS["dppo_tv"], ("advantage.name", "dr_grpo")),
  "minirl (own)": (
    *METHODS["minirl"],
    ("advantage.name", "dr_grpo"),
    ("correction.denominator", "proximal"),
  ),
}
NEWER = ("dppo_tv", "minpro", "minirl", "vcpo", "m2po", "sequence_is", "reinforce")

EXPERIMENT = Experiment(
  name="baselines",
  title="More rivals at N = 8 (figure 11, table 3; DPPO, MinPRO, MiniRL, VCPO, M2PO beside them)",
  cells=[
    *synchronous(("vespo", *PAPER, *NEWER), (N,)),
    *((name, N, DENSE, (*own, ("staleness.minibatches", N))) for name, own in OWN.items()),
  ],
  claims=[
    Claim(f"VESPO is above {rival.upper()}", (70.0, paper), ("vespo", N), (rival, N))
    for rival, paper in PAPER.items()
  ]
  + [
    Claim(
      "VESPO is above TOPR, length-normalised",
      (70.0, PAPER["topr"]),
      ("vespo", N),
      ("topr (length-normalised)", N),
    )
  ],
  curves=(ACCURACY, "reward/mean", "entropy/mean", "grad/norm"),
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
