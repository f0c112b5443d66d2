"""The smallest complete run: seconds, to see that everything works. It learns nothing.

    python -m vespo_jax.train --config=configs/debug.py --workdir=runs/debug

Reproduces nothing. Hardware: any CPU. Wall time: under a minute, most of it compiling.
Expected: exit code 0, accuracy near 0 before and after, a report.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Six updates of a tiny random policy at N = 2."""
  config = base.get_config()
  config.updates = 6
  config.staleness.minibatches = 2
  config.batch.prompts = 4
  config.batch.samples_per_prompt = 4
  config.sampler.max_new_tokens = 6
  config.task.options = ConfigDict(
    {"answer_format": "text", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
  )
  config.task.train_size = 200
  config.task.test_size = 50
  config.policy.width = 32
  config.policy.layers = 2
  config.policy.heads = 2
  config.policy.kv_heads = 1
  config.policy.head_width = 16
  config.policy.mlp_width = 64
  config.evaluation.problems = 8
  config.evaluation.samples_per_problem = 2
  config.checkpoint.every = 4
  return config
