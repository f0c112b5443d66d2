"""The paper's middle model: Qwen3-8B-Base on DAPO-Math-17k, VESPO at N = 8.

    python -m vespo_jax.data prepare dapo_math --source=DAPO-Math-17k     # a clone of the dataset
    python -m vespo_jax.train --config=configs/paper/qwen3_8b.py --workdir=runs/qwen3_8b
      [--config.staleness.minibatches=4] [--config.objective.name=grpo]   # any N; gspo, sapo

with a clone of Qwen/Qwen3-8B-Base in models/. `python -m experiments.scale
--config=configs/paper/qwen3_8b.py --hardware=v5p:64` says what it takes there, and prints the flags
of that layout.

Reproduces the row of Qwen3-8B-Base of table 1.
Hardware: the learner on 32 H200 (four nodes of eight), samplers on others; how it is started there
says configs/paper/protocol.py, and other layouts are in configs/paper/layouts.py. The paper: 32
H20.
Wall time, predicted and not measured (docs/scale.md): at least 84 s for an update and 20 s for
scoring its minibatch, so 1.8 days for 1,500 updates if sampling never waits.
Expected, from the paper: average of AIME24, AIME25, AMC23 and MATH-500 of 60.9 (GRPO 54.6, GSPO
56.4, SAPO 60.9), of the best checkpoint by that average, one seed. Not reproduced here.
"""

from ml_collections import ConfigDict

from configs.paper import protocol


def get_config() -> ConfigDict:
  """VESPO at N = 8, the learner on 32 H200."""
  return protocol.get_config("Qwen3-8B-Base", "h200:32")
