"""Configs: that the shipped ones are accepted, and what becomes of them."""

import importlib
import importlib.metadata
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.learner.test_saved import minibatch
from vespo_jax import config as config_lib
from vespo_jax import config_replay, config_rules, parts, training
from vespo_jax.config import ConfigError
from vespo_jax.learner.gradient import LossSettings
from vespo_jax.learner.integrity import Monitor
from vespo_jax.learner.saved import Origin, RolloutWriter
from vespo_jax.runtime.schedule import Schedule, record

REPOSITORY = Path(__file__).parent.parent
DEBUG = str(REPOSITORY / "configs" / "debug.py")
CONFIGS = sorted(
  path.stem for path in (REPOSITORY / "configs").glob("*.py") if path.stem != "__init__"
)

MIXTURE = 'task.mixture={"a": {"name": "reasoning_gym/gcd", "weight": 1}}'
ASYNC = ["--config.runtime.mode=async", "--config.staleness.minibatches=1"]


def parse(*arguments, config=DEBUG):
  return config_lib.parse(["train", f"--config={config}", "--workdir=w", *arguments])


COMMANDS = {"sft": "sft", "rewrite": "rewrite"}  # of configs that are not of `train`


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_are_accepted_and_documented(name):
  module = importlib.import_module(f"configs.{name}")
  assert module.__doc__ and module.get_config.__doc__
  if name != "base":
    for word in (
      f"python -m vespo_jax.{COMMANDS.get(name, 'train')} ",
      f"configs/{name}.py",
      "eproduces",
      "Hardware",
      "time",
    ):
      assert word in module.__doc__, word
  config = module.get_config()
  installed_first = ("smollm2", "rewrite", "gsm8k", "testbed_moe")  # or made
  if name in installed_first and not Path(config.policy.path).exists():
    config.policy.path = ""
  config_lib.validate(config)


def test_weights_that_are_not_installed_are_one_message(monkeypatch):
  monkeypatch.setattr(importlib.metadata, "files", lambda package: None)
  with pytest.raises(ConfigError, match="policy.path=.*make smollm2.*does not exist"):
    parse(config=str(REPOSITORY / "configs" / "smollm2.py"))


def test_overrides_reach_the_config_whatever_their_order():
  config, workdir = config_lib.parse(
    [
      "train",
      "--config.objective.name=grpo",
      "--workdir=w",
      f"--config={DEBUG}",
      "--config.objective.grpo.clip_high=0.4",
      "--config.updates=7",
    ]
  )
  assert (config.objective.name, config.updates, str(workdir)) == ("grpo", 7, "w")
  assert config_lib.make_objective(config).name == "grpo"
  assert config.objective.grpo.clip_high == 0.4
  with pytest.raises(AttributeError):
    config.updates = 8  # frozen


def test_the_schedule_is_that_of_the_config(tmp_path):
  sync = config_lib.make_schedule(parse()[0])
  assert sync == Schedule.sync(minibatches=2, prompts=4)
  flags = [*ASYNC, "--config.runtime.max_staleness=3", "--config.runtime.sync_every=2"]
  wall = config_lib.make_schedule(parse(*flags)[0])
  assert wall == Schedule(prompts=4, max_staleness=3, publish_every=2)
  flags += ["--config.runtime.clock=logical", "--config.runtime.partial_rollouts=recompute_cache"]
  logical = config_lib.make_schedule(parse(*flags)[0])
  assert logical == Schedule(4, 3, 2, logical=True, in_flight=True)
  record(tmp_path / "schedule.jsonl", 0, ((0, 0),))
  flags = [*ASYNC, f"--config.runtime.clock=replay:{tmp_path}"]
  replayed = config_lib.make_schedule(parse(*flags, "--config.updates=1")[0])
  assert replayed.plan(0, 8) == ((0, 0),)
  with pytest.raises(ConfigError, match="runtime.clock=.* no plan for update 1, and updates=2"):
    parse(*flags, "--config.updates=2")
  record(tmp_path / "schedule.jsonl", 1, ((0, 1),))
  parse(*flags, "--config.updates=2")
  with pytest.raises(ConfigError, match="runtime.clock=.* update 1 was sampled with versions"):
    parse(*flags, "--config.updates=2", "--config.runtime.sync_every=2")


