"""Table 1: does a method depend on the kind of model? `python -m experiments.dense_vs_moe`.

The dense policy and the mixture of experts of the testbed, from warm starts on the same task.
"""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, DENSE, METHODS, MOE, Claim, Experiment

N = 8
SHAPES = {"dense": DENSE, "moe": MOE}
RIVALS = {  # table 1, averages: Qwen3-8B-Base, dense, and Qwen3-30B-A3B-Base
  "grpo": ((60.9, 54.6), (70.0, 57.0)),
  "gspo": ((60.9, 56.4), (70.0, 59.1)),
  "sapo": ((60.9, 60.9), (70.0, 51.7)),
}

EXPERIMENT = Experiment(
  name="dense_vs_moe",
  title="A dense policy and a mixture of experts at N = 8 (table 1)",
  cells=[
    (f"{method}, {shape}", N, config, (*METHODS[method], ("staleness.minibatches", N)))
    for shape, config in SHAPES.items()
    for method in ("vespo", *RIVALS)
  ],
  claims=[
    Claim(
      f"VESPO is above {rival.upper()}, {shape}",
      paper[i],
      (f"vespo, {shape}", N),
      (f"{rival}, {shape}", N),
      tie=paper[i][0] == paper[i][1],
    )
    for i, shape in enumerate(SHAPES)
    for rival, paper in RIVALS.items()
  ],
  curves=(ACCURACY, "reward/mean", "response/length", "kl/behaviour_policy", "entropy/mean"),
  seeds=5,  # as `staleness` has, whose runs the dense ones are
  paper={DENSE: "configs/paper/qwen3_8b.py", MOE: "configs/paper/qwen3_30b_a3b.py"},
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
