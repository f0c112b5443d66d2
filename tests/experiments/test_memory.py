"""The memory table: what each policy keeps, counted by hand, and one row of it."""

import json
import sys

import jax
import numpy as np
import pytest

from configs.quickstart import WARM_START
from experiments import memory
from vespo_jax import models
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.update import init_state
from vespo_jax.models import lora
from vespo_jax.models.lora import LoraSettings

SPEC = models.ModelSpec(
  vocab_size=50, width=32, layers=3, heads=4, kv_heads=2, head_width=8, mlp_width=48
)
PARAMS = models.init(SPEC, jax.random.key(0))
BATCH = memory.random_batch(SPEC, prompts=2, samples=3, prompt=8, response=4)
TOKENS = 2 * (8 + 3 * 4)


def kept(remat, params=PARAMS, frozen=None, adapters=None):
  state = init_state(params, make_optimizer(OptimizerSettings(1e-3)), frozen=frozen)
  return memory.kept_activations(SPEC, state, BATCH, adapters, remat)


def test_the_backward_pass_keeps_what_each_policy_says():
  bytes_per_layer = 4 * TOKENS * SPEC.layers
  inputs = bytes_per_layer * 32
  assert inputs < kept("full") < inputs + 4 * TOKENS * 100  # and the head's own, once
  # query, key and value, the attention's output, gate and up; nothing needs what `down` puts out
  assert kept("layers") - kept("full") == bytes_per_layer * (32 + 2 * 16 + 32 + 2 * 48)
  assert kept("none") > 2 * kept("layers")


def test_a_frozen_model_is_not_counted():
  settings = LoraSettings(2, 4.0)
  adapters = lora.init(SPEC, jax.random.key(1), settings)
  got = kept("full", adapters, PARAMS, settings)
  assert got <= kept("full") < memory.size(PARAMS)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.slow
def test_a_row_of_the_table(capsys):
  sizes = ["--prompts=2", "--samples=2", "--prompt_width=16", "--response_width=4"]
  assert memory.main(["", f"--model={WARM_START}", "--only=full", *sizes]) == 0
  row = json.loads(capsys.readouterr().out)
  _, params, _ = models.load(WARM_START)
  assert row["gradients"] == memory.size(params)
  np.testing.assert_allclose(row["state"], 3 * memory.size(params), atol=100)  # and two counters
  assert row["state"] + row["gradients"] < row["minimum"] < row["compiled"]
  assert row["measured"] > row["state"] and row["seconds"] > 0