@pytest.mark.parametrize(
  "flags,told",
  [
    (["--config.policy.attention=splash"], "policy.attention='splash' needs a TPU, .* on cpu"),
    (["--config.sampler.attention=flash"], "sampler.attention='flash' needs a GPU, .* on cpu"),
  ],
)
def test_kernels_are_refused_where_devices_lack_them(flags, told):
  with pytest.raises(ConfigError, match=told):
    parts.make_mesh(parse(*flags)[0])


def test_samplers_are_not_judged_by_what_is_left_of_their_draws():
  """Calibration needs all of what was drawn from the whole softmax."""
  for flags, calibrated in (
    ([], True),
    (["--config.batch.dynamic.enabled=true"], False),
    (["--config.sampler.top_p=0.9", "--config.sampler.allow_truncation=true"], False),
  ):
    guard = parts.make_guard(parse(*flags)[0], None, Monitor(), print)
    assert guard._thresholds.calibrated == calibrated


def test_a_recorded_schedule_has_no_place_for_further_rounds(tmp_path):
  record(tmp_path / "schedule.jsonl", 0, ((0, 0),))
  flags = [*ASYNC, f"--config.runtime.clock=replay:{tmp_path}", "--config.updates=1"]
  parse(*flags)
  with pytest.raises(ConfigError, match="batch.dynamic.enabled=True does not go with runtime.clo"):
    parse(*flags, "--config.batch.dynamic.enabled=true")


def test_rollouts_of_other_problems_are_refused_before_anything_is_loaded(tmp_path):
  """Whatever else is replayed: all that is known of them without the model is compared."""
  flags = ["--config.batch.prompts=3", "--config.batch.samples_per_prompt=4", "--config.updates=2"]
  flags += ["--config.batch.micro_batches=1", f"--config.sampler.source=replay:{tmp_path}"]
  with pytest.raises(ConfigError, match="sampler.source=.*lacks 2 of 2 minibatches: that of upda"):
    parse(*flags)
  origin = Origin("of the model", **config_replay.origin(parse(*flags[:4])[0]))
  for update in (1, 2):
    RolloutWriter(tmp_path / parts.SAVED, origin).write(update, minibatch())
  parse(*flags, "--config.objective.name=grpo", "--config.seed=7")
  for flag, told in (
    ("task.seed=1", "its problems is"),
    ("task.train_size=9", "its problems is"),
    ("task.test_size=99", "its problems is"),
    ("task.options.max_word_len=6", "its problems is"),
    ("task.name=reasoning_gym/gcd", "its task is"),
    ("sampler.temperature=0.5", "its temperature is"),
    ("updates=3", "lacks 1 of 3 minibatches: that of update 3 would be in 000003.parquet"),
  ):
    with pytest.raises(ConfigError, match=f"sampler.source='replay:.*{told}"):
      parse(*flags, f"--config.{flag}")
  config_lib.write(parse(*flags[:4])[0], tmp_path / "config.json")
  parse(*flags)
  parse(*flags, "--config.reward.format_weight=0")  # as it was
  for flag in ("reward.length_cap=9", "task.reward=tests.tasks.my_rewards:odd"):
    with pytest.raises(ConfigError, match=f"^{flag.partition('=')[0]}=.* are not graded again"):
      parse(*flags, f"--config.{flag}")
  (tmp_path / parts.SAVED / "000001.parquet").write_bytes(b"PAR1")
  with pytest.raises(ConfigError, match="000001.parquet cannot be trained on"):
    parse(*flags)


def test_what_the_loss_needs_reaches_it():
  config, _ = parse(
    "--config.sampler.temperature=0.7",
    "--config.objective.aggregation=token-sum",
    "--config.batch.micro_batches=4",
    "--config.kl.coefficient=0.2",
    "--config.kl.estimator=k2",
    "--config.kl.placement=reward",
    "--config.entropy.coefficient=0.3",
    "--config.correction.denominator=proximal",
    "--config.proximal_step.divergence=tv",
    "--config.proximal_step.step_size=0.4",
    "--config.moe.balance_coefficient=0.01",
    "--config.moe.z_coefficient=0.001",
    "--config.moe.replay=R2",
    "--config.policy.path=",
    "--config.policy.experts=4",
    "--config.policy.active_experts=2",
  )
  assert training.loss_settings(config) == LossSettings(
    temperature=0.7,
    aggregation="token-sum",
    micro_batches=4,
    proximal_denominator=True,
    kl_coefficient=0.2,
    kl_estimator="k2",
    kl_in_reward=True,
    entropy_coefficient=0.3,
    proximal_divergence="tv",
    proximal_step_size=0.4,
    balance_coefficient=0.01,
    z_coefficient=0.001,
    replay="R2",
  )


