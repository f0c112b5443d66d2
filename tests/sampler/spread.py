"""Run by test_placement.py, with what to compare and a directory, on four fake devices."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from tests.sampler.toy import KEY, PROMPTS, settings, weights
from vespo_jax import models, runtime, sampler, sharding
from vespo_jax.sampler import placement
from vespo_jax.sampler.weights import prepare
from vespo_jax.weights.wire import Wire

DENSE = models.ModelSpec(
  vocab_size=16, width=16, layers=2, heads=8, kv_heads=4, head_width=8, mlp_width=24
)
EXPERTS = dataclasses.replace(DENSE, experts=4, active_experts=2)
assert jax.device_count() == 4, "start me with XLA_FLAGS=--xla_force_host_platform_device_count=4"


def engine_of(spec, tensor, dtype, how):
  mesh = placement.make_mesh(tensor)
  made = sampler.Engine(spec, how, slots=8, longest_prompt=16, steps=5, mesh=mesh)
  placed = sharding.place(weights(0, spec), placement.param_shardings(mesh, spec))
  made.adopt(3, prepare(placed, 3, dtype, 0.0))
  return made


def finished(made):
  while made.busy:
    made.advance()


def compare_engines(spec, dtype, widths):
  how = settings(expert_ids=bool(spec.experts), topk_logprobs=2)
  sampled = {}
  for tensor in (1, *widths):
    made = engine_of(spec, tensor, dtype, how)
    sequences = made.submit(KEY, PROMPTS, range(len(PROMPTS)))
    finished(made)
    sampled[tensor] = [sequence.rollout() for sequence in sequences]
    part = made._caches[0].keys[0].addressable_shards[0].data
    assert part.shape[1] == spec.kv_heads // tensor, "the cache is spread by heads"
    kernel = made._params["layers"][0]["query"]
    columns = (kernel if dtype == "float32" else kernel.values).addressable_shards[0].data.shape[1]
    assert columns == spec.heads * spec.head_width // tensor, "kernels are spread by columns"
  for tensor in widths:
    for one, other in zip(sampled[1], sampled[tensor], strict=True):
      np.testing.assert_array_equal(one.response_ids, other.response_ids)
      for field in ("behaviour_logprobs", "plain_logprobs", "topk_logprobs"):
        np.testing.assert_allclose(
          getattr(one, field), getattr(other, field), rtol=2e-5, atol=2e-5, err_msg=field
        )
      if spec.experts:
        np.testing.assert_array_equal(one.expert_ids, other.expert_ids)
  made = engine_of(spec, 4, dtype, how)  # what it sampled, scored by as many devices
  replayed = made.replay(sampled[4])
  finished(made)
  for one, other in zip(sampled[4], replayed, strict=True):
    np.testing.assert_array_equal(one.behaviour_logprobs, other.rollout().behaviour_logprobs)


def compare_workers(directory):
  """Whole workers, of weights that a learner of another layout publishes in pieces."""
  order = sampler.Order(0, 0, 7, 0, PROMPTS, range(len(PROMPTS)), settings())
  made = {}
  for tensor in (1, 4):
    shape = [2 if axis in ("fsdp", "tensor") else 1 for axis in sharding.MESH_AXES]
    learner = sharding.param_shardings(jax.make_mesh(shape, sharding.MESH_AXES), DENSE)
    place = runtime.Place(f"{directory}/{tensor}", Wire())
    pieces = runtime.PublishedPieces(place, DENSE, learner)
    how = sampler.WorkerSettings(slots=6, tensor=tensor)  # 8, so that four devices divide them
    workers = runtime.start_sampler("threads", DENSE, how, pieces=pieces)
    workers.publish(0, weights(0, DENSE))
    workers.put(order)
    made[tensor] = workers.get(200).rollouts
    workers.close()
  for one, other in zip(made[1], made[4], strict=True):
    np.testing.assert_array_equal(one.response_ids, other.response_ids)
    np.testing.assert_allclose(one.behaviour_logprobs, other.behaviour_logprobs, atol=2e-5)


def refuse():
  with pytest.raises(ValueError, match="over 16 devices, and its process has 4"):
    placement.make_mesh(16)
  with pytest.raises(ValueError, match="6 slots do not divide over 4 devices"):
    sampler.Engine(
      DENSE, settings(), slots=6, longest_prompt=16, steps=5, mesh=placement.make_mesh(4)
    )
  with pytest.raises(ValueError, match="key.*'kv_heads' axis of 2 does not divide"):
    placement.param_shardings(placement.make_mesh(4), dataclasses.replace(DENSE, kv_heads=2))


what, directory = sys.argv[1:]
if what == "dense":
  compare_engines(DENSE, "float32", (2, 4))
  refuse()
elif what == "experts":
  compare_engines(EXPERTS, "int8", (4,))
else:
  compare_workers(directory)
