"""Random bad configs. Each that is refused ends in exit code 2 and one message that names the key;
what is accepted can be built and written down. Case i is the same in every run."""

import contextlib
import dataclasses
import io
import random
import string
from pathlib import Path

import numpy as np
import pytest

from configs import debug
from vespo_jax import command, config_policy, launch, parts, train, training
from vespo_jax import config as config_lib
from vespo_jax.config_file import flatten
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.update import StepSettings
from vespo_jax.objectives import check_correction
from vespo_jax.runtime import FailureSettings, RaySettings
from vespo_jax.sampler import WorkerSettings
from vespo_jax.tokenizers import byte_tokenizer

CONFIG = Path(__file__).parent.parent / "configs" / "debug.py"
DEFAULTS = flatten(debug.get_config())
FROM_SCRATCH = ["--config.policy.path="]
ASYNC = ["--config.runtime.mode=async", "--config.staleness.minibatches=1"]


@dataclasses.dataclass
class Case:
  """A command line, the keys of which its message must name one, and what must become of it: True
  if it is accepted, False if it is refused, None if either may happen."""

  argv: list[str]
  keys: list[str]
  accepted: bool | None = None


# What a value of each type is not, as Python that a config file may hold.
NOT_A = {
  int: [
    "1.5",
    "None",
    "True",
    "'3'",
    "[3]",
    "{'a': 1}",
    "{}",
    "10**30",
    "-(10**400)",
    "b'3'",
    "1j",
  ],
  float: [
    "None",
    "False",
    "'0.5'",
    "(0.5,)",
    "{'a': 1}",
    "float('nan')",
    "-float('inf')",
    "10**39",
  ],
  bool: ["1", "0.0", "'True'", "None", "[]", "{'a': True}"],
  str: ["3", "None", "True", "['a']", "{'a': 'b'}", "b'x'", "object()", "lambda: 'x'"],
  tuple: ["'a'", "3", "None", "('a', 3)", "('',)", "{'a': 'b'}"],
  dict: ["3", "'a'", "None", "[1]", "{'a': object()}", "{'a': float('nan')}", "{1: 2}"],
}
NUMBERS = """
  -1 0 1 2 3 7 64 1000000 2147483647 2147483648 9223372036854775808 -9223372036854775809 0.0 -0.0
  0.5 1.0 1.5 -0.5 1e-3 1e-30 1e-39 1e-320 3.4e38 1e39 -1e39 1e400 nan inf -inf 0x1 1_000 1e3
""".split()
VALID = """
  objective.name=gspo objective.name=grpo advantage.name=rloo seed=4294967295
  optimizer.learning_rate=1 optimizer.beta1=0 optimizer.max_grad_norm=0 sampler.temperature=0.7
  sampler.stop_strings=["x"] batch.samples_per_prompt=2 batch.micro_batches=1 task.seed=3
  staleness.minibatches=16 updates=1 kl.coefficient=0.1&kl.placement=reward lora.rank=2
  correction.denominator=proximal runtime.transport=threads sampler.processes=4 mesh.data=1
  batch.dynamic.enabled=true&batch.dynamic.max_rounds=3 task.curriculum.floor=0.5
  evaluation.problems=50 task.options.answer_format=tag rollouts.save_groups=-1
""".split()
CONTRADICTIONS = [
  ["runtime.mode=async", "staleness.minibatches=2"],
  ["sampler.top_p=0.9"],
  ["sampler.top_k=5", "objective.name=gspo"],
  ["batch.prompts=4", "batch.micro_batches=3"],
  ["batch.micro_batches=8"],
  ["moe.replay=R3"],
  ["policy.path=", "moe.replay=R2"],
  ["policy.path=", "moe.balance_coefficient=0.1"],
  ["policy.path=", "policy.heads=3", "policy.kv_heads=2"],
  ["policy.path=", "policy.experts=2", "policy.active_experts=3"],
  ["policy.path=", "policy.experts=2"],
  ["correction.name=token_tis"],
  ["correction.name=token_tis", "correction.denominator=proximal"],
  ["correction.denominator=decoupled"],
  ["objective.name=minirl", "correction.name=icepop", "correction.denominator=decoupled"],
  ["objective.name=dppo_tv", "objective.dppo_tv.divergence=topk"],
  ["objective.bapo.high_start=3"],
  ["correction.icepop.low=6"],
  ["batch.samples_per_prompt=1"],
  ["evaluation.problems=51"],
  ["sampler.processes=5"],
  ["batch.dynamic.oversampling=3"],
  ["batch.dynamic.enabled=true", "sampler.source=replay:tests"],
  ["task.curriculum.floor=0.1", "sampler.source=replay:tests"],
  ['task.mixture={"a": {"name": "reasoning_gym/chain_sum"}}'],
  ['task.mixture={"a": {"name": "reasoning_gym/chain_sum", "weight": -1}}'],
  ["runtime.clock=logical"],
  ["runtime.partial_rollouts=keep_cache"],
  ["mesh.data=-1", "mesh.tensor=-1"],
  ["mesh.data=4"],
  ["lora.rank=1", "lora.targets=no_such_layer"],
  ["task.name=reasoning_gym/chain_sum", "task.options.no_such_option=1"],
  ["task.name=reasoning_gym/chain_sum", "task.options.min_terms=9", "task.options.max_terms=2"],
]


