"""A warm start: a small policy from random weights imitates the answers of the quickstart's task.

    python -m vespo_jax.sft --config=configs/sft.py --workdir=runs/sft
    python -m vespo_jax.evaluate --workdir=runs/sft

The policy of configs/quickstart.py, byte by byte, learns what 12,000 words are backwards from their
correct spellings (the quickstart's own start has seen imperfect ones, for longer). An update is 128
demonstrations of about 67 tokens, two to a row of 144. --config.policy.path=runs/sft starts
`vespo_jax.train` from it.

Reproduces no figure of a paper. Hardware: two CPU cores. Wall time: 229 s measured on
cores shared with other work, for 186 s of CPU time; about two minutes on free ones.
Expected: the loss of 200 held-out words falls from 5.59 to 0.21 nats per token, 7.4 % of the tokens
computed are padding, and the held-out accuracy is 25.8 % [23.6, 28.1] (seed 0; temperature 1, 500
problems x 4 samples).
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
  """Cross entropy on the solutions of spell_backward, with a cosine decay."""
  config = quickstart.get_config()
  config.policy.path = ""
  config.updates = 250
  config.batch.prompts = 128
  config.batch.micro_batches = 8
  config.sft.row_tokens = 144
  config.sft.held_out = 200
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_updates = 25
  config.optimizer.decay = "cosine"
  config.evaluation.every = 50
  config.checkpoint.every = 50
  return config
