"""The paper's main model: Qwen3-30B-A3B-Base on DAPO-Math-17k, VESPO at N = 8, and at any other N.

    python -m vespo_jax.data prepare dapo_math --source=DAPO-Math-17k     # a clone of the dataset
    python -m vespo_jax.train --config=configs/paper/qwen3_30b_a3b.py --workdir=runs/qwen3_30b_a3b
      [--config.staleness.minibatches=4] [--config.objective.name=grpo]   # 16, 32, 64; gspo, sapo

with a clone of Qwen/Qwen3-30B-A3B-Base in models/. `python -m experiments.scale
--config=configs/paper/qwen3_30b_a3b.py --hardware=v5p:64` says what it takes there, and prints the
flags of that layout.

Reproduces the row of Qwen3-30B-A3B-Base of table 1, and table 2: N = 4, 8, 16, 32, 64.
Hardware: the learner on 32 H200 (four nodes of eight), samplers on others; how it is started there
says configs/paper/protocol.py, and other layouts are in configs/paper/layouts.py. On 32 GB chips
(v6e) it does not fit: docs/scale.md. The paper: 32 H20.
Wall time, predicted and not measured (docs/scale.md): at least 55 s for an update and 13 s for
scoring its minibatch, so 1.2 days for 1,500 updates if sampling never waits.
Expected, from the paper: average of AIME24, AIME25, AMC23 and MATH-500 of 70.0 at N = 8 (GRPO 57.0,
GSPO 59.1, SAPO 51.7), of 70.0, 67.3, 64.5 and 61.8 at N = 4, 16, 32 and 64; of the best checkpoint
by that average, one seed. Nothing of it has been reproduced here.

    python -m vespo_jax.evaluate --model=runs/qwen3_30b_a3b --preset=vespo --task=dataset/aime25
      --max_new_tokens=15360 --dtype=bfloat16
"""

from ml_collections import ConfigDict

from configs.paper import protocol


def get_config() -> ConfigDict:
  """VESPO at N = 8, the learner on 32 H200."""
  return protocol.get_config("Qwen3-30B-A3B-Base", "h200:32")
