"""The testbed's long responses: words of 8 to 64 letters are spelled backwards, in 9 to 65 tokens.

    python -m experiments.long_responses
    python -m vespo_jax.train --config=configs/testbed_long.py --workdir=runs/testbed_long

The question, the policy and the reward (the whole word or nothing) are those of configs/testbed.py;
the words are reasoning-gym's, joined (`python -m experiments.long_words`). Its start goes on from
the quickstart's, from demonstrations of growing length in which one letter of fifty is wrong
(`python -m experiments.warm_start long`, an hour of a core that does other work too), and spells
39.0 % [33.5, 44.8] of the held-out words. An update is of 16 groups of 8.

Reproduces the protocol of configs/testbed.py where W is a product of up to 65 ratios. Hardware: one
CPU core. Wall time: 9 minutes beside other work (two runs, AVX2).
Expected: by method and N from the 39 % it starts from: `docs/experiments/long_responses.md`, where
VESPO ends at 61.5 % at N = 32 (three seeds).
"""

from pathlib import Path

from ml_collections import ConfigDict

import experiments
from configs import testbed

ASSETS = Path(experiments.__file__).parent / "assets"
START, PROBLEMS = ASSETS / "long", ASSETS / "long_words"


def get_config() -> ConfigDict:
  """The testbed with long responses."""
  config = testbed.get_config()
  config.updates = 128
  config.policy.path = str(START)
  config.task.name = f"jsonl:{PROBLEMS / 'train.jsonl.gz'}"
  config.task.options = ConfigDict(
    {"verifier": "exact", "test_path": str(PROBLEMS / "test.jsonl.gz")}
  )
  config.task.train_size = 6000
  config.sampler.max_new_tokens = 68
  config.batch.prompts = 16
  config.evaluation.problems = 200
  config.evaluation.samples_per_problem = 2
  return config
