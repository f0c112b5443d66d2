"""Run by test_checkpoint.py in a process with eight fake devices: restores there what one device
has saved, saves from eight for one to restore, and looks at what each device holds of a learner."""

import collections
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tests.learner.example import SPEC, fresh_state
from vespo_jax import config as config_lib
from vespo_jax import parts, sharding, training
from vespo_jax.learner.checkpoint import Checkpoints, RunState, abstract_like
from vespo_jax.learner.update import place_state, state_shardings
from vespo_jax.runtime import Snapshot


def mesh_of(devices):
  return jax.make_mesh(
    (1, devices, 1, 1, 1),
    sharding.MESH_AXES,
    devices=jax.devices()[:devices],
    axis_types=(jax.sharding.AxisType.Auto,) * 5,
  )


def checkpointed_state(devices):
  """The same random state on any number of devices."""
  rng, state = np.random.default_rng(0), fresh_state()
  fill = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
  return place_state(mesh_of(devices), SPEC, jax.tree.map(fill, state).replace(step=jnp.int32(5)))


def restored_on(devices, directory):
  mesh, state = mesh_of(devices), fresh_state()
  checkpoints = Checkpoints(directory, SPEC)
  like = abstract_like(state, state_shardings(mesh, SPEC, state))
  restored = checkpoints.restore(like, 99, lambda place, problem: None)
  checkpoints.close()
  return restored.state


def held_of_a_learner(*flags):
  """How much each device holds of a learner's state, in copies of the policy."""
  command = ["train", "--config=configs/debug.py", "--workdir=w", "--config.mesh.data=1"]
  command += ["--config.mesh.fsdp=8", "--config.batch.prompts=16"]
  config, _ = config_lib.parse([*command, *flags])
  mesh = parts.make_mesh(config)
  before = jax.live_arrays()
  spec, params, _ = parts.load_policy(config, mesh)
  learner = training.make_learner(config, mesh, spec, params)
  held = collections.Counter()
  for array in jax.live_arrays():
    if not any(array is other for other in before):
      for shard in array.addressable_shards:
        held[shard.device.id] += shard.data.nbytes / sum(x.nbytes for x in jax.tree.leaves(params))
  assert learner.state.step == 0
  return [held[device.id] for device in jax.devices()]


def main(directory):
  expected, spread = checkpointed_state(8), {}
  for devices in (4, 8):
    state = restored_on(devices, directory / "one")
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    kernel = state.params["layers"]["query"]
    spread[devices] = kernel.size // kernel.addressable_shards[0].data.size
  checkpoints = Checkpoints(directory / "eight", SPEC)
  checkpoints.save(RunState(expected, Snapshot(), {}), 5)
  checkpoints.close()
  random = ("--config.policy.path=", "--config.policy.width=64")
  print(json.dumps([spread, held_of_a_learner(), held_of_a_learner(*random)]))


if __name__ == "__main__":
  main(Path(sys.argv[1]))
