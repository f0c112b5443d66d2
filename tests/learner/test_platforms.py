"""The update and the decode step are lowered for accelerators, on a machine that has none."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from example import EXPERTS, SPEC, example_batch, fresh_state, plain_update
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AbstractMesh

from tests.marks import slow_but
from vespo_jax import models, sampler
from vespo_jax.learner.update import NO_LIMITS, first_skips, jit_update
from vespo_jax.models.partition import MESH_AXES
from vespo_jax.sampler import decode as device
from vespo_jax.supervised import Encoded, pack


def lowered(function, *arguments, platform):
  """The text of a program for `platform`; lowering refuses what the platform does not have."""
  return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("spec", [SPEC, pytest.param(EXPERTS, marks=pytest.mark.slow)])
def test_an_update_is_lowered(spec, platform):
  state = jax.eval_shape(functools.partial(fresh_state, spec))
  text = lowered(plain_update("vespo", spec=spec), state, example_batch(), platform=platform)
  assert text.count("stablehlo.dot_general") > 20
  kernels = {"tpu": ("tpu_custom_call", "gmm", "tgmm"), "cuda": ("ragged_dot",)}[platform]
  assert all((kernel in text) == bool(spec.experts) for kernel in kernels)


@pytest.mark.parametrize("axis", slow_but(["data", "fsdp", "expert"], "expert"))
def test_experts_of_packed_rows_are_lowered_over_two_devices(axis):
  """XLA divides that program by itself, and it refuses to divide a Pallas kernel."""
  mesh = AbstractMesh(tuple(1 + (name == axis) for name in MESH_AXES), MESH_AXES)
  state = jax.eval_shape(functools.partial(fresh_state, EXPERTS))
  update = jit_update(plain_update("reinforce", spec=EXPERTS), mesh, EXPERTS, state)
  sequences = [
    Encoded(np.arange(3, 3 + n, dtype=np.int32), np.arange(n) > 2) for n in (5, 7, 9, 12)
  ]
  batch = pack(sequences, 16, 2).batch
  traced = update.trace(state, None, batch, first_skips(NO_LIMITS))
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert "ragged_dot" in text and "tpu_custom_call" not in text


@pytest.mark.parametrize("dtype", models.DTYPES)
def test_gradients_of_bfloat16_are_summed_where_the_tpu_s_compiler_leaves_them(dtype):
  """A barrier stands before the sum over micro-batches, without which it fails at the type cast."""
  state = jax.eval_shape(functools.partial(fresh_state, SPEC))
  update = plain_update("vespo", compute=models.Compute(dtype=dtype), micro_batches=2)
  text = lowered(update, state, example_batch(), platform="tpu")
  assert ("optimization_barrier" in text) == (dtype == "bfloat16")


@pytest.mark.parametrize(
  "platform,kernel,target,programs",
  [
    ("tpu", "splash", "tpu_custom_call", ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv")),
    ("cuda", "cudnn", "__cudnn$fmhaSoftmax", ("fmhaSoftmax(", "fmhaSoftmaxBackward(")),
  ],
)
def test_an_update_is_lowered_with_its_kernel(platform, kernel, target, programs, monkeypatch):
  """Forward and backward; cuDNN's version is asked for, and here there is none."""
  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
  spec = dataclasses.replace(SPEC, heads=4, kv_heads=2, head_width=64)
  compute = models.Compute(attention=kernel, dtype="bfloat16")
  state = jax.eval_shape(functools.partial(fresh_state, spec))
  update = plain_update("vespo", spec=spec, compute=compute)
  text = lowered(update, state, example_batch(), platform=platform)
  calls = [line for line in text.splitlines() if f"custom_call @{target}" in line]
  assert all(any(program in call for call in calls) for program in programs)
  assert any("bf16" in line for line in text.splitlines() if "dot_general" in line)
  assert jax.tree.leaves(state.params)[0].dtype == "float32"


@pytest.mark.parametrize(
  "platform,attention,target",
  [
    ("tpu", "dense", "stablehlo.while"),
    ("cuda", "dense", "stablehlo.while"),
    ("tpu", "paged", "custom_call @tpu_custom_call"),
    ("cuda", "flash", "custom_call @__gpu$xla.gpu.triton"),
  ],
)
def test_a_decode_step_is_lowered(platform, attention, target):
  text = lowered_decode(SPEC, platform, attention)
  assert "stablehlo.while" in text and target in text and "all_gather" not in text
  # what is written to the cache are vectors, or a TPU keeps it in an order that no kernel reads
  written = [line for line in text.splitlines() if "stablehlo.scatter" in line]
  assert len(written) == 2 * SPEC.layers
  assert all("update_window_dims = [2], inserted_window_dims = [0, " in line for line in written)


@pytest.mark.parametrize(
  "platform,attention,kernels",
  [("tpu", "paged", ("paged", "gmm")), ("cuda", "flash", ("triton", "ragged_dot"))],
)
def test_a_decode_step_over_two_devices_is_lowered_with_its_kernels(platform, attention, kernels):
  mesh = AbstractMesh((1, 1, 2, 1, 1), MESH_AXES)
  text = lowered_decode(EXPERTS, platform, attention, mesh)
  assert all(kernel in text for kernel in kernels)
  assert "all_gather" in text and "reduce_scatter" in text


def lowered_decode(spec, platform, attention, mesh=None):
  settings = sampler.Settings(max_new_tokens=4)
  spec = dataclasses.replace(spec, heads=4, kv_heads=2, head_width=128)
  params = jax.eval_shape(models.unstack, models.abstract(spec, "bfloat16"))
  of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  rows = device.Rows(
    *(of(np.int32, 2) for _ in range(3)),
    keys_BX=of(np.uint32, 2, 2),
    seeds_B=of(np.uint32, 2),
    live_B=of(bool, 2),
    limits_B=of(np.int32, 2),
    forced_CB=of(np.int32, 4, 2),
  )
  cache = jax.eval_shape(lambda: models.init_cache(spec, 2, 256, "bfloat16", attention))
  step = lambda params, cache, rows: device.decode(
    params, spec, settings.compiled(), cache, rows, np.int32(3), mesh
  )
  return lowered(step, params, cache, rows, platform=platform)
