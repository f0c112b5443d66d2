"""What compiled programs cost, by count: operations, bytes, copies, compilations. Nothing is timed.

The bounds are what the programs cost when they were written, with a tenth to spare; the useful
operations are counted by hand in `experiments.benchmarks.workload`.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import workload as workloads
from experiments.benchmarks.workload import Workload
from vespo_jax import models, sampler
from vespo_jax.models import attention
from vespo_jax.sampler import decode as device

SPEC = dataclasses.replace(workloads.TINY, layers=2)


@pytest.fixture(autouse=True)
def two_layers(monkeypatch):
  monkeypatch.setattr(workloads, "TINY", SPEC)


@functools.cache
def update_cost(**sizes):
  """The compiled update of a workload of one micro-batch, so that no loop hides operations."""
  work = Workload(**{"prompts": 2, "samples": 4, "micro_batches": 1, **sizes})
  state, update = work.make_update()
  return work, jax.jit(update).lower(state, work.make_batch()).compile()


def temporary_bytes(compiled):
  return compiled.memory_analysis().temp_size_in_bytes


def test_an_update_computes_what_is_useful_and_little_more():
  """Attention computes whole squares where half is useful, the head its logits once more."""
  work, compiled = update_cost(prompt_tokens=32, new_tokens=64)
  assert work.update_flops < compiled.cost_analysis()["flops"] < 1.1 * work.update_flops


def test_an_update_keeps_no_more_than_a_few_arrays_of_each_layer():
  work, compiled = update_cost(prompt_tokens=32, new_tokens=64)
  tokens = work.computed_tokens
  activations = 4 * tokens * SPEC.layers * (12 * SPEC.width + 6 * SPEC.mlp_width)
  gradients = 4 * models.count(SPEC)
  assert temporary_bytes(compiled) < activations + gradients


def test_every_gradient_of_a_kernel_is_a_fast_product():
  """On a CPU, XLA's fast products are not of a left matrix whose columns are contracted with rows;
  of the head's gradient, which is not worth a second copy of its logits, there is one such."""
  _, compiled = update_cost(prompt_tokens=32, new_tokens=64)
  slow = r" = f32\[(\d+,\d+)\]\S* dot\(.*lhs_contracting_dims=\{0\}"
  assert re.findall(slow, compiled.as_text()) == [f"{SPEC.vocab_size},{SPEC.width}"]


@pytest.mark.slow
def test_the_memory_of_a_long_row_grows_with_its_length(monkeypatch):
  monkeypatch.setattr(attention, "QUERY_BLOCK", 128)
  one = dict(prompts=1, samples=2, prompt_tokens=16)
  compiled = {T: update_cost(**one, new_tokens=T)[1] for T in (512, 1024)}
  assert temporary_bytes(compiled[1024]) < 2.2 * temporary_bytes(compiled[512])
  masks = re.findall(r" = pred\[([0-9,]+)\]", compiled[1024].as_text())
  largest = max(math.prod(map(int, shape.split(","))) for shape in masks)
  assert largest <= 2 * SPEC.heads * 128 * 1024  # of one piece, and not of all of them


def test_a_decode_step_copies_no_cache_and_no_kernel():
  """Beyond the loop's carry there is no array of a cache's or a kernel's size."""
  params = jax.eval_shape(lambda: models.unstack(models.init(SPEC, jax.random.key(0))))
  slots, width, steps = 64, 96, 8
  cache = jax.eval_shape(lambda: models.init_cache(SPEC, slots, width))
  int_B = jax.ShapeDtypeStruct((slots,), jnp.int32)
  rows = device.Rows(
    tokens_B=int_B,
    lengths_B=int_B,
    counts_B=int_B,
    keys_BX=jax.ShapeDtypeStruct((slots, 2), jnp.uint32),
    seeds_B=jax.ShapeDtypeStruct((slots,), jnp.uint32),
    live_B=jax.ShapeDtypeStruct((slots,), bool),
    limits_B=int_B,
    forced_CB=jax.ShapeDtypeStruct((steps, slots), jnp.int32),
  )
  settings = sampler.Settings(max_new_tokens=steps).compiled()
  enough = jax.ShapeDtypeStruct((), jnp.int32)
  compiled = device.decode.lower(params, SPEC, settings, cache, rows, enough).compile()
  layer = cache.keys[0].size * 4
  assert temporary_bytes(compiled) < layer / 2
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes >= 2 * SPEC.layers * layer  # the cache is where it was


def test_a_second_step_compiles_nothing(caplog):
  work = Workload(prompts=2, samples=2, prompt_tokens=8, new_tokens=4, micro_batches=1)
  state, update = work.make_update()

  def step(state, seed):
    sampler.generate(state.params, SPEC, work.make_prompts(), jax.random.key(seed), work.settings)
    return update(state, work.make_batch())[0]

  state = step(step(state, 0), 1)
  with jax.log_compiles(), caplog.at_level("WARNING"):
    step(state, 2)
  assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