@pytest.mark.parametrize(
  "flags,told",
  [
    (["objective.gspo.clip_high=5e-4"], "objective.name='vespo'"),
    (["advantage.vcpo.cap=2"], "advantage.name='grpo'"),
    (["correction.token_tis.cap=3"], "correction.name='none'"),
    (["policy.width=64"], "policy.path=.*, a model that has its own"),
    (["policy.experts=0"], "policy.path=.*, a model that has its own"),
    (["runtime.max_staleness=3"], "runtime.mode='sync'"),
    (["runtime.sync_every=1"], "runtime.mode='sync'"),
    (["lora.alpha=8"], "lora.rank=0"),
    (["lora.targets=mlp"], "lora.rank=0"),
    ([MIXTURE, "task.name=reasoning_gym/gcd"], "a task.mixture, whose tasks have their own"),
    ([MIXTURE, "task.options.digest=1"], "a task.mixture, whose tasks have their own"),
    (["reward.format=tag"], "reward.format_weight=0"),
    (["reward.overlong_factor=2"], "reward.overlong_buffer=0"),
    (["reward.max_length=9"], "reward.overlong_buffer=0"),
    (["task.curriculum.decay=0.9"], "task.curriculum.floor=1"),
    (["batch.dynamic.max_rounds=3"], "batch.dynamic.enabled=False"),
    (["kl.estimator=k1"], "kl.coefficient=0"),
    (["kl.placement=reward"], "kl.coefficient=0"),
    (["proximal_step.step_size=3"], "proximal_step.divergence='none'"),
    (["optimizer.ess_base=0.5"], "optimizer.ess_scaling='none'"),
    (["runtime.pieces.compress=true"], "runtime.weights='whole'"),
    (["runtime.ray.num_cpus=4"], "runtime.transport='local'"),
    (["distributed.num_processes=4"], "distributed.enabled=False"),
  ],
)
def test_a_flag_that_changes_nothing_is_refused(flags, told):
  key = flags[-1].partition("=")[0]
  with pytest.raises(ConfigError, match=f"^--config.{key} has no effect with {told}$"):
    parse(*(f"--config.{flag}" for flag in flags))


@pytest.mark.parametrize(
  "text,value", [("False", False), ("true", True), ("None", None), ("[1]", [1]), ("no", "no")]
)
def test_free_options_are_json_and_pythons_words(text, value):
  assert config_rules.RULES["task.options"].read(text) == value


def test_what_changes_nothing_in_a_file_is_no_matter_and_what_does_is_taken(tmp_path):
  values = parse()[0].to_dict()
  values["objective"]["gspo"]["clip_high"], values["lora"]["alpha"] = 0.5, 8.0
  values["policy"]["width"], values["runtime"]["max_staleness"] = 64, 3
  path = tmp_path / "config.json"
  config_lib.write(ConfigDict(values), path)
  parse("--config.updates=9", "--config.objective.name=grpo", config=str(path))
  for flags in (
    ["objective.name=gspo", "objective.gspo.clip_high=5e-4", "objective.opsm_delta=0.1"],
    ["policy.path=", "policy.width=64"],
    ["runtime.mode=async", "staleness.minibatches=1", "runtime.max_staleness=2"],
    ["lora.rank=4", "lora.alpha=8"],
    ["kl.coefficient=0.1", "kl.estimator=k1", "reward.overlong_buffer=4", "reward.max_length=9"],
    ["batch.dynamic.enabled=true", "batch.dynamic.max_rounds=3"],
    ["distributed.enabled=true", "distributed.num_processes=4"],
    ["task.name=reasoning_gym/chain_sum", "task.options.max_terms=3"],
    [MIXTURE, "task.mixture.a.weight=2"],
  ):
    parse(*(f"--config.{flag}" for flag in flags), config=str(path))
