"""What all runs of the paper share (arXiv 2602.10693 v3, section 4.1 and appendix D, and the
official scripts): data, sampling, batch, staleness and optimizer. The files beside this one say
which model, on which devices.

On several hosts each gives the command, with `--config.distributed.enabled=True` (README, Several
hosts); samplers on GPUs of their own are those of a Ray cluster. `experiments/launch/ray.sh` starts
both: CONFIG=configs/paper/qwen3_8b.py WORKDIR=... RAY_HEAD=... SAMPLERS=8 ... "HOST HOST HOST HOST"
--config.runtime.ray.num_gpus=4, which is `sampler.tensor`.

What the scripts leave to veRL is as veRL has it: no warm-up, a weight decay of 0.01, gradients
clipped at a norm of 1, Adam's moments 0.9 and 0.999. The rivals' scripts are not published. One of
GRPO, older and of R2, is in the same repository: the mean over all tokens, and a dual clip of 10,
which is set here; this project's `grpo` takes the mean over sequences, which
`--config.objective.aggregation=token-mean` changes.
"""

from ml_collections import ConfigDict

from configs import base
from configs.paper import layouts


def get_config(model: str, hardware: str) -> ConfigDict:
  """VESPO at N = 8 on DAPO-Math-17k, `model` being a directory in models/."""
  config = base.get_config()
  config.updates = 1500
  config.policy.path = f"models/{model}"
  config.policy.remat = "full"
  config.policy.dtype = "bfloat16"  # of the computation; parameters and optimizer stay float32
  config.policy.attention = layouts.ATTENTION[hardware.split(":")[0]]
  config.task.name = "dataset/dapo_math"
  config.task.train_size = 0  # all of it, less what is held out
  config.task.test_size = 0
  config.task.max_prompt_tokens = 1024
  config.task.options = ConfigDict({"held_out": 0.03})  # 500 of 17,000; the paper holds out none
  config.task.grade_timeout_s = 30.0  # of Math-Verify
  config.task.grade_processes = 32
  config.batch.prompts = 256  # of an update; the scripts' gbs is this times N
  config.batch.samples_per_prompt = 8
  config.staleness.minibatches = 8  # N; table 2 and figures 3-4 have 4, 16, 32 and 64 too
  # the scripts leave the rollout correction out, so that W is against what the trainer recomputes
  config.correction.denominator = "proximal"
  config.sampler.max_new_tokens = 15_360  # 16,384 with the prompt
  config.sampler.temperature = 1.0
  config.sampler.dtype = "bfloat16"
  config.sampler.processes = 8
  config.sampler.chunk = 128
  config.sampler.attention = layouts.DECODE_ATTENTION[hardware.split(":")[0]]
  config.sampler.tensor = layouts.SAMPLERS[model][hardware]
  config.runtime.gpu_memory_fraction = 0.92  # as `experiments.scale` counts it; not for one GPU
  config.runtime.weights = "pieces"  # through --workdir, which all hosts share
  config.optimizer.learning_rate = 1e-6  # constant
  config.optimizer.weight_decay = 0.01
  config.objective.grpo.dual_clip = 10.0
  config.optimizer.warmup_updates = 0
  config.evaluation.every = 50
  config.evaluation.problems = 200
  config.evaluation.samples_per_problem = 4
  config.checkpoint.every = 50
  config.runtime.timeout_s = 14_400.0  # a minibatch of responses of 15,360 tokens takes long
  config.runtime.hang_timeout_s = 3600.0  # so does compiling
  for key, value in layouts.LAYOUTS[model][hardware].items():
    section, name = key.split(".")
    config[section][name] = value
  return config
