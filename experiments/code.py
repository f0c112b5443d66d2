"""Table 4: programs, rewarded by running them. `python -m experiments.code`.

The paper's are pass@10 on three sets of other problems; here, it is accuracy on held-out problems
of the kind that is trained on.
"""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, CODE, Claim, Experiment, synchronous

N = 8
RIVALS = {"grpo": 60.9, "gspo": 59.7, "sapo": 61.8}  # VESPO has 63.0

EXPERIMENT = Experiment(
  name="code",
  title="Small programs, rewarded by running them, at N = 8 (table 4, figure 12)",
  cells=synchronous(["vespo", *RIVALS], [N], CODE),
  claims=[
    Claim(f"VESPO is above {rival.upper()} on code", (63.0, paper), ("vespo", N), (rival, N))
    for rival, paper in RIVALS.items()
  ],
  curves=(ACCURACY, "reward/mean", "response/length", "kl/behaviour_policy", "entropy/mean"),
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
