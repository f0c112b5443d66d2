"""The update and the decode step are lowered for accelerators, on a machine that has none."""

import functools

import jax
import numpy as np
import pytest
from example import EXPERTS, SPEC, example_batch, fresh_state, plain_update

from vespo_jax import models, sampler
from vespo_jax.sampler import decode as device


def lowered(function, *arguments, platform):
  """The text of a program for `platform`; lowering refuses what the platform does not have."""
  return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("spec", [SPEC, pytest.param(EXPERTS, marks=pytest.mark.slow)])
def test_an_update_is_lowered(spec, platform):
  state = jax.eval_shape(functools.partial(fresh_state, spec))
  text = lowered(plain_update("vespo", spec=spec), state, example_batch(), platform=platform)
  assert text.count("stablehlo.dot_general") > 20
  assert ("ragged_dot" in text) == bool(spec.experts)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_decode_step_is_lowered(platform):
  settings = sampler.Settings(max_new_tokens=4)
  params = models.unstack(models.init(SPEC, jax.random.key(0)))
  zeros = lambda dtype, *shape: np.zeros(shape, dtype)
  rows = device.Rows(
    *(zeros(np.int32, 2) for _ in range(3)),
    keys_BX=zeros(np.uint32, 2, 2),
    seeds_B=zeros(np.uint32, 2),
    live_B=np.ones(2, bool),
    limits_B=np.full(2, 4, np.int32),
    forced_CB=np.full((4, 2), -1, np.int32),
  )
  cache = models.init_cache(SPEC, 2, 16)
  step = lambda params, cache, rows: device.decode(
    params, SPEC, settings.compiled(), cache, rows, np.int32(3)
  )
  assert "stablehlo.while" in lowered(step, params, cache, rows, platform=platform)
