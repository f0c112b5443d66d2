"""Run by test_update.py in a process with eight fake devices; prints each layout that agrees."""

import math
import re
import sys

import chex
import example as t
import jax
import numpy as np
from jax.sharding import Mesh

from vespo_jax import models, sharding
from vespo_jax.learner.micro_batches import cut, live_first, reorder
from vespo_jax.learner.update import place_state
from vespo_jax.models import partition

assert jax.device_count() == 8, "start me with XLA_FLAGS=--xla_force_host_platform_device_count=8"
one = jax.make_mesh(
  (1,) * 5,
  sharding.MESH_AXES,
  devices=jax.devices()[:1],
  axis_types=(jax.sharding.AxisType.Auto,) * 5,
)
assert isinstance(one, Mesh)
SETTINGS = {  # what losses and metrics a layout is compared in, beside the gradient's own
  "data": {"micro_batches": 2},
  "expert": {"spec": t.EXPERTS, "balance_coefficient": 0.1, "z_coefficient": 0.1},
  "tensor": {"compute": models.Compute(remat="full")},
}


COLLECTIVES = {  # of the forward pass alone: what shows that an axis is really spread over
  "fsdp": "all_gather",
  "tensor": "reduce_scatter",
  "expert": "reduce_scatter",
  "sequence": "collective_permute",
}


def collectives(mesh, spec):
  """The program of the log-probs of a batch, as it is spread over the mesh."""

  def logprobs(params, batch):
    with partition.over(mesh):
      return models.group_logprobs(params, spec, batch)

  return jax.jit(logprobs).lower(models.abstract(spec), t.example_batch()).as_text()


def assert_prompts_stay_where_they_are(mesh):
  """Ordering a minibatch sends nothing, and has each device's dead groups in the last piece."""
  place = sharding.batch_sharding(mesh)
  advantages = np.zeros((16, 4), np.float32)
  advantages[::2] = 1.0

  def first_piece(advantages, x):
    with partition.over(mesh):
      return cut(reorder(x, live_first(advantages, 2)), 2)[0]

  compiled = (
    jax.jit(first_piece, in_shardings=(place, place)).lower(advantages, advantages).compile()
  )
  assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", compiled.as_text())
  assert np.all(compiled(*jax.device_put((advantages, advantages), place)))


def settings_of(sizes):
  return next((SETTINGS[axis] for axis in ("expert", "tensor") if axis in sizes), SETTINGS["data"])


for layout in sys.argv[1:]:
  axes, _, ring = layout.partition("+")  # with +ring, keys and values are not gathered
  sizes = {axis: int(size) for axis, size in (part.split("=") for part in axes.split(","))}
  settings = {"compute": models.Compute(gathered_mb=0.0)} if ring else settings_of(sizes)
  spec = settings.get("spec", t.SPEC)
  expected_state, expected_rows = t.run("vespo", mesh=one, **settings)
  mesh = sharding.make_mesh(sizes)
  placed = place_state(mesh, spec, t.fresh_state(spec))
  kernel = placed.params["layers"]["query"]
  parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
  assert kernel.addressable_shards[0].data.size == kernel.size // parts
  if spec.experts:
    experts = placed.params["layers"]["expert_up"]
    assert experts.addressable_shards[0].data.size == experts.size // (parts * mesh.shape["expert"])
  text = collectives(mesh, spec)
  sent = {"expert": "all_to_all"} if sizes.get("expert", 1) > spec.active_experts else {}
  for axis, name in {**COLLECTIVES, **sent}.items():
    assert axis not in sizes or f"stablehlo.{name}" in text, (axis, name)
  assert placed.opt_state[1][0].mu["layers"]["query"].sharding == kernel.sharding
  rewards = jax.device_put(t.example_batch().rewards_PR, sharding.batch_sharding(mesh))
  prompts = 16 // math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
  assert rewards.addressable_shards[0].data.shape == (prompts, 4)
  if prompts > 1:  # of a device
    assert_prompts_stay_where_they_are(mesh)
  state, rows = t.run("vespo", mesh=mesh, **settings)
  chex.assert_trees_all_close(state.params, expected_state.params, atol=1e-7, rtol=1e-5)
  chex.assert_trees_all_close(rows, expected_rows, rtol=2e-4, atol=1e-6)
  print(layout)
