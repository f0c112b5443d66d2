"""Run by test_update.py in a process with eight fake devices; prints each layout that agrees."""

import sys

import chex
import example as t
import jax
from jax.sharding import Mesh

from vespo_jax import sharding
from vespo_jax.learner.update import place_state

assert jax.device_count() == 8, "start me with XLA_FLAGS=--xla_force_host_platform_device_count=8"
one = jax.make_mesh(
  (1,) * 5,
  sharding.MESH_AXES,
  devices=jax.devices()[:1],
  axis_types=(jax.sharding.AxisType.Auto,) * 5,
)
assert isinstance(one, Mesh)
expected_state, expected_rows = t.run("vespo", mesh=one, micro_batches=2)

for layout in sys.argv[1:]:
  sizes = {axis: int(size) for axis, size in (part.split("=") for part in layout.split(","))}
  mesh = sharding.make_mesh(sizes)
  placed = place_state(mesh, t.SPEC, t.fresh_state())
  kernel = placed.params["layers"]["query"]
  spread = mesh.shape["fsdp"]
  assert kernel.addressable_shards[0].data.size == kernel.size // spread
  assert placed.opt_state[1][0].mu["layers"]["query"].sharding == kernel.sharding
  rewards = jax.device_put(t.example_batch().rewards_PR, sharding.batch_sharding(mesh))
  assert rewards.addressable_shards[0].data.shape == (2, 4)  # 16 prompts over all eight
  state, rows = t.run("vespo", mesh=mesh, micro_batches=2)
  chex.assert_trees_all_close(state.params, expected_state.params, atol=1e-7, rtol=1e-5)
  chex.assert_trees_all_close(rows, expected_rows, rtol=2e-4, atol=1e-6)
  print(layout)
