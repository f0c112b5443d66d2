"""The policies that a loss is measured against: what is held of them, and what scores with it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example import SPEC, example_batch, fresh_state

from vespo_jax import advantages, objectives, sharding
from vespo_jax.learner.anchors import Anchors
from vespo_jax.learner.gradient import LossSettings, make_gradient
from vespo_jax.learner.update import compile_score, compile_score_adapters
from vespo_jax.models import Compute, lora
from vespo_jax.models.lora import LoraSettings

PARAMS = fresh_state().params


def test_the_proximal_policy_is_a_copy_and_held_once(monkeypatch):
  anchors = Anchors(None, reference=None, needs_proximal=True)
  held, copy = [], jnp.copy
  monkeypatch.setattr(jnp, "copy", lambda leaf: held.append(anchors.proximal) or copy(leaf))
  for _ in range(2):
    anchors.start_rollout_batch(PARAMS)
  assert held == [None] * (2 * len(jax.tree.leaves(PARAMS)))
  for mine, its in zip(jax.tree.leaves(anchors.proximal), jax.tree.leaves(PARAMS), strict=True):
    np.testing.assert_array_equal(mine, its)
    assert mine.unsafe_buffer_pointer() != its.unsafe_buffer_pointer()
  assert anchors.adapters is None


def test_nothing_is_kept_where_nothing_is_needed():
  anchors = Anchors(None, reference=None, needs_proximal=False)
  anchors.start_rollout_batch(PARAMS)
  assert anchors.proximal is None


def test_adapters_in_bfloat16_are_scored_as_the_update_has_them():
  """Merged, they are rounded with what they adapt, and no ratio of a first minibatch is 1."""
  settings = LoraSettings(4, 8.0, ".")
  adapters = lora.init(SPEC, jax.random.key(1), settings)
  adapters = jax.tree.map(
    lambda x: x + 0.02 * jax.random.normal(jax.random.key(2), x.shape), adapters
  )
  loss = LossSettings(compute=Compute(dtype="bfloat16"))
  mesh = sharding.make_mesh({}, jax.local_devices()[:1])
  batch = example_batch(prompts=4)
  score_adapters = compile_score_adapters(mesh, SPEC, loss, PARAMS, settings)
  anchors = Anchors(
    compile_score(mesh, SPEC, loss),
    reference=None,
    needs_proximal=True,
    score_adapters=score_adapters,
  )
  anchors.start_rollout_batch(adapters)
  assert anchors.adapters is anchors.proximal
  proximal = anchors.complete(batch).proximal_logprobs_PRT
  gradient = make_gradient(SPEC, objectives.make("vespo"), advantages.make("grpo"), loss)
  policy = functools.partial(lora.attach, PARAMS, settings=settings)
  policys = jax.jit(lambda: gradient(adapters, batch, policy)[1].logprobs_PRT)()
  real = np.asarray(batch.response_mask_PRT)
  off = lambda logprobs: np.abs(np.asarray(logprobs) - np.asarray(policys))[real].max()
  assert off(proximal) < 1e-5
  merged, _ = anchors.score(lora.merge(PARAMS, adapters, settings), batch)
  assert off(merged) > 1e-3


@pytest.mark.parametrize("needed", [True, False])
def test_a_run_goes_on_with_the_adapters_its_rollouts_began_with(needed):
  from vespo_jax.learner.checkpoint import CheckpointError, RunState
  from vespo_jax.runtime import Schedule, Snapshot
  from vespo_jax.training import Learner

  anchors = Anchors(None, None, needs_proximal=needed, score_adapters=lambda *_: None)
  learner = Learner(None, SPEC, None, None, None, anchors, LoraSettings(4, 8.0, "."), False)
  state, began, schedule = fresh_state(), {"layers": {}}, Schedule.sync(2, prompts=4)
  within = dataclasses.replace(state, step=jnp.int32(3))
  run = lambda state, **more: RunState(state, Snapshot(weights={2: PARAMS}), {}, **more)
  if not needed:
    learner.start_rollout_batch(run(within), schedule)
    assert anchors.proximal is None
    return
  learner.start_rollout_batch(run(within, proximal=began), schedule)
  assert anchors.proximal is began
  # where a rollout batch begins, its orders may be open already, and their weights be kept
  learner.start_rollout_batch(run(dataclasses.replace(state, step=jnp.int32(2))), schedule)
  jax.tree.map(np.testing.assert_array_equal, anchors.proximal, state.params)
  with pytest.raises(CheckpointError, match="lacks the adapters"):
    learner.start_rollout_batch(run(within), schedule)