def flags(settings):
  return [f"--config.{setting}" for setting in settings]


def some(rng, settings):
  """Up to three valid settings of different keys, some of which bring another."""
  drawn = rng.sample(settings, rng.randrange(4))
  chosen = {setting.partition("=")[0]: setting for setting in drawn}
  return flags(part for setting in chosen.values() for part in setting.split("&"))


def garbage(rng):
  alphabet = rng.choice([string.printable, "01.-+eE", "[]{}(),'\"", "\0\x1b\udcff\u2028é漢", "../"])
  return "".join(rng.choices(alphabet, k=rng.choice([0, 1, 2, 5, 20, 5000])))


def in_file(path, key, value):
  """The flag of a config file that gives `key` a value, as Python, whatever was there."""
  section, _, name = key.rpartition(".")
  where = "".join(f"[{part!r}]" for part in section.split(".") if part)
  path.write_text(
    "from configs import debug\nfrom ml_collections import ConfigDict\ndef get_config():\n"
    f"  config = debug.get_config().to_dict()\n  config{where}[{name!r}] = {value}\n"
    "  return ConfigDict(config)\n"
  )
  return f"--config={path}"


def wrong_type(rng, path):
  key = rng.choice(list(DEFAULTS))
  return Case([in_file(path, key, rng.choice(NOT_A[type(DEFAULTS[key])]))], [key], False)


def any_number(rng, path):
  key = rng.choice([key for key, value in DEFAULTS.items() if isinstance(value, int | float)])
  start = rng.choice([[], FROM_SCRATCH, ASYNC])
  kind, *inside = key.split(".")
  if len(inside) == 2 and kind in ("objective", "advantage"):  # an option of a method that is used
    start = [*start, f"--config.{kind}.name={inside[0]}"]
  return Case([f"--config={CONFIG}", *start, f"--config.{key}={rng.choice(NUMBERS)}"], [key])


def any_text(rng, path):
  key = rng.choice(list(DEFAULTS))
  text = rng.choice([garbage(rng), f"replay:{garbage(rng)}", f"reasoning_gym/{garbage(rng)}"])
  return Case([f"--config={CONFIG}", f"--config.{key}={text}"], [key])


def unknown_key(rng, path):
  section, _, name = rng.choice(list(DEFAULTS)).rpartition(".")
  letters, at = list(name), rng.randrange(len(name))
  letters[at : at + rng.randrange(2)] = rng.choices(string.ascii_lowercase, k=rng.randrange(1, 3))
  key = f"{section}.{''.join(letters)}".removeprefix(".")
  if key in DEFAULTS:
    return unknown_key(rng, path)
  if rng.random() < 0.5:
    return Case([in_file(path, key, "1")], [key], False)
  return Case([*some(rng, VALID), f"--config.{key}=1", f"--config={CONFIG}"], [key], False)


def contradiction(rng, path):
  settings = rng.choice(CONTRADICTIONS)
  keys = [setting.partition("=")[0] for setting in settings]
  harmless = ["--config.seed=3", "--config.updates=4", "--config.kl.estimator=k1"]
  argv = [*flags(settings), *rng.sample(harmless, rng.randrange(3)), f"--config={CONFIG}"]
  rng.shuffle(argv)
  return Case(argv, keys, False)


