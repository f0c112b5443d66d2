"""The testbed's small programs: a dense policy writes them, and running them says which are right.

    python -m experiments.code
    python -m vespo_jax.train --config=configs/testbed_code.py --workdir=runs/testbed_code

'n plus 4, times 6, mod 9' asks for a program that reads n and prints what comes out, in 21 to 31
tokens: any that prints the right numbers for two inputs, in the sandbox. The problems are made by
`python -m experiments.small_programs`. Its start, of the quickstart's sizes, is made as that one
is, from programs whose digits and operators are wrong at times (`python -m experiments.warm_start
code`).

Reproduces the protocol of table 4 at small scale: execution reward, N = 8. An update is of 16
groups of 8, and there are a third as many as in configs/testbed.py, since programs take longer to
judge: 0.05 s each, and on a slow core 0.3 s, where a response that another of its group repeats
costs nothing.
Hardware: one CPU core. Wall time: 9 to 17 minutes beside other work (12 runs, AVX2).
Expected: above the 63.4 % [59.8, 66.8] it starts from: VESPO at N = 8 89.1 % (three seeds).
"""

from pathlib import Path

from ml_collections import ConfigDict

import experiments
from configs import testbed

ASSETS = Path(experiments.__file__).parent / "assets"
START, PROBLEMS = ASSETS / "code", ASSETS / "programs"


def get_config() -> ConfigDict:
  """The testbed with programs."""
  config = testbed.get_config()
  config.updates = 64
  config.policy.path = str(START)
  config.task.name = f"jsonl:{PROBLEMS / 'train.jsonl.gz'}"
  config.task.options = ConfigDict(
    {"verifier": "code", "test_path": str(PROBLEMS / "test.jsonl.gz"), "memory_gb": 0.5}
  )
  config.task.train_size = 6000
  config.sampler.max_new_tokens = 32
  config.batch.prompts = 16
  config.evaluation.every = 32
  config.evaluation.problems = 300
  config.evaluation.samples_per_problem = 1
  config.checkpoint.every = 32
  return config
