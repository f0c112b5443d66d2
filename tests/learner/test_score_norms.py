"""What a norm of grad log pi costs: one backward pass for each that is needed."""

import jax
import jax.numpy as jnp
import numpy as np
from example import SPEC, advantages_of, example_batch, fresh_state

from vespo_jax import advantages, models
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


def test_norms_of_logits_are_real_where_the_policy_is_sure():
  """1 - 2 p + sum p^2 written out is below 0 there as often as not."""
  sharp = {**PARAMS, "final_norm": 40 * PARAMS["final_norm"]}
  batch = example_batch(prompts=64, samples=1, width=1)
  tokens, real = jnp.asarray(batch.prompt_tokens_PS), jnp.asarray(batch.prompt_mask_PS, jnp.int32)
  hidden_PSD, _ = models.forward(sharp, SPEC, tokens, segments=real)
  logits_PV = np.asarray(hidden_PSD[:, -1] @ models.head_table(sharp).T, np.float64)
  logits_PV -= logits_PV.max(axis=-1, keepdims=True)
  pi_PV = np.exp(logits_PV) / np.exp(logits_PV).sum(axis=-1, keepdims=True)
  best_P = pi_PV.argmax(axis=-1)
  batch = batch.replace(
    response_tokens_PRT=best_P[:, None, None].astype(np.int32),
    response_mask_PRT=np.ones((64, 1, 1), bool),
  )
  others_PV = pi_PV * (np.arange(SPEC.vocab_size) != best_P[:, None])
  exact_P = others_PV.sum(axis=-1) ** 2 + (others_PV**2).sum(axis=-1)
  assert (exact_P < 1e-8).sum() > 9  # where float32 has next to nothing left of 1
  found_P = np.asarray(models.group_logit_norms(sharp, SPEC, batch))[:, 0, 0]
  # what the other tokens' squares add, a factor of at most 2, is below the rounding of 1
  np.testing.assert_allclose(np.sqrt(found_P), np.sqrt(exact_P), rtol=0.3, atol=1e-5)
