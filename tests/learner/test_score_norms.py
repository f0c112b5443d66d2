"""What a norm of grad log pi costs: one backward pass for each that is needed."""

import jax
import numpy as np
from example import SPEC, advantages_of, example_batch, fresh_state

from vespo_jax import advantages
from vespo_jax.learner.score_norms import log_score_norms
from vespo_jax.models import Compute

PARAMS = fresh_state().params


def test_only_needed_norms_are_computed():
  """The policy is looked at once for each of them, and they are what all together are."""
  batch = example_batch(prompts=2)
  looks = []

  def policy(params):
    jax.debug.callback(lambda: looks.append(1))
    return params

  def norms(needed_PR):
    looks.clear()
    log_norm = jax.jit(
      lambda: log_score_norms("exact", PARAMS, SPEC, batch, needed_PR, 1.0, Compute(), policy)
    )
    found = np.asarray(log_norm())
    jax.effects_barrier()
    return found, len(looks)

  every, count = norms(np.ones((2, 4), bool))
  assert count == 8
  needed = np.array([[True, False, True, True], [False] * 4])
  some, count = norms(needed)
  assert count == 3
  np.testing.assert_allclose(some[needed], every[needed], rtol=1e-6)
  np.testing.assert_array_equal(some[~needed], 0.0)


def test_groups_without_variance_need_none(monkeypatch):
  """Nor do samples that were aborted; the gradient asks for the others alone."""
  asked = []

  def counted(kind, params, spec, batch, needed_PR, *how):
    jax.debug.callback(lambda needed: asked.append(np.asarray(needed)), needed_PR)
    return log_score_norms(kind, params, spec, batch, needed_PR, *how)

  monkeypatch.setattr("vespo_jax.learner.gradient.log_score_norms", counted)
  batch = example_batch(prompts=2)
  rewards = np.array([[1, 1, 1, 1], [0, 1, 0, 1]], np.float32)
  mask = np.ones_like(batch.response_mask_PRT)
  mask[1, 0] = False  # aborted
  batch = batch.replace(rewards_PR=rewards, response_mask_PRT=mask)
  advantage = advantages.make("vcpo", score="exact")
  found = np.asarray(advantages_of("vcpo", advantage, batch, PARAMS))
  jax.effects_barrier()
  expected = np.array([[False] * 4, [False, True, True, True]])
  np.testing.assert_array_equal(asked[0], expected)
  np.testing.assert_array_equal(found[~expected], 0.0)
  assert (found[expected] != 0).all()
