"""The quickstart: a small policy learns to spell words backwards, with VESPO at N = 4.

    python -m vespo_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

A byte-level Qwen3-style policy of 1.0M parameters, warm-started by `experiments/warm_start.py`, is
asked 'Spell this word backward (example: sun -> nus): river' (reasoning-gym's spell_backward: words
of 3 to 10 letters, held-out words disjoint from the training words) and rewarded only for the whole
word. A response is 4 to 11 tokens, so the sequence weight W is a product over a length that varies.

Reproduces no figure of the paper. Hardware: two CPU cores. Wall time: one to three minutes.
Expected: held-out accuracy from 53 % to 90 % (seed 0; sampled at temperature 1, 500 problems).
"""

from pathlib import Path

from ml_collections import ConfigDict

import vespo_jax
from configs import base

WARM_START = Path(vespo_jax.__file__).parent / "assets" / "quickstart"


def get_config() -> ConfigDict:
  """VESPO at N = 4 on spell_backward."""
  config = base.get_config()
  config.updates = 160
  config.task.name = "reasoning_gym/spell_backward"
  config.task.options = ConfigDict({"answer_format": "text"})
  config.task.train_size = 12_000
  config.task.test_size = 500
  config.sampler.max_new_tokens = 12
  config.policy.path = str(WARM_START)
  config.policy.width = 128  # the sizes the warm start is trained at
  config.policy.layers = 4
  config.policy.heads = 4
  config.policy.kv_heads = 2
  config.policy.head_width = 32
  config.policy.mlp_width = 512
  config.batch.micro_batches = 4
  config.optimizer.learning_rate = 1e-4
  config.evaluation.problems = 500
  config.evaluation.samples_per_problem = 4
  return config
