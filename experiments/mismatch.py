"""Figure 5: experts, and a sampler of other numerics. `python -m experiments.mismatch`.

The sampler holds the weights in bfloat16 or int8, so it routes and scores tokens otherwise than the
trainer. As in veRL and the paper's scripts, ratios and W are against the trainer's own
recomputation at the start of a rollout batch. TIS adds the truncated ratio of that to what the
sampler reported, token by token; R2 replays the recomputation's experts. Beside them stands VESPO
whose W is against what the sampler reported, "(behaviour)", which has the mismatch in it; the paper
has no such curve.
"""

from __future__ import annotations

import sys

from experiments.suite import cli
from experiments.suite.experiment import ACCURACY, METHODS, MOE, Claim, Experiment

N = 8
DTYPES = ("bfloat16", "int8")
RECOMPUTED = (("correction.denominator", "proximal"),)
BEHAVIOUR = (("correction.denominator", "behaviour"),)
TIS = (("correction.denominator", "decoupled"), ("correction.name", "token_tis"))
R2 = (("moe.replay", "R2"),)
VARIANTS = {
  "vespo": (*METHODS["vespo"], *RECOMPUTED),
  "grpo": (*METHODS["grpo"], *RECOMPUTED),
  "grpo + TIS": (*METHODS["grpo"], *TIS),
  "grpo + R2": (*METHODS["grpo"], *RECOMPUTED, *R2),
  "vespo + R2": (*METHODS["vespo"], *RECOMPUTED, *R2),
  "vespo (behaviour)": (*METHODS["vespo"], *BEHAVIOUR),
  "vespo (behaviour) + R2": (*METHODS["vespo"], *BEHAVIOUR, *R2),
}

EXPERIMENT = Experiment(
  name="mismatch",
  title="A mixture of experts, the sampler in bfloat16 or int8, at N = 8 (figure 5)",
  cells=[
    (f"{name}, {dtype}", N, MOE, (*changes, ("staleness.minibatches", N), ("sampler.dtype", dtype)))
    for dtype in DTYPES
    for name, changes in VARIANTS.items()
  ],
  claims=[
    Claim(text, paper, (f"{better}, {dtype}", N), (f"{worse}, {dtype}", N), tie)
    for dtype in DTYPES
    for text, paper, better, worse, tie in (
      (f"TIS mends GRPO, {dtype}", "above GRPO's plateau near .60", "grpo + TIS", "grpo", False),
      (f"R2 mends GRPO, {dtype}", "above GRPO's plateau near .60", "grpo + R2", "grpo", False),
      (f"VESPO is as GRPO + R2, {dtype}", "about as GRPO + R2", "vespo", "grpo + R2", True),
      (f"R2 helps VESPO too, {dtype}", "the best curve", "vespo + R2", "vespo", False),
      (f"VESPO + R2 is above GRPO + R2, {dtype}", "the best", "vespo + R2", "grpo + R2", False),
      (f"VESPO + R2 is above GRPO + TIS, {dtype}", "the best", "vespo + R2", "grpo + TIS", False),
    )
  ],
  curves=(ACCURACY, "reward/mean", "kl/behaviour_policy", "entropy/mean", "grad/norm"),
)

if __name__ == "__main__":
  sys.exit(cli.main(EXPERIMENT))
