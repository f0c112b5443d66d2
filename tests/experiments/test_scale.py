"""What a run takes elsewhere: the machine's arithmetic by hand, refused and proposed layouts, and
the paper's configs. The compiled programs themselves are in the slow tests."""

import dataclasses
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs.paper.layouts import LAYOUTS
from experiments.scale import __main__ as command
from experiments.scale import (
  costs,
  examination,
  hardware,
  memory,
  published,
  search,
  workload,
)
from experiments.scale.hardware import GIB, Hardware
from experiments.scale.hlo import Transfer
from vespo_jax import config as config_lib
from vespo_jax import models
from vespo_jax.config import ConfigError
from vespo_jax.sharding import MESH_AXES

REPOSITORY = Path(__file__).parent.parent.parent
PAPER = {
  "llama_3_2_3b": "Llama-3.2-3B-Instruct",
  "qwen3_8b": "Qwen3-8B-Base",
  "qwen3_30b_a3b": "Qwen3-30B-A3B-Base",
  "asynchronous": "Qwen3-30B-A3B-Base",
  "code": "Qwen3-30B-A3B-Base",
}
ONE = dict.fromkeys(MESH_AXES, 1)
SPEC = models.ModelSpec(
  vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_width=8, mlp_width=64
)
WORK = workload.Workload(
  spec=SPEC,
  prompts=8,
  samples=2,
  prompt_width=4,
  width=16,
  micro_batches=2,
  remat="full",
  scored=0,
  state_width=8.0,
  offload=False,
  width_bytes=4,
  compute_bytes=4,
  attention="dense",
  sampler_bytes=2,
  wire_bytes=4,
)


def sizes(**axes):
  return ONE | axes


def test_published_models_have_the_parameters_that_their_publishers_say():
  counts = {name: models.count(spec) / 1e9 for name, spec in published.SPECS.items()}
  expected = {"Llama-3.2-3B-Instruct": 3.21, "Qwen3-8B-Base": 8.19, "Qwen3-30B-A3B-Base": 30.53}
  assert {name: round(count, 2) for name, count in counts.items()} == expected
  blocks, head = workload.matmul_params(published.SPECS["Qwen3-30B-A3B-Base"])
  assert round((blocks + 2 * head) / 1e9, 2) == 3.35  # A3B: with embedding and head


@pytest.mark.parametrize("model", PAPER.values())
def test_a_published_description_is_read_back_whole(model):
  with published.described(f"models/{model}") as path:
    assert (
      models.ModelSpec.from_hf_config(json.loads((Path(path) / "config.json").read_text()))
      == published.SPECS[model]
    )
  with published.described("models/other") as path:
    assert path == "models/other"


@pytest.mark.parametrize("name", PAPER)
def test_paper_configs_are_accepted_and_documented(name):
  module = importlib.import_module(f"configs.paper.{name}")
  for word in (
    f"python -m vespo_jax.train --config=configs/paper/{name}.py",
    "Reproduces",
    "Hardware",
    "Wall time, predicted and not measured",
    "Expected",
    "python -m experiments.scale",
  ):
    assert word in module.__doc__.replace("\n--config", " --config"), word
  config = module.get_config()
  assert Path(config.policy.path).name == PAPER[name]
  with published.described(config.policy.path) as config.policy.path:
    for staleness in (1,) if name == "asynchronous" else (4, 8, 16, 32, 64):
      config.staleness.minibatches = staleness
      config_lib.validate(config)
  assert (config.batch.prompts, config.batch.samples_per_prompt) == (256, 8)
  assert config.sampler.max_new_tokens == 15_360 and config.updates == 1500


@pytest.mark.parametrize(
  "model,machine", [(model, machine) for model in LAYOUTS for machine in LAYOUTS[model]]
)
def test_the_layouts_of_the_paper_s_configs_are_predicted_to_fit(model, machine):
  name = next(name for name in PAPER if PAPER[name] == model)
  path = str(REPOSITORY / "configs" / "paper" / f"{name}.py")
  subject = examination.read(path, Hardware.parse(machine), [], 1024)
  layout = search.examine(subject.work, subject.asked, subject.hardware)
  assert search.fits(layout.memory, subject.hardware)


