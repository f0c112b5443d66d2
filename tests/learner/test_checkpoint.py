"""Which checkpoints there are, and which one a run goes on from."""

import jax.numpy as jnp

from vespo_jax.learner.checkpoint import Checkpoints
from vespo_jax.types import TrainState


def state(step):
  return TrainState(step=jnp.int32(step), params={"w": jnp.full(3, float(step))}, opt_state=())


def test_the_newest_are_kept_and_the_newest_that_fits_is_restored(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  assert checkpoints.restore(state(0), at_most=9) is None
  for step in (2, 4, 6):
    checkpoints.save(state(step), {"seen": [str(step)]}, step)
  checkpoints.save(state(7), {}, 6)  # what is there is not written again
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "6"}
  for at_most, step in ((9, 6), (6, 6), (5, 4)):
    restored, monitor = checkpoints.restore(state(0), at_most)
    assert monitor == {"seen": [str(step)]}
    assert restored.step == step and (restored.params["w"] == step).all()
  assert checkpoints.restore(state(0), at_most=3) is None
  checkpoints.close()
