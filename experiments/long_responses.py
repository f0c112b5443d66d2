"""Past the paper: the rivals where responses are long. `python -m experiments.long_responses`.

W is a product over 9 to 65 tokens, which is where sequence weights, with or without a kernel, and
token weights part.
"""

from __future__ import annotations

import sys

from experiments.staleness import PAPER, STALENESSES
from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, LONG, Claim, Experiment, synchronous

NS = (8, 32)
RIVALS = ("grpo", "gspo", "sapo")

EXPERIMENT = Experiment(
  name="long_responses",
  title="Responses of 9 to 65 tokens, at N = 8 and 32",
  cells=synchronous(["vespo", *RIVALS, "sequence_is", "reinforce"], NS, LONG),
  claims=[
    *(
      Claim(
        f"VESPO is above {rival.upper()} at N = {n}",
        (PAPER["vespo"][STALENESSES.index(n)], PAPER[rival][STALENESSES.index(n)]),
        ("vespo", n),
        (rival, n),
      )
      for n in NS
      for rival in RIVALS
    ),
    *(Claim(f"the kernel helps W at N = {n}", None, ("vespo", n), ("sequence_is", n)) for n in NS),
  ],
  curves=(ACCURACY, "reward/mean", "response/length", "weight/log_w_std", "weight/ess_fraction"),
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