def bad_argument(rng, path):
  """Something that is no flag; a file that is no config; a directory that is none."""
  text = garbage(rng)
  bad = rng.choice([text, f"--{text}", f"-config.updates={text}", f"--flagfile={text}"])
  if rng.random() < 0.5:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    suffix = rng.choice([".py", ".json", ""])
    return Case([f"--config={path.rename(path.with_suffix(suffix))}"], ["--config="], False)
  return Case([f"--config={CONFIG}", bad], ["argument", "no value", "give one"], False)


def valid(rng, path):
  return Case([f"--config={CONFIG}", *some(rng, VALID)], [], True)


KINDS = [
  wrong_type,
  wrong_type,
  any_number,
  any_number,
  any_text,
  unknown_key,
  contradiction,
  bad_argument,
  valid,
]


def build(config, path):
  """Makes of a config whatever can be made of it without running anything."""
  rng = np.random.default_rng(0)
  log_ratio_BT = rng.normal(size=(4, 3)).astype(np.float32)
  mask_BT = np.arange(3) < np.array([3, 3, 2, 1])[:, None]
  advantages_B = np.array([1.0, -1.0, 0.5, -0.5], np.float32)
  logprobs = {f"{policy}_logprobs": log_ratio_BT - 3 for policy in ("policy", "behaviour")}
  objective, correction = config_lib.make_objective(config), config_lib.make_correction(config)
  check_correction(objective, correction, config.correction.denominator != "behaviour")
  coefficients_BT, _ = objective(log_ratio_BT, advantages_B, mask_BT, logprobs)
  assert np.isfinite(coefficients_BT).all()
  weights, _ = correction(log_ratio_BT, mask_BT)
  assert np.isfinite(weights.weights).all()
  extras = {name: np.ones((2, 2), np.float32) for name in ("lengths", "log_w", "log_score")}
  rewards_PR = np.array([[1.0, 0.0], [1.0, 1.0]], np.float32)
  advantages_PR, *_ = config_lib.make_advantage(config)(rewards_PR, rewards_PR >= 0, extras)
  assert np.isfinite(advantages_PR).all()
  schedule = config_lib.make_schedule(config)
  assert schedule.may_order(0, 0) and schedule.versions_kept >= 2
  assert config_policy.make_lora(config, config_policy.make_spec(config)) or not config.lora.rank
  assert parts.sampler_settings(config, byte_tokenizer()).stop_strings is not None
  make_optimizer(parts.pick(OptimizerSettings, config.optimizer)).init({"layers": {}})
  parts.pick(StepSettings, config.optimizer)
  training.loss_settings(config)
  RaySettings(**config.runtime.ray.to_dict())
  WorkerSettings(dtype=config.sampler.dtype, weight_noise=config.sampler.weight_noise)
  FailureSettings(config.runtime.max_failures, config.runtime.hang_timeout_s)
  config_lib.write(config, path)
  assert config_lib.read(path) == config


@pytest.mark.parametrize("cases", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_random_config_is_refused_in_one_message_or_can_be_built(cases, monkeypatch, tmp_path):
  def accept(config, workdir, stop):
    build(config, tmp_path / "written.json")
    return {"stop_reason": "accepted", "updates": 0}

  monkeypatch.setattr(launch, "train", accept)
  monkeypatch.setattr(command, "_stop_on_signals", lambda seconds: lambda: False)
  monkeypatch.setattr(command, "_joined", lambda config, stop: contextlib.nullcontext({}))
  monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.5")
  refused = 0
  for i in range(cases):
    rng = random.Random(i)
    case = rng.choice(KINDS)(rng, tmp_path / f"case{i}.py")
    argv = ["train", f"--workdir={tmp_path / 'run'}", *case.argv]
    output, errors = io.StringIO(), io.StringIO()
    try:
      with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = train.main(argv)
    except BaseException as error:
      raise AssertionError(f"case {i}: {argv}") from error
    said = errors.getvalue()
    about = f"case {i}: {argv}: {code} {said!r}"
    if code == 2:
      refused += 1
      assert case.accepted is not True, about
      assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith("\n"), about
      assert "Traceback" not in said and not output.getvalue(), about
      # a message about several keys of a section may name the others by their last part
      names = [name for key in case.keys for name in (key, f"{key.rpartition('.')[2]}=")]
      assert any(name in said for name in names), about
    else:
      assert code == 75 and case.accepted is not False and not said, about
  assert cases / 2 < refused < cases
