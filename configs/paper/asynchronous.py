"""The paper's fully asynchronous run: samplers never wait for the learner (v1 of the paper).

    python -m vespo_jax.train --config=configs/paper/asynchronous.py --workdir=runs/asynchronous
      [--config.objective.name=grpo]                                      # gspo, sapo

after `python -m vespo_jax.data prepare dapo_math --source=DAPO-Math-17k`, with a clone of the model
in models/. `python -m experiments.scale --config=configs/paper/asynchronous.py --mean_tokens=4300`
says how many devices must sample for each that learns.

Reproduces the figure "fully asynchronous" of v1, of Qwen3-30B-A3B-Base as the script has it.
The scripts' settings, and what they are here: trigger_parameter_sync_step=4 publishes every 4
updates (sync_every); staleness_threshold=1.0 lets samplers make (1 + 1) x 4 minibatches between two
publications, the last of which is trained on 7 updates after the weights that began it
(max_staleness); partial_rollout=True goes on with a response under new weights, its keys and values
computed again (recompute_cache); use_rollout_log_probs=True takes W against what really sampled.
Their overlong buffer has a factor of 0, so it is off.
Hardware: the learner on 32 H200, started as configs/paper/protocol.py says; the paper had 16
GPUs that learned and 48 that sampled.
Wall time, predicted and not measured (docs/scale.md): at least 55 s for an update, so 1.0 days for
1,500 updates with enough samplers.
Expected, read off the figure at update 1,450: AIME25 of .32 and AIME24 of .445 (GRPO .285 and .38,
GSPO .20 and .33, SAPO .06 and .17), responses of about 4,300 tokens. Not reproduced here.
"""

from ml_collections import ConfigDict

from configs.paper import qwen3_30b_a3b


def get_config() -> ConfigDict:
  """VESPO, fully asynchronous, the learner on 32 H200."""
  config = qwen3_30b_a3b.get_config()
  config.staleness.minibatches = 1
  config.runtime.mode = "async"
  config.runtime.sync_every = 4
  config.runtime.max_staleness = 7
  config.runtime.partial_rollouts = "recompute_cache"
  config.correction.denominator = "behaviour"
  config.runtime.pieces.dtype = "bfloat16"  # as samplers hold them; nobody else needs them
  return config
