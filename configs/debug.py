"""The quickstart in miniature: to see that everything works, in seconds. It learns next to nothing.

    python -m vespo_jax.train --config=configs/debug.py --workdir=runs/debug

Reproduces nothing. Hardware: any CPU. Wall time: half a minute, most of it compiling.
Expected: exit code 0, 70 % accuracy before and after (28 of 40 responses), and a report.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
  """Six updates at N = 2, on minibatches of 4 prompts with 4 samples each."""
  config = quickstart.get_config()
  config.updates = 6
  config.staleness.minibatches = 2
  config.batch.prompts = 4
  config.batch.samples_per_prompt = 4
  config.batch.micro_batches = 2
  config.optimizer.warmup_updates = 0
  config.task.train_size = 200
  config.task.test_size = 50
  config.evaluation.problems = 20
  config.evaluation.samples_per_problem = 2
  config.checkpoint.every = 4
  return config
