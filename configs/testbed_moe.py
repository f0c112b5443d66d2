"""The testbed's mixture of experts: configs/testbed.py with 8 experts, 2 of them active.

    python -m experiments.mismatch             # and experiments.dense_vs_moe
    python -m vespo_jax.train --config=configs/testbed_moe.py --workdir=runs/testbed_moe

Each expert is a quarter as wide as the dense policy's feed-forward layer, so that a token passes
half of its multiplications there. Its start is made as the dense policy's, from the same
demonstrations in as many steps (`python -m experiments.warm_start moe`, 20 minutes of a core), and
spells 52.1 % [48.5, 55.7] of the held-out words.

Reproduces the protocol of configs/testbed.py. Hardware: one CPU core.
Wall time: ten minutes beside other work (measured once, AVX2).
Expected: above the 52 % it starts from, by method and N: VESPO at N = 8 86.6 % (seed 0).
"""

from pathlib import Path

from ml_collections import ConfigDict

import experiments
from configs import testbed

START = Path(experiments.__file__).parent / "assets" / "moe"


def get_config() -> ConfigDict:
  """The testbed with a mixture of experts."""
  config = testbed.get_config()
  config.policy.path = str(START)
  config.policy.experts = 8
  config.policy.active_experts = 2
  config.policy.mlp_width = 128
  return config
