"""The paper's smallest model: Llama-3.2-3B-Instruct on DAPO-Math-17k, VESPO at N = 8.

    python -m vespo_jax.data prepare dapo_math --source=DAPO-Math-17k     # a clone of the dataset
    python -m vespo_jax.train --config=configs/paper/llama_3_2_3b.py --workdir=runs/llama_3_2_3b
      [--config.staleness.minibatches=4] [--config.objective.name=grpo]   # any N; gspo, sapo

with a clone of meta-llama/Llama-3.2-3B-Instruct in models/. `python -m experiments.scale
--config=configs/paper/llama_3_2_3b.py --hardware=v6e:64` says what it takes there, and prints the
flags of that layout.

Reproduces the row of Llama-3.2-3B-Instruct of table 1.
Hardware: the learner on 32 H200 (four nodes of eight), samplers on others; how it is started there
says configs/paper/protocol.py, and other layouts are in configs/paper/layouts.py. The paper: 32
H20.
Wall time, predicted and not measured (docs/scale.md): at least 39 s for an update and 9 s for
scoring its minibatch, so 0.8 days for 1,500 updates if sampling never waits.
Expected, from the paper: average of AIME24, AIME25, AMC23 and MATH-500 of 28.3 (GRPO 26.8, GSPO
26.7, SAPO 24.5), of the best checkpoint by that average, one seed. Not reproduced here.
"""

from ml_collections import ConfigDict

from configs.paper import protocol


def get_config() -> ConfigDict:
  """VESPO at N = 8, the learner on 32 H200."""
  return protocol.get_config("Llama-3.2-3B-Instruct", "h200:32")
