"""The paper's runs on code: PRIME-RL/Eurus-2-RL-Data, rewarded by running what is written.

    python -m vespo_jax.data prepare eurus_code --source=Eurus-2-RL-Data    # a clone of the dataset
    python -m vespo_jax.train --config=configs/paper/code.py --workdir=runs/code

Reproduces table 4 at N = 8. Which model it is of is in no source that was read; Qwen3-30B-A3B-Base,
the main one, is taken. Everything but the task is configs/paper/qwen3_30b_a3b.py.
Hardware: the learner on 32 H200, and cores for 32 programs at a time; how it is started there says
configs/paper/protocol.py.
Wall time, predicted and not measured: at least 55 s for an update and 13 s for scoring its
minibatch, by `python -m experiments.scale --config=configs/paper/code.py`, if none waits for
programs.
Expected, from the paper, pass@10 of HumanEval+, MBPP+ and LiveCodeBench v6: 88.4, 75.4, 25.3 (GRPO
84.8, 74.9, 23.1; GSPO 82.9, 73.0, 23.1; SAPO 86.6, 74.6, 24.2). Not reproduced here.

    python -m vespo_jax.evaluate --model=runs/code --task=dataset/humaneval_plus --preset=vespo
      --max_new_tokens=15360 --dtype=bfloat16
"""

from ml_collections import ConfigDict

from configs.paper import qwen3_30b_a3b


def get_config() -> ConfigDict:
  """VESPO on code at N = 8, the learner on 32 H200."""
  config = qwen3_30b_a3b.get_config()
  config.task.name = "dataset/eurus_code"
  return config
