"""The dense policy and the task on which methods are compared: short responses, high staleness.

    python -m experiments.staleness            # and the other experiments of its kind
    python -m vespo_jax.train --config=configs/testbed.py --workdir=runs/testbed

The policy of 1.0M parameters that the quickstart starts from, and its task: words of 3 to 10
letters are spelled backwards, in 4 to 11 tokens, reward 0 or 1 for the whole word. A minibatch is
32 groups of 8, a rollout batch N of them. The learning rate is twice the quickstart's. Everything
runs in one process on one core, so that two runs at a time use two.

Reproduces the protocol of the paper's section 4.1 (minibatches of fixed size, rollout batches of N
minibatches, groups of 8, no KL, no entropy bonus) at small scale. Hardware: one CPU core.
Wall time: a minute and a half on an AVX-512 core that does nothing else, three to six on an AVX2
core beside other work (measured).
Expected: above the 53 % it starts from, by method and N.
"""

from ml_collections import ConfigDict

from configs import quickstart

LEARNING_RATE = 2e-4  # `python -m experiments.regime` compares it with others


def get_config() -> ConfigDict:
  """VESPO at N = 8; experiments change the method and N."""
  config = quickstart.get_config()
  config.updates = 192
  config.staleness.minibatches = 8
  config.optimizer.learning_rate = LEARNING_RATE
  config.runtime.transport = "threads"
  config.evaluation.every = 32
  config.evaluation.problems = 250
  config.checkpoint.every = 64
  config.checkpoint.keep_last = 1
  config.rollouts.save_groups = 0
  return config
