"""Every knob of a run, with its unit and meaning. Experiments start here and change what differs.

    from configs import base

    def get_config():
      config = base.get_config()
      config.staleness.minibatches = 16
      return config

Any key is also a flag: `--config.staleness.minibatches=16`. Unknown keys, values of another type or
out of range (vespo_jax/config_rules.py) and contradictions are refused before anything is loaded,
with exit code 2.
"""

from ml_collections import ConfigDict

from vespo_jax import advantages, objectives
from vespo_jax.objectives import corrections


def get_config() -> ConfigDict:
  """The defaults: VESPO at N = 4 on two-term sums, a small policy from random weights."""
  config = ConfigDict()
  config.seed = 0  # of the data order, the sampling and the random weights
  config.updates = 100  # optimizer updates of the whole run

  # What is optimised. Each method has its hyper-parameters, with their published defaults, under
  # its own name: objective.vespo.k_pos, objective.grpo.clip_high, ... (their meaning, paper and
  # equation: vespo_jax/objectives/).
  config.objective = ConfigDict({name: objectives.defaults(name) for name in objectives.names()})
  config.objective.name = "vespo"  # of the method
  config.objective.aggregation = ""  # token-mean, seq-mean-token-mean, ...; "": the method's own
  # off-policy sequence masking of any method, from so many nats per token on; 0: off
  config.objective.opsm_delta = 0.0

  # Rewards of a group -> advantages (vespo_jax/advantages.py).
  config.advantage = ConfigDict({name: advantages.defaults(name) for name in advantages.names()})
  config.advantage.name = "grpo"  # of the estimator

  # What the ratio is against, and the correction for the sampler's numerics
  # (vespo_jax/objectives/corrections.py).
  config.correction = ConfigDict({name: corrections.defaults(name) for name in corrections.names()})
  # behaviour: what really sampled; proximal: the trainer's own recomputation at the start of the
  # rollout batch (one more forward pass, a copy of the weights); decoupled: that, with a correction
  config.correction.denominator = "behaviour"
  config.correction.name = "none"  # of the correction

  config.kl = ConfigDict()
  config.kl.coefficient = 0.0  # of the penalty against the initial policy, per token; 0: off
  config.kl.estimator = "k3"  # k1, k2, k3 or low_var (vespo_jax/objectives/regularizers.py)
  config.kl.placement = "loss"  # loss: differentiated; reward: taken off the sequence's reward
  config.entropy = ConfigDict({"coefficient": 0.0})  # of the bonus, per token; 0: off
  config.proximal_step = ConfigDict()
  config.proximal_step.divergence = "none"  # kl or tv, to the policy at the rollout batch's start
  config.proximal_step.step_size = 1.0  # the loss gets divergence / step_size per token

  # A mixture of experts (vespo_jax/learner/routing.py).
  config.moe = ConfigDict()
  config.moe.balance_coefficient = 0.0  # of the load-balance loss, whose even value is A; 0: off
  config.moe.z_coefficient = 0.0  # of the router's z-loss; 0: off
  # the experts of a token in training: off, the router's choice; R2, that of the proximal policy
  # (one more forward pass, a copy of the weights); R3, the sampler's, which then reports it
  config.moe.replay = "off"

  config.batch = ConfigDict()
  config.batch.prompts = 32  # prompts (groups) of a minibatch: one optimizer update
  config.batch.samples_per_prompt = 8  # responses to each prompt
  config.batch.micro_batches = 1  # pieces the gradient is accumulated over: memory, not result

  # DAPO's dynamic sampling (vespo_jax/learner/groups.py): groups whose answers are all equally
  # correct, whatever else they are paid for, are dropped, and the next prompts of the stream are
  # asked in their place, until the minibatch is full.
  config.batch.dynamic = ConfigDict()
  config.batch.dynamic.enabled = False  # False: every group is trained on
  # rounds of sampling for one minibatch, the first included; if it is not full after them, the run
  # is saved and stops
  config.batch.dynamic.max_rounds = 10
  config.batch.dynamic.oversampling = 1.0  # prompts asked per missing group; the surplus is dropped

  config.staleness = ConfigDict()
  config.staleness.minibatches = 4  # N: updates made on one rollout batch; 1 is on-policy

  # sync: roll out N minibatches with one set of weights, then N updates. async: samplers run on
  # while the learner updates; staleness is bounded when a minibatch is ordered
  # (vespo_jax/runtime/schedule.py).
  config.runtime = ConfigDict()
  config.runtime.mode = "sync"  # or async
  config.runtime.max_staleness = 1  # async: updates a trained token's weights may be behind
  config.runtime.sync_every = 1  # async: updates between publications of weights
  # async: wall, the newest weights there are; logical, each order says which version samples it, so
  # that the run is deterministic; replay:RUN, as a run directory's schedule.jsonl has it
  config.runtime.clock = "wall"
  # async: off, a response is finished by the weights that began it; else it goes on under newer
  # ones, with the old keys and values (keep_cache) or with new ones (recompute_cache)
  config.runtime.partial_rollouts = "off"
  config.runtime.transport = "local"  # local: processes; threads: in this process (tests); ray
  # how published weights travel: whole, through the memory of the learner's hosts; or in pieces,
  # through a directory that all share, where each process writes what its devices hold and samplers
  # read what theirs are to hold, so that no host holds the model (vespo_jax/weights/pieces.py)
  config.runtime.weights = "whole"
  config.runtime.pieces = ConfigDict()  # with weights=pieces
  config.runtime.pieces.directory = ""  # "": weights/ in the run directory; for this run alone
  config.runtime.pieces.dtype = "float32"  # or bfloat16, half of it, with sampler.dtype=bfloat16
  config.runtime.pieces.compress = False  # by zstd, which is exact
  config.runtime.pieces.chunk_mb = 64.0  # MiB of a piece: what a host holds is a few of them
  config.runtime.timeout_s = 600.0  # seconds without any rollouts, while the learner waits
  config.runtime.hang_timeout_s = 300.0  # seconds of silence after which a sampler is restarted
  config.runtime.max_failures = 10  # of samplers, in a whole run, before it stops
  # what is done about a sampler whose log-probs or weight versions cannot be true
  # (vespo_jax/learner/integrity.py): off, flag, or quarantine: restart it, sample its work again
  config.runtime.integrity = "flag"
  config.runtime.ray = ConfigDict()  # with transport=ray (requirements-ray.txt)
  config.runtime.ray.address = ""  # of the cluster; "": that of the environment, or a new one here
  config.runtime.ray.num_cpus = 1.0  # of each sampler
  config.runtime.ray.num_gpus = 0.0  # of each sampler
  config.runtime.ray.resources = ConfigDict()  # custom resources of each, by name; set in the file
  config.runtime.profile_updates = 0  # updates traced by jax.profiler, into profile/; 0: none
  # where compiled programs are kept, for other runs too; "": nowhere. JAX's own variable,
  # JAX_COMPILATION_CACHE_DIR, goes before
  config.runtime.compilation_cache = "runs/compilation_cache"
  config.runtime.gpu_memory_fraction = 0.45  # of a GPU's memory, for the learner, and the samplers

  config.sampler = ConfigDict()
  config.sampler.source = "process"  # or replay:RUN, the rollouts another run saved, no sampling
  config.sampler.processes = 1  # sampler processes; they share every minibatch
  config.sampler.slots = 0  # sequences each decodes at a time; 0: its share of a minibatch
  config.sampler.chunk = 32  # most tokens between two looks for newer weights and free slots
  config.sampler.max_new_tokens = 16  # tokens of a response, the end token included
  config.sampler.stop_strings = ()  # texts that end a response, beside the model's end tokens
  config.sampler.temperature = 1.0  # of the softmax; the learner's log-probs use the same
  # top_k tokens, the top_p nucleus, those at least min_p times as likely as the likeliest. They
  # make the sampled distribution another than the policy's, so W is biased: allow_truncation says
  # that this is meant
  config.sampler.top_k = 0  # 0: off
  config.sampler.top_p = 1.0  # 1: off
  config.sampler.min_p = 0.0  # 0: off
  config.sampler.allow_truncation = False  # whether top_k, top_p and min_p may be used
  config.sampler.dtype = "float32"  # float32, bfloat16 or int8 weights; the mismatch is measured
  # what attends to the cache: dense, plain products on any device; flash, flash-decoding on GPU;
  # paged, paged attention on TPU, with dtype=bfloat16 (vespo_jax/models/cached_attention.py)
  config.sampler.attention = "dense"
  # ids of the GPUs that sampler processes see, sampler.tensor for each on this host, like 4,5,6,7;
  # the learner gets others by its own CUDA_VISIBLE_DEVICES. "": all share the learner's
  config.sampler.devices = ""
  config.sampler.tensor = 1  # devices that each sampler spreads the model over, as mesh.tensor does
  # normal noise on each tensor of what trains, in units of its rms; 0: none; evaluations have none
  config.sampler.weight_noise = 0.0

  config.task = ConfigDict()
  # reasoning_gym/DATASET, generated; dataset/NAME, prepared by `python -m vespo_jax.data`; or
  # jsonl:PATH, a file of your own with `prompt` and `answer` in every line
  config.task.name = "reasoning_gym/chain_sum"
  config.task.options = ConfigDict()  # keyword options of the task; set them in the config file
  # several tasks in the place of that one: a section each, LABEL: name, weight and, where they are
  # other than here, options, train_size and test_size (vespo_jax/tasks/mixture.py)
  config.task.mixture = ConfigDict()
  # Distinct prompts. So many are generated, at least 1; of a dataset or a file they are at most so
  # many, so that more than there are is all there are, and 0 is all
  config.task.train_size = 10_000  # to train on
  config.task.test_size = 500  # held out, disjoint from those
  config.task.max_prompt_tokens = 0  # longer prompts' problems are left out; 0: any length
  config.task.seed = 0  # of what is generated, or of what is held out of a file, and of the order
  config.task.data_dir = "runs/data"  # where prepared datasets are kept
  # what scores in the verifier's place, by import path: package.module:function, as
  # vespo_jax/tasks/custom.py says; "": the task's verifier
  config.task.reward = ""
  config.task.grade_timeout_s = 10.0  # seconds the verifier may spend on one answer
  config.task.grade_processes = 1  # grader processes, which share the answers
  config.task.grade_memory_gb = 4.0  # GiB of address space of each
  # the fraction of a minibatch's answers that graders may fail on (timeout, error) unnoticed
  config.task.max_grade_failures = 0.1

  # With a floor below 1, prompts are drawn by their running success rate p, with the weight
  # floor + (1 - floor) 4 p (1 - p) (vespo_jax/tasks/curriculum.py); else every epoch asks all once.
  config.task.curriculum = ConfigDict()
  config.task.curriculum.floor = 1.0  # weight of what is always or never solved; the largest is 1
  config.task.curriculum.decay = 0.5  # of the running rate, per measurement

  # What training pays for beside being correct; held-out accuracy never counts it. The reward is
  # clip(correct + format_weight * formatted + overlong_factor * overlong)
  # (vespo_jax/learner/shaping.py).
  config.reward = ConfigDict()
  config.reward.format = "boxed"  # tag, boxed, last_line or number: where an answer should stand
  config.reward.format_weight = 0.0  # of 1 where one stands there; 0: off
  # tokens before max_length over which DAPO's penalty of long responses falls from 0 to -1; 0: off
  config.reward.overlong_buffer = 0
  config.reward.overlong_factor = 1.0  # of that penalty
  config.reward.max_length = 0  # tokens where it is -1; 0: sampler.max_new_tokens
  config.reward.length_cap = 0  # tokens; longer is neither correct nor formatted; 0: none
  config.reward.low = 0.0  # the sum is clipped to [low, high]; both the same: not clipped
  config.reward.high = 0.0  # likewise

  # The policy: a model directory, or random weights of the sizes below.
  config.policy = ConfigDict()
  config.policy.path = ""  # Hugging Face or run directory, or GGUF file; "": random weights
  config.policy.width = 128  # D, the residual stream
  config.policy.layers = 4  # L
  config.policy.heads = 4  # query heads
  config.policy.kv_heads = 2  # key/value heads
  config.policy.head_width = 32  # H
  config.policy.mlp_width = 384  # F, of the feed-forward layer or of each expert
  config.policy.experts = 0  # E, experts of every layer; 0: a dense model
  config.policy.active_experts = 0  # A, those a token goes to
  config.policy.rope_theta = 10_000.0  # base of the rotary frequencies

  # What the backward pass keeps of each block: none, everything; layers, the outputs of its
  # projections; full, its input alone, so that the forward pass is done twice.
  config.policy.remat = "none"
  # how the learner attends: dense, plain products on any device; cudnn, NVIDIA's fused kernel (with
  # dtype=bfloat16); splash, the Pallas kernel for TPU (vespo_jax/models/fused.py)
  config.policy.attention = "dense"
  # float32 or bfloat16: what the learner computes in, and its devices send each other; parameters,
  # gradients and optimizer stay float32
  config.policy.dtype = "float32"
  # with mesh.sequence, MiB of a micro-batch's keys and values, of one layer, that each device
  # gathers; where they are more, they go round the devices (vespo_jax/models/ring.py)
  config.policy.gathered_mb = 256.0

  config.lora = ConfigDict()
  config.lora.rank = 0  # of low-rank adapters trained in place of the model; 0: the whole model
  config.lora.alpha = 32.0  # the adapters' update is scaled by alpha / rank
  config.lora.targets = "."  # regex found in the names of linear layers: q_proj|v_proj, mlp, ...

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 3e-4  # after the warm-up
  config.optimizer.warmup_updates = 4  # updates over which the rate rises linearly
  config.optimizer.decay = "none"  # after that: none, or cosine, to 0 at the end of the run
  config.optimizer.beta1 = 0.9  # decay of Adam's mean of gradients
  config.optimizer.beta2 = 0.999  # decay of Adam's mean of their squares
  config.optimizer.epsilon = 1e-8  # added to the root of that
  config.optimizer.weight_decay = 0.0  # decoupled, on matrices only
  config.optimizer.max_grad_norm = 1.0  # global norm; 0: no clipping
  # float32 or bfloat16: what Adam's mean of gradients is kept in; that of squares stays float32,
  # for an update changes it by a thousandth, which is less than bfloat16 can tell
  config.optimizer.momentum_dtype = "float32"
  # whether Adam's means are kept in the host's memory between updates; each update reads and writes
  # them over the bus
  config.optimizer.offload = False
  config.optimizer.integrator = "euler"  # heun: 2 gradients per update, rk4: 4 (ODE-GAN)
  config.optimizer.ess_scaling = "none"  # sqrt or linear: VCPO's step size by effective sample size
  config.optimizer.ess_base = 1.0  # the effective sample size, a fraction, that has a full step

  config.evaluation = ConfigDict()
  config.evaluation.every = 0  # updates between evaluations during the run; 0: before and after
  config.evaluation.problems = 200  # held-out prompts; of a dataset with fewer, all
  config.evaluation.samples_per_problem = 4  # responses to each, at temperature 1; k of avg@k

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 100  # updates between checkpoints, when weights are published; 0: none
  config.checkpoint.keep_last = 2  # newest checkpoints kept
  config.checkpoint.keep_every = 0  # and those so many updates apart; 0: none
  config.checkpoint.keep_best = 0  # and those with the largest best_metric; 0: none
  # a key of metrics.jsonl; after a "-" the smallest are kept, as of -held_out/nll
  config.checkpoint.best_metric = "reward/mean"
  config.checkpoint.save_within_s = 300.0  # after SIGTERM or Ctrl-C; then the run ends unsaved

  # Bad updates: a loss, gradient or reward that is not finite, and what is beyond these limits.
  config.guards = ConfigDict()
  config.guards.max_grad_norm = 0.0  # before clipping; 0: no limit
  config.guards.max_log_w = 0.0  # |log W|, policy against behaviour, in nats; 0: no limit
  config.guards.max_skipped = 0  # bad updates in a row that are skipped; the next one ends the run

  config.rollouts = ConfigDict()
  config.rollouts.save_groups = 2  # groups of each minibatch written to rollouts/; -1: all
  config.rollouts.save_tokens = True  # with the text, log ratio and coefficient of every token
  config.rollouts.save_all = False  # every rollout, to rollouts.parquet/, for sampler.source=replay

  config.metrics = ConfigDict()
  config.metrics.tensorboard = False  # whether metrics.jsonl is written to tensorboard/ too

  # Supervised fine-tuning (vespo_jax.sft) of the policy, by the same optimizer. An update is of
  # batch.prompts demonstrations; what objective, advantage, correction, kl, staleness and rollouts
  # say is of reinforcement learning alone.
  config.sft = ConfigDict()
  config.sft.loss = "cross_entropy"  # or dft: each token's loss times its probability, detached
  # JSONL with prompt and response, or with messages in chat format, of which what the assistant
  # says is trained on; "": the solutions of the task
  config.sft.data = ""
  config.sft.held_out_data = ""  # JSONL of its own for the held-out loss; "": taken as follows
  config.sft.held_out = 100  # demonstrations kept from training (a task's: of its test split)
  config.sft.epochs = 0.0  # passes over the data; 0: as many updates as `updates` says
  config.sft.row_tokens = 512  # of the rows that demonstrations are packed into: the longest one

  # Rewriting a task's solutions in the policy's own words (vespo_jax.rewrite), into such a JSONL.
  config.rewrite = ConfigDict()
  config.rewrite.problems = 0  # of the task's training problems, the first so many; 0: all
  config.rewrite.samples = 4  # of each problem, one of which may be correct
  config.rewrite.guided_samples = 4  # of each where none is, with the solution shown
  config.rewrite.guide = (  # how it is shown
    "{question}\n\nThis is a correct solution:\n{solution}\n\n"
    "Solve the problem again, in your own words and without mentioning the solution above."
  )

  # Several processes, one on each host, as one learner (vespo_jax/hosts.py): the same command on
  # each. They share the directories; sampler.processes and grading are divided over them.
  config.distributed = ConfigDict()
  config.distributed.enabled = False  # whether this process is one of several
  # HOST:PORT of process 0; "", and the two that follow, where JAX finds them: Cloud TPU, GKE, SLURM
  config.distributed.coordinator_address = ""
  config.distributed.num_processes = 0  # of the run; 0: found by JAX
  config.distributed.process_id = -1  # of this one, from 0; -1: found by JAX
  config.distributed.initialization_timeout_s = 300  # whole seconds until all have to be there
  config.distributed.heartbeat_timeout_s = 100  # whole seconds of silence that end the run

  # Devices of the learner along each axis; -1: all that are left. Prompts are spread over data,
  # fsdp and expert; parameters over fsdp, over tensor by heads and columns, over expert by experts;
  # the tokens of every prompt and response over sequence (vespo_jax/models/partition.py).
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1, "sequence": 1})
  return config