def test_hardware_is_named_by_kind_and_devices():
  assert str(Hardware.parse("v5p:64")) == "v5p:64"
  topologies = {n: Hardware("v5p", n).topology for n in (4, 8, 16, 64, 128, 1024)}
  assert topologies == {
    4: "v5p:2x2x1",
    8: "v5p:2x2x2",
    16: "v5p:2x2x4",
    64: "v5p:4x4x4",
    128: "v5p:4x4x8",
    1024: "v5p:8x8x16",
  }
  assert Hardware("v6e", 8).topology == "v6e:2x4" and Hardware("h100", 8).topology is None
  for text, words in (
    ("v5p", "KIND:DEVICES"),
    ("v9:8", "unknown hardware 'v9'"),
    ("v5p:12", "power of two"),
    ("h100:12", "whole nodes of 8"),
  ):
    with pytest.raises(ValueError, match=words):
      Hardware.parse(text)


def test_a_ring_over_nodes_has_a_card_for_each_of_its_devices_in_a_node():
  gpus = Hardware("h100", 32)
  assert gpus.bandwidth(range(8)) == 450e9  # NVLink
  assert gpus.bandwidth((0, 8, 16, 24)) == 50e9  # one card each
  assert gpus.bandwidth((0, 1, 8, 9)) == 100e9
  assert gpus.bandwidth(range(32)) == 400e9
  assert Hardware("v5p", 64).bandwidth(range(0, 64, 8)) == 200e9  # of a slice, all are near
  seconds = costs.network_s([Transfer("all-gather", (0, 8), 3, 100e9)], gpus)
  assert seconds == 2.0


def test_the_costs_of_a_small_update_are_those_worked_by_hand():
  assert WORK.tokens == 8 * (4 + 2 * 16) == 288
  assert WORK.pairs == 8 * (10 + 2 * (136 + 64)) == 3280
  block = 32 * 8 * (2 * 4 + 2 * 2) + 3 * 32 * 64
  assert workload.matmul_params(SPEC) == (2 * block, 64 * 32)
  dense, attention = workload.forward_flops(WORK)
  assert dense == 2 * (2 * block * 288 + 64 * 32 * 256)
  assert attention == 4 * 2 * 4 * 8 * 3280
  assert workload.model_flops(WORK) == 3 * (dense + attention)
  assert workload.executed_flops(WORK) == 4 * dense + 2 * 4 * attention  # blocks twice, all pairs
  fused = dataclasses.replace(WORK, attention="splash", compute_bytes=2)
  assert workload.executed_flops(fused) == 4 * dense + 4.5 * attention
  chip = Hardware("h100", 1).chip
  time = costs.update_time(WORK, ONE, Hardware("h100", 1), [Transfer("all-gather", (0, 1), 1, 9e9)])
  np.testing.assert_allclose(time.compute_s, (4 * dense + 8 * attention) / (chip.flops / 2))
  assert time.network_s == 9e9 / 450e9 == time.low_s
  assert time.high_s == time.network_s + max(time.compute_s, time.memory_s)
  np.testing.assert_allclose(time.mfu, workload.model_flops(WORK) / 0.02 / chip.flops, rtol=1e-6)
  slow = costs.Sampling(tensor=2, rows=4, weights=0, cache=0, step_s=1.0, tokens_per_s=2.0)
  learner = dataclasses.replace(time, network_s=8.0, scoring_s=2.0)
  # 16 responses of 10 tokens in 10 s are 16 tokens/s: 8 devices beside 4
  assert costs.balance(WORK, learner, 4, slow, 10.0) == 2.0


def test_the_memory_of_a_layout_is_what_its_shards_hold():
  count = models.count(SPEC)
  alone = memory.update_memory(WORK, ONE)
  assert alone.params == 4 * count and alone.optimizer == 8 * count and alone.grads == 8 * count
  assert alone.kept == 4 * 2 * (144 * 32)  # the input of each block, of half the tokens
  fused = dataclasses.replace(WORK, attention="splash", compute_bytes=2)
  narrow = memory.update_memory(fused, ONE)
  assert narrow.attention == 0 and alone.attention == 4 * 4 * (4 * 2) * 4 * 20 * 16
  assert narrow.kept == alone.kept / 2 and narrow.params == alone.params
  spread = memory.update_memory(WORK, sizes(fsdp=2, tensor=2))
  assert spread.kept == alone.kept / 4
  norms = 5 * 32 + 4 * 8
  of_kernels = (count - norms) / 4
  assert of_kernels < spread.params / 4 < of_kernels + norms
  weights, row = memory.sampler_memory(WORK, 2)
  assert row == 2 * 2 * 2 * 1 * 8 * 20  # bytes x (keys, values) x layers x heads x H x slots
  assert 2 * count / 2 < weights < 2 * (count / 2 + norms)


