"""What a config is refused for, and with which words."""

import jax
import pytest

from tests.test_config import ASYNC, parse
from vespo_jax import models
from vespo_jax.config import ConfigError
from vespo_jax.tokenizers import byte_tokenizer


@pytest.mark.parametrize(
  "arguments,words",
  [
    (["--config.objective.name=nonsense"], ["objective.name='nonsense'", "vespo", "grpo"]),
    (["--config.objective.name=vesp"], ["did you mean 'vespo'"]),
    (["--config.advantage.name=gae"], ["advantage.name='gae'", "grpo"]),
    (
      ["--config.optimiser.learning_rate=1"],
      ["optimiser.learning_rate", "optimizer.learning_rate"],
    ),
    (["--config.learning_rate=1"], ["'learning_rate'", "did you mean optimizer.learning_rate?"]),
    (["--config.zzz=1"], ["'zzz'", "configs/base.py"]),
    (["--config.batch=4"], ["batch is a section", "batch.prompts"]),
    (["--config.optimizer.lr=1"], ["'optimizer.lr'", "did you mean optimizer.learning_rate?"]),
    (["--config.sampler.max_tokens=1"], ["did you mean sampler.max_new_tokens?"]),
    (["--config.objective.clip_high=5"], ["did you mean objective.METHOD.clip_high, METHOD being"]),
    (["--config.updates.x=4"], ["'updates.x'", "did you mean updates?"]),
    (["--config.=4"], ["unknown config key ''"]),
    (["--config.updates"], ["'--config.updates' has no value"]),
    (["--config.updates=abc"], ["updates='abc'", "an integer"]),
    (["--config.updates=1.5"], ["updates='1.5'", "an integer"]),
    (["--config.updates=True"], ["updates='True'", "an integer"]),
    (["--config.updates=0"], ["updates=0", "at least 1"]),
    ([f"--config.updates={2**31}"], ["updates=2147483648", "below 2**31"]),
    ([f"--config.seed={2**32}"], ["seed=4294967296", "from 0 to 2**32 - 1"]),
    (["--config.optimizer.learning_rate=nan"], ["optimizer.learning_rate", "finite"]),
    (["--config.optimizer.learning_rate=1e39"], ["learning_rate=1e+39", "finite float32"]),
    (["--config.optimizer.beta2=0.999999999"], ["beta2=0.999999999", "below 1"]),
    (["--config.optimizer.epsilon=1e-46"], ["optimizer.epsilon=1e-46", "above 0"]),
    (["--config.sampler.allow_truncation=maybe"], ["allow_truncation='maybe'", "True or False"]),
    (['--config.sampler.stop_strings=["a", ""]'], ["sampler.stop_strings=['a', '']", "a list of"]),
    (["--config.sampler.stop_strings=a"], ["sampler.stop_strings='a'", "a list of texts"]),
    (["--config.runtime.ray.resources.tpu=many"], ["ray.resources={'tpu': 'many'}", "amounts"]),
    (["--config.task.options=3"], ["task.options=3", "options by name"]),
    (["--config.task.options.min_terms=3"], ["task.options={", "'min_terms'"]),
    (["--config.task.data_dir="], ["task.data_dir=''", "a directory"]),
    (["--config.task.reward=math:no"], ["task.reward='math:no'", "math has no function 'no'"]),
    (["--config.task.reward=no_such:f"], ["task.reward=", "no_such cannot be imported"]),
    (["--config.task.reward=math:pow"], ["task.reward=", "pow(response, answer, metadata)"]),
    (["--config.task.reward=mine.py:f"], ["task.reward='mine.py:f'", "import path", "not a file"]),
    (["--config.task.reward=pow"], ["task.reward='pow'", "package.module:function"]),
    (["--config.task.grade_processes=0"], ["task.grade_processes=0", "at least 1"]),
    (["--config.task.grade_memory_gb=0"], ["task.grade_memory_gb=0", "above 0"]),
    (["--config.task.max_grade_failures=2"], ["task.max_grade_failures=2", "at most 1"]),
    (["--config.reward.format=xml"], ["reward.format='xml'", "'boxed'"]),
    (["--config.reward.low=2"], ["reward.low=2.0", "at most reward.high=0.0"]),
    (
      ["--config.reward.overlong_buffer=13"],
      ["reward.overlong_buffer=13", "sampler.max_new_tokens=12"],
    ),
    (
      ["--config.reward.overlong_buffer=9", "--config.reward.max_length=8"],
      ["reward.overlong_buffer=9", "reward.max_length=8"],
    ),
    (["--config.runtime.timeout_s=1e9"], ["runtime.timeout_s=1000000000.0", "at most 1e6"]),
    (["--config.objective.grpo.clip_low=-1"], ["objective.grpo.clip_low=-1.0", "at least 0"]),
    (["--config.objective.dapo.dual_clip=0.5"], ["dual_clip=0.5", "above 1, or 0"]),
    (["--config.objective.vespo.k_pos=1e9"], ["vespo.k_pos=1000000000.0", "at most 1000"]),
    (
      ["--config.objective.bapo.low_start=0.9"],
      ["objective.bapo.low_start=0.9", "at most objective.bapo.low_end=0.8"],
    ),
    (["--config.objective.bapo.step=1e-9"], ["objective.bapo.step=1e-09", "at most 100 steps"]),
    (
      ["--config.correction.icepop.low=9"],
      ["correction.icepop.low=9.0", "at most correction.icepop.high=5.0"],
    ),
    (["--config.mesh.data=0"], ["mesh.data=0", "-1"]),
    (
      ["--config.mesh.sequence=2", "--config.policy.attention=splash"],
      ["policy.attention='splash'", "mesh.sequence=2"],
    ),
    (["--config.policy.attention=cudnn"], ["needs policy.dtype='bfloat16'"]),
    (
      ["--config.policy.attention=cudnn", "--config.policy.dtype=bfloat16", "--config.policy.path="]
      + ["--config.policy.head_width=20"],
      ["heads of a multiple of 8", "20"],
    ),
    (
      ["--config.sampler.devices=4,5", "--config.runtime.transport=threads"],
      ["sampler.devices='4,5' needs runtime.transport='local'"],
    ),
    (["--config.sampler.devices=4;5"], ["sampler.devices='4;5' must be ids like 4,5,6,7"]),
    (["--config.sampler.tensor=3"], ["sampler.tensor=3 must be one of 1, 2, 4, 8, 16"]),
    (["--config.sampler.tensor=2"], ["sampler.tensor=2", "'vocab' axis of 259 does not divide"]),
    (
      ["--config.sampler.tensor=4", "--config.sampler.slots=6"],
      ["sampler.slots=6 do not divide over sampler.tensor=4"],
    ),
    (
      ["--config.runtime.weights=pieces", "--config.runtime.pieces.dtype=bfloat16"],
      ["runtime.pieces.dtype='bfloat16' needs sampler.dtype='bfloat16', and it is 'float32'"],
    ),
    (
      [
        "--config.runtime.weights=pieces",
        "--config.runtime.pieces.dtype=bfloat16",
        "--config.sampler.dtype=bfloat16",
        "--config.correction.denominator=proximal",
      ],
      ["needs correction.denominator='behaviour', and it is 'proximal'"],
    ),
    (
      [
        "--config.runtime.weights=pieces",
        "--config.runtime.pieces.dtype=bfloat16",
        "--config.sampler.dtype=bfloat16",
        "--config.proximal_step.divergence=kl",
      ],
      ["needs proximal_step.divergence='none', and it is 'kl'"],
    ),
    (
      [
        "--config.runtime.weights=pieces",
        "--config.runtime.pieces.dtype=bfloat16",
        "--config.sampler.dtype=bfloat16",
        "--config.policy.path=",
        "--config.policy.experts=4",
        "--config.policy.active_experts=2",
        "--config.moe.replay=R2",
      ],
      ["needs moe.replay='off' or 'R3', and it is 'R2'"],
    ),
    (["--config.sampler.attention=paged"], ["needs sampler.dtype='bfloat16', not 'float32'"]),
    (["--config.mesh.fsdp=-1"], ["mesh.data and mesh.fsdp are -1"]),
    (["--config.mesh.data=3"], ["batch.prompts=4 in batch.micro_batches=2", "mesh.data=3"]),
    (["--config.sampler.source=replay:nowhere"], ["source='replay:nowhere'", "no such run"]),
    (["--config.policy.path=README.md"], ["policy.path='README.md'", "GGUF"]),
    (["--config.policy.path=tests"], ["policy.path='tests'", "config.json"]),
    (["--config.moe.replay=R3"], ["moe.replay='R3'", "dense"]),
    (["--config.lora.rank=4", "--config.lora.targets=x_proj"], ["lora.targets='x_proj'", "q_proj"]),
    (["--config.lora.targets=("], ["lora.targets='('", "a regular expression"]),
    (["--config.sampler.temperature=0"], ["sampler.temperature=0", "above 0"]),
    (["--config.sampler.dtype=float16"], ["sampler.dtype='float16'", "'bfloat16'"]),
    (["--config.runtime.mode=later"], ["runtime.mode='later'", "'async'"]),
    (["--config.runtime.mode=async"], ["'async'", "staleness.minibatches=2", "max_staleness"]),
    ([*ASYNC, "--config.runtime.sync_every=3"], ["max_staleness=1", "sync_every - 1 = 2"]),
    ([*ASYNC, "--config.runtime.clock=lamport"], ["clock='lamport'", "'logical'", "replay:RUN"]),
    ([*ASYNC, "--config.runtime.clock=replay:nowhere"], ["clock='replay:nowhere'", "schedule"]),
    ([*ASYNC, "--config.runtime.partial_rollouts=on"], ["partial_rollouts='on'", "'keep_cache'"]),
    (["--config.runtime.clock=logical"], ["runtime.clock='logical'", "runtime.mode='async'"]),
    (["--config.runtime.partial_rollouts=keep_cache"], ["'keep_cache'", "runtime.mode='async'"]),
    (["--config.sampler.top_p=0.9"], ["sampler.top_p=0.9", "sampler.allow_truncation"]),
    (["--config.sampler.top_p=1.5"], ["sampler.top_p=1.5", "at most 1"]),
    (["--config.sampler.processes=5"], ["sampler.processes=5", "batch.prompts=4"]),
    (["--config.runtime.profile_updates=-1"], ["runtime.profile_updates=-1", "at least 0"]),
    (["--config.sampler.source=disk"], ["sampler.source='disk'", "'process'", "replay:RUN"]),
    (["--config.runtime.transport=tcp"], ["runtime.transport='tcp'", "'local'"]),
    (["--config.objective.aggregation=mean"], ["objective.aggregation='mean'", "token-mean"]),
    (
      ["--config.objective.name=topr", "--config.objective.topr.level=row"],
      ["level='row'", "token"],
    ),
    (["--config.objective.opsm_delta=-1"], ["objective.opsm_delta=-1", "at least 0"]),
    (
      ["--config.objective.name=dppo_kl", "--config.objective.dppo_kl.divergence=topk"],
      ["objective.dppo_kl.divergence", "'binary'"],
    ),
    (["--config.correction.name=tis"], ["correction.name='tis'", "token_tis"]),
    (["--config.correction.denominator=old"], ["correction.denominator='old'", "'proximal'"]),
    (
      ["--config.correction.name=token_tis"],
      ["correction.name='token_tis'", "'vespo'", "count it twice"],
    ),
    (
      ["--config.correction.name=token_tis", "--config.correction.denominator=proximal"],
      ["correction.name='token_tis'", "'decoupled'"],
    ),
    (["--config.correction.denominator=decoupled"], ["'decoupled'", "needs a correction.name"]),
    (
      [
        "--config.objective.name=minirl",
        "--config.correction.name=token_tis",
        "--config.correction.denominator=decoupled",
      ],
      ["correction.name='token_tis'", "'minirl'", "itself"],
    ),
    (
      ["--config.correction.name=custom", "--config.correction.custom.reject=k9:1"],
      ["correction.custom.reject='k9:1'", "seq_mean_k1"],
    ),
    (["--config.kl.estimator=k4"], ["kl.estimator='k4'", "'low_var'"]),
    (["--config.kl.placement=both"], ["kl.placement='both'", "'reward'"]),
    (["--config.proximal_step.divergence=w2"], ["proximal_step.divergence='w2'", "'tv'"]),
    (["--config.optimizer.integrator=rk5"], ["optimizer.integrator='rk5'", "'heun'"]),
    (["--config.optimizer.ess_scaling=log"], ["optimizer.ess_scaling='log'", "'sqrt'"]),
    (["--config.batch.micro_batches=3"], ["batch.micro_batches=3", "batch.prompts=4"]),
    (["--config.batch.samples_per_prompt=1"], ["batch.samples_per_prompt=1", "at least 2"]),
    (["--config.evaluation.problems=999"], ["evaluation.problems=999", "task.test_size=50"]),
    (["--config.batch.dynamic.max_rounds=0"], ["batch.dynamic.max_rounds=0", "at least 1"]),
    (
      ["--config.batch.dynamic.oversampling=2"],
      ["batch.dynamic.oversampling=2.0", "batch.dynamic.enabled=True"],
    ),
    (
      ["--config.batch.dynamic.enabled=1", "--config.sampler.source=replay:tests"],
      ["batch.dynamic.enabled=True", "sampler.source='replay:tests'"],
    ),
    (
      [
        "--config.batch.dynamic.enabled=1",
        "--config.batch.samples_per_prompt=1",
        "--config.advantage.name=reinforce_plus_plus",
      ],
      ["batch.dynamic.enabled=True", "batch.samples_per_prompt=1"],
    ),
    (
      [
        *ASYNC,
        "--config.batch.dynamic.enabled=1",
        "--config.runtime.clock=logical",
        "--config.runtime.partial_rollouts=keep_cache",
      ],
      ["batch.dynamic.enabled=True", "clock='logical'", "'keep_cache'", "wall clock"],
    ),
    (["--config.task.curriculum.floor=0"], ["task.curriculum.floor=0", "above 0 and at most 1"]),
    (["--config.task.curriculum.decay=1"], ["task.curriculum.decay=1", "below 1"]),
    (
      ["--config.task.curriculum.floor=0.5", "--config.sampler.source=replay:tests"],
      ["task.curriculum.floor=0.5", "sampler.source='replay:tests'"],
    ),
    (["--config.task.mixture=sums"], ["task.mixture='sums'", "tasks by label"]),
    (['--config.task.mixture={"a": 3}'], ["task.mixture: a must have name and weight"]),
    (["--config.task.mixture.a=3"], ["task.mixture: a must have name and weight"]),
    (['--config.task.mixture={"a.b": {}}'], ["dots in field names", "a.b"]),
    (
      [
        '--config.task.mixture={"a": {"name": "reasoning_gym/gcd"}}',
        "--config.task.mixture.a.weight=0",
      ],
      ["task.mixture: a.weight=0 must be a number"],
    ),
    (
      ["--config.task.options.answer_format.x=2"],
      ["task.options.answer_format.x: answer_format is a value, not a section"],
    ),
    (["--config.task.options.__class__=1"], ["__class__"]),
    (["--config.task.options.name=x"], ["options {'name': 'x'} are not accepted"]),
    (
      [
        "--config.task.name=jsonl:x",
        "--config.task.options.verifier=exact",
        "--config.task.options.name=x",
      ],
      ["has no option 'name'"],
    ),
    (
      [
        "--config.task.name=jsonl:x",
        "--config.task.options.verifier=numeric",
        "--config.task.options.tolerance=abc",
      ],
      ["tolerance='abc' must be a number"],
    ),
    (
      ["--config.task.name=jsonl:x", "--config.task.options.ignore_case=no"],
      ["ignore_case='no' must be True or False"],
    ),
    (
      ['--config.task.mixture={"a": {"name": "reasoning_gym/chain_sun", "weight": 1}}'],
      ["task.mixture.a.name='reasoning_gym/chain_sun'", "did you mean 'chain_sum'"],
    ),
    (
      [
        '--config.task.mixture={"a": {"name": "reasoning_gym/chain_sum", "weight": 3},'
        ' "b": {"name": "reasoning_gym/chain_sum", "weight": 1, "test_size": 4}}'
      ],
      ["evaluation.problems=20 takes 5 of task.mixture.b", "task.mixture.b.test_size=4"],
    ),
    (["--config.policy.path=/nowhere"], ["policy.path='/nowhere'"]),
    (["--config.policy.path=", "--config.policy.kv_heads=3"], ["policy.heads=4", "kv_heads=3"]),
    (["--config.moe.replay=R1"], ["moe.replay='R1'", "'R3'"]),
    (["--config.policy.path=", "--config.moe.replay=R2"], ["moe.replay='R2'", "dense"]),
    (
      ["--config.policy.path=", "--config.moe.z_coefficient=0.1"],
      ["moe.z_coefficient=0.1", "dense"],
    ),
    (
      ["--config.policy.path=", "--config.policy.experts=4"],
      ["policy.active_experts=0", "policy.experts=4"],
    ),
    (
      ["--config.policy.path=", "--config.policy.active_experts=2"],
      ["policy.active_experts=2", "policy.experts=0"],
    ),
    (["--config.task.name=gsm8k"], ["task.name='gsm8k'", "did you mean dataset/gsm8k"]),
    (["--config.task.name=reasoning_gym/chain_sun"], ["task.name", "did you mean 'chain_sum'"]),
    (["--config.task.options.answer_format=xml"], ["answer_format='xml'", "boxed"]),
    (["--unknown=1"], ["'--unknown=1'", "--workdir=DIR"]),
    (["--flagfile=README.md"], ["'--flagfile=README.md'"]),
    (["--help"], ["--config=FILE, --workdir=DIR and --config.KEY=VALUE"]),
    (["stray"], ["stray"]),
    (["--workdir=v"], ["give one --workdir"]),
  ],
)
def test_bad_values_are_refused_by_name(arguments, words):
  with pytest.raises(ConfigError) as caught:
    parse(*arguments)
  for word in words:
    assert word in str(caught.value), (word, str(caught.value))


def test_responses_beyond_the_models_positions_are_refused(tmp_path):
  spec = models.ModelSpec(259, 16, 1, 2, 1, 8, 24, context=16)
  models.save(tmp_path, spec, models.init(spec, jax.random.key(0)), byte_tokenizer())
  arguments = [f"--config.policy.path={tmp_path}", "--config.sampler.max_new_tokens"]
  parse(arguments[0], f"{arguments[1]}=15")
  with pytest.raises(ConfigError, match="max_new_tokens=16 does not fit the policy's 16 positions"):
    parse(arguments[0], f"{arguments[1]}=16")
  prompts = "--config.task.max_prompt_tokens"
  parse(arguments[0], f"{arguments[1]}=10", f"{prompts}=6")
  with pytest.raises(ConfigError, match="max_prompt_tokens=7 and sampler.max_new_tokens=10 do not"):
    parse(arguments[0], f"{arguments[1]}=10", f"{prompts}=7")