def test_an_optimizer_in_host_memory_takes_room_after_the_backward_pass_and_time_of_the_bus():
  machine = Hardware("h100", 8)
  here = search.examine(WORK, sizes(fsdp=4, tensor=2), machine)
  there = search.examine(dataclasses.replace(WORK, offload=True), sizes(fsdp=4, tensor=2), machine)
  memory_ = there.memory
  at_the_end = memory_.grads + memory_.optimizer
  assert memory_.temporary > at_the_end > 0
  assert there.memory.total == here.memory.total - memory_.optimizer
  small = dataclasses.replace(memory_, kept=0.0, block=0.0, attention=0.0, head=0.0)
  assert small.total == memory_.params + memory_.anchors + at_the_end
  assert here.time.host_s == 0 and there.time.host_s == 2 * memory_.optimizer / 64e9
  assert there.time.high_s == here.time.high_s + there.time.host_s
  unknown = dataclasses.replace(WORK, offload=True)
  assert search.examine(unknown, sizes(fsdp=4, tensor=2), Hardware("v5p", 8)).time.host_s == 0


def test_tokens_are_gathered_by_few_devices_of_experts_and_sent_to_many():
  experts = dataclasses.replace(SPEC, experts=16, active_experts=2)
  work = dataclasses.replace(WORK, spec=experts, micro_batches=1)
  rows = {}
  # gradients of what all devices of experts have: everything but experts and router
  own = sum(math.prod(info.shape) for info in jax.tree.leaves(models.describe(experts)))
  alike = 4 * (own - 2 * 16 * (3 * 32 * experts.mlp_width + 32))
  for e in (2, 8):
    moved = costs.expected_transfers(work, sizes(expert=e))
    by_kind = {transfer.kind: transfer.bytes for transfer in moved}
    tokens = work.local_tokens(sizes(expert=e))
    again = 3 * 2  # forward, again and backward, in each of two layers
    if e == 2:  # float32 sums come back
      assert by_kind == {
        "all-gather": again * 4 * tokens * 32,
        "reduce-scatter": again * 4 * tokens * 32,
        "all-reduce": alike * 2 * 1 / 2,
      }
    else:
      assert by_kind == {
        "all-to-all": 2 * again * 7 / 8 * 1.25 * 4 * tokens * 2 * 32,
        "all-reduce": alike * 2 * 7 / 8,
      }
    rows[e] = memory.update_memory(work, sizes(expert=e)).block / tokens
  assert rows[8] < rows[2]  # of a token, though four times as many devices see each other's


def test_what_does_not_divide_is_refused_by_name():
  machine = Hardware("h100", 8)
  for axes, words in (
    ({"fsdp": 8}, "8 prompts in 2 micro-batches do not divide over .* fsdp 8"),
    ({"tensor": 8}, "'kv_heads' axis of 2 does not divide over the 8"),
    ({"expert": 2, "sequence": 4}, "dense model has no experts"),
  ):
    with pytest.raises(search.BadLayout, match=words):
      search.examine(WORK, sizes(**axes), machine)
  fused = dataclasses.replace(WORK, attention="cudnn", prompts=16)
  with pytest.raises(search.BadLayout, match="'cudnn' attention sees whole sequences"):
    search.examine(fused, sizes(fsdp=4, sequence=2), machine)


@pytest.mark.parametrize(
  "machine,kernel,decode", [("h200:32", "cudnn", "flash"), ("v5p:64", "splash", "paged")]
)
def test_attention_is_that_of_the_hardware_unless_asked_for(machine, kernel, decode):
  path = str(REPOSITORY / "configs/paper/qwen3_8b.py")
  read = lambda *flags: examination.read(path, Hardware.parse(machine), flags, 1024)
  config = read().config
  assert (config.policy.attention, config.sampler.attention) == (kernel, decode)
  assert read("--config.policy.attention=dense").config.policy.attention == "dense"


@pytest.fixture
def small_machine(monkeypatch):
  """Eight devices of 300 kB."""
  chip = dataclasses.replace(hardware.CHIPS["h100"], memory_bytes=300e3)
  monkeypatch.setitem(hardware.CHIPS, "h100", chip)
  return Hardware("h100", 8)


def test_a_layout_that_fits_is_proposed_where_the_one_asked_for_does_not(small_machine):
  asked = search.examine(WORK, sizes(data=4, sequence=2), small_machine)
  assert not search.fits(asked.memory, small_machine)
  found = search.propose(WORK, small_machine)
  assert search.fits(found.memory, small_machine)
  assert np.prod(list(found.sizes.values())) == 8
  again = search.examine(
    dataclasses.replace(WORK, micro_batches=found.micro_batches), found.sizes, small_machine
  )
  assert again == found
  assert f"--config.batch.micro_batches={found.micro_batches}" in found.flags
  hopeless = Hardware("h100", 1)
  assert search.propose(WORK, hopeless) is None
  assert search.nearest(WORK, hopeless).memory.total > 0.92 * 300e3


def test_the_command_refuses_a_layout_and_proposes_one(capsys, monkeypatch):
  monkeypatch.setitem(
    hardware.CHIPS, "h100", dataclasses.replace(hardware.CHIPS["h100"], memory_bytes=80e6)
  )
  here = ["--config", str(REPOSITORY / "configs/debug.py"), "--hardware=h100:8", "--compiler=none"]
  wide = ["--config.policy.width=512", "--config.policy.mlp_width=1024"]
  mesh = [f"--config.mesh.{axis}={8 if axis == 'data' else 1}" for axis in MESH_AXES]
  assert command.main([*here, *wide, *mesh, "--config.batch.prompts=32"]) == 1
  said = capsys.readouterr().out
  assert "data 8, 2 micro-batches" in said and "Predicted to fit" in said
  assert "--config.mesh.fsdp=" in said.split("Predicted to fit")[1]
  assert command.main([*here, *wide, "--config.batch.prompts=32"]) == 0  # it takes the best itself
  odd = [*mesh, "--config.batch.prompts=30"]  # 8 devices do not divide 30 prompts
  assert command.main([*here, *odd]) == 2
  assert "batch.prompts=30 in batch.micro_batches" in capsys.readouterr().err


def test_bad_usage_is_one_message(capsys):
  config = str(REPOSITORY / "configs/debug.py")
  assert command.main([f"--config={config}", "--compiler=none"]) == 2
  assert "--hardware=KIND:DEVICES is needed" in capsys.readouterr().err
  assert command.main([f"--config={config}", "--hardware=h100:8", "--compiler=tpu"]) == 2
  assert "needs a TPU --hardware, not h100:8" in capsys.readouterr().err
  with pytest.raises(ConfigError, match="is of 4 devices, and h100:8 has 8"):
    flags = [f"--config.mesh.{axis}={4 if axis == 'tensor' else 1}" for axis in MESH_AXES]
    examination.read(config, Hardware("h100", 8), flags, 64)


def run(*arguments, timeout=900):
  done = subprocess.run(
    [sys.executable, "-m", "experiments.scale", *arguments],
    env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=timeout,
  )
  assert done.returncode in (0, 1), done.stderr[-3000:]
  return done


@pytest.mark.slow
def test_the_model_s_collectives_are_those_of_the_compiled_update(tmp_path):
  """A dense model, whose every large collective the model has: within a tenth."""
  rows = tmp_path / "rows.jsonl"
  mesh = sizes(fsdp=4, sequence=2)  # 259 rows of a vocabulary do not divide over tensor
  run(
    *("--config=configs/debug.py", "--hardware=h100:8", f"--json={rows}", "--prompt_width=64"),
    *("--config.policy.layers=12", "--config.policy.remat=full", "--config.policy.width=256"),
    *("--config.batch.prompts=8", "--config.sampler.max_new_tokens=64"),
    *(f"--config.mesh.{axis}={size}" for axis, size in mesh.items()),
  )
  row = json.loads(rows.read_text())
  large = {name: size for name, size in row["expected"].items() if size >= 1e6}
  assert len(large) == 4
  for name, expected in large.items():
    np.testing.assert_allclose(row["collectives"][name], expected, rtol=0.1, err_msg=name)
  assert row["memory"]["params"] + row["memory"]["optimizer"] < row["arguments"]


@pytest.mark.slow
def test_the_largest_paper_config_compiles_in_three_minutes(tmp_path):
  rows = tmp_path / "rows.jsonl"
  run("--config=configs/paper/qwen3_30b_a3b.py", f"--json={rows}")
  row = json.loads(rows.read_text())
  assert row["compile_cpu_s"] < 180  # of all threads: other tests may run beside it
  assert row["fits"] and row["memory"]["total"] < 141e9 < 8 * 30.5e9
  assert FrozenConfigDict(row["layout"]).fsdp == 32
  assert row["arguments"] / GIB < 11
