"""Auxiliary losses, load and replayed choices of a mixture of experts, from sampler to gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example import OPTIMIZER, REWARD, example_batch

from tests.marks import slow_but
from vespo_jax import models, objectives, sampler
from vespo_jax.learner import routing as routing_lib
from vespo_jax.learner.anchors import Anchors
from vespo_jax.learner.batching import make_batch
from vespo_jax.learner.gradient import LossSettings, make_gradient, score
from vespo_jax.learner.optimizer import make_optimizer
from vespo_jax.learner.update import StepSettings, init_state, make_update
from vespo_jax.models.moe import mixture

SPEC = models.ModelSpec(
  vocab_size=32,
  width=16,
  layers=2,
  heads=2,
  kv_heads=1,
  head_width=8,
  mlp_width=16,
  experts=6,
  active_experts=2,
)
PARAMS = jax.tree.map(lambda x: 5 * x, models.init(SPEC, jax.random.key(0)))
OTHER = jax.tree.map(lambda x: x + 0.05 * jnp.cos(37 * x), PARAMS)
BATCH = example_batch(prompts=4, samples=2, prompt_width=8, width=4)
COEFFICIENTS = {"balance_coefficient": 0.7, "z_coefficient": 0.3}


@jax.jit
def scored(params, batch):
  return score(params, SPEC, batch, LossSettings())


@jax.jit
def routed(params, batch):
  return models.group_logprobs_routed(params, SPEC, batch)[2]


def real_tokens(batch):
  """[P, J]: True where a token of a group is real."""
  rows = batch.response_mask_PRT.reshape(len(batch.rewards_PR), -1)
  return np.concatenate([batch.prompt_mask_PS, rows], axis=1)


def by_token(routing, batch):
  """[P, J, L, A] of a routing's choices."""
  ids = np.moveaxis(np.asarray(routing.expert_ids_LMA), 0, 1)
  return ids.reshape(len(batch.rewards_PR), -1, *ids.shape[1:])


def published(logits, real, top_k):
  """Hugging Face's `load_balancing_loss_func` of one layer with an attention mask, and ST-MoE's z:
  written over one-hot masks, as they are."""
  experts = logits.shape[-1]
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  selected = np.argsort(-weights, axis=-1)[:, :top_k]
  expert_mask = np.eye(experts)[selected] * real[:, None, None]
  tokens_per_expert = expert_mask.sum(axis=0) / real.sum()
  router_prob_per_expert = (weights * real[:, None]).sum(axis=0) / real.sum()
  balance = experts * (tokens_per_expert * router_prob_per_expert[None]).sum()
  return balance, (np.log(np.exp(logits).sum(axis=-1)) ** 2)[real].mean()


def test_losses_are_the_published_ones():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 20, 16)), jnp.float32)
  real = rng.random(20) < 0.7
  layers = [jax.tree.map(lambda leaf, i=i: leaf[i], PARAMS["layers"]) for i in range(2)]
  routings = [mixture(x[i], layers[i], SPEC, jnp.asarray(real), None)[1] for i in range(2)]
  routing = jax.tree.map(lambda *leaves: jnp.stack(leaves), *routings)
  losses = routing_lib.auxiliary_losses(routing, routing.load_LE, routing.tokens[0])
  expected = [published(np.asarray(x[i] @ layers[i]["router"]), real, 2) for i in range(2)]
  np.testing.assert_allclose(losses, np.mean(expected, axis=0), rtol=1e-5)
  even = routing.replace(load_LE=jnp.full((2, 6), 4.0), importance_LE=jnp.full((2, 6), 2.0))
  np.testing.assert_allclose(routing_lib.auxiliary_losses(even, even.load_LE, 12)[0], 2.0)  # A


@pytest.mark.parametrize(
  "replayed,pieces", slow_but([(False, 1), (False, 4), (True, 4)], (False, 4))
)
def test_losses_are_of_the_whole_minibatch_however_it_is_cut(replayed, pieces):
  """Against one forward pass over all of it, differentiated; without rewards nothing else is."""
  batch = BATCH.replace(rewards_PR=0 * BATCH.rewards_PR)
  if replayed:
    batch = batch.replace(expert_ids_PJLA=np.asarray(scored(OTHER, BATCH)[1]))

  def losses(params):
    routing = models.group_logprobs_routed(params, SPEC, batch)[2]
    f = jax.lax.stop_gradient(routing.load_LE) / routing.tokens[0]
    balance = 6 * jnp.sum(f * routing.importance_LE / routing.tokens[0]) / 2
    return 0.7 * balance + 0.3 * jnp.sum(routing.z_L) / routing.tokens[0] / 2

  expected = jax.jit(jax.grad(losses))(PARAMS)
  assert np.abs(expected["layers"]["router"]).max() > 1e-2
  settings = LossSettings(**COEFFICIENTS, micro_batches=pieces)
  gradient = make_gradient(SPEC, objectives.make("reinforce"), REWARD, settings)
  grads, evaluated = jax.jit(gradient)(PARAMS, batch)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  chex.assert_trees_all_close(grads, expected, atol=1e-5 * largest, rtol=1e-4)
  np.testing.assert_allclose(evaluated.routing.tokens, real_tokens(batch).sum())


def test_metrics_are_those_of_the_load():
  """The router learns, also where its choices are replayed, and the row says what it did."""
  replayed = np.asarray(scored(OTHER, BATCH)[1])
  settings = LossSettings(**COEFFICIENTS, micro_batches=2)
  optimizer = make_optimizer(OPTIMIZER)
  update = make_update(
    SPEC, objectives.make("reinforce"), REWARD, optimizer, settings, StepSettings()
  )
  state = init_state(PARAMS, optimizer)
  after, row = jax.jit(update)(state, BATCH.replace(expert_ids_PJLA=replayed))
  own, real = np.asarray(scored(PARAMS, BATCH)[1]), real_tokens(BATCH)
  routing = routed(PARAMS, BATCH.replace(expert_ids_PJLA=replayed))
  held = by_token(routing, BATCH)
  np.testing.assert_array_equal(held[real], replayed[real])
  load = np.stack([np.bincount(held[real][:, i].ravel(), minlength=6) for i in range(2)])
  share = load / load.sum(axis=1, keepdims=True)
  entropy = -(share * np.log(np.maximum(share, 1e-9))).sum(axis=1).mean() / np.log(6)
  np.testing.assert_allclose(row["moe/load_max"], 6 * share.max(), rtol=1e-5)
  np.testing.assert_allclose(row["moe/load_entropy"], entropy, rtol=1e-5)
  np.testing.assert_array_equal(  # the first layer's inputs are the same, replayed or not
    routing.mismatch_L[0],
    sum(len(set(a) - set(b)) for a, b in zip(held[real][:, 0], own[real][:, 0], strict=True)),
  )
  mismatched = float(jnp.sum(routing.mismatch_L)) / load.sum()
  np.testing.assert_allclose(row["moe/replay_mismatch_fraction"], mismatched, rtol=1e-5)
  moved = after.params["layers"]["router"] - PARAMS["layers"]["router"]
  assert np.abs(moved).max() > 1e-6


def test_choices_of_a_sequence_alone_are_those_in_its_group():
  ids = np.random.default_rng(3).permuted(np.tile(np.arange(6), (4, 16, 2, 1)), axis=-1)[..., :2]
  batch = BATCH.replace(expert_ids_PJLA=ids.astype(np.uint8))
  own = lambda x: x.reshape(8, 1, *x.shape[2:])
  alone = batch.replace(
    prompt_tokens_PS=np.repeat(batch.prompt_tokens_PS, 2, axis=0),
    prompt_mask_PS=np.repeat(batch.prompt_mask_PS, 2, axis=0),
    response_tokens_PRT=own(batch.response_tokens_PRT),
    response_mask_PRT=own(batch.response_mask_PRT),
    behaviour_logprobs_PRT=own(batch.behaviour_logprobs_PRT),
    rewards_PR=own(batch.rewards_PR),
    expert_ids_PJLA=routing_lib.by_sequence(batch.expert_ids_PJLA, 8, 2)[:, 0],
  )
  together = np.asarray(scored(PARAMS, batch)[0])
  np.testing.assert_allclose(own(together), scored(PARAMS, alone)[0], atol=2e-5)
  assert np.abs(together - scored(PARAMS, BATCH)[0]).max() > 1e-2


def test_r2_holds_the_choices_of_the_rollout_batchs_start():
  """Whatever the parameters become, minibatches are routed as the proximal policy routed them."""
  anchors = Anchors(scored, reference=OTHER, needs_proximal=True, replay_proximal=True)
  anchors.start_rollout_batch(PARAMS)
  flipped = 0.0
  for seed, params in ((0, PARAMS), (1, OTHER)):
    batch = example_batch(prompts=4, samples=2, prompt_width=8, width=4, seed=seed)
    complete = anchors.complete(batch)
    held, real = routed(params, complete), real_tokens(batch)
    np.testing.assert_array_equal(
      by_token(held, batch)[real], np.asarray(scored(PARAMS, batch)[1])[real]
    )
    np.testing.assert_array_equal(complete.proximal_logprobs_PRT, scored(PARAMS, batch)[0])
    np.testing.assert_array_equal(complete.reference_logprobs_PRT, scored(OTHER, batch)[0])
    flipped = float(jnp.sum(held.mismatch_L))
    assert (flipped > 0) == (params is OTHER)


def rollouts(params):
  rng = np.random.default_rng(4)
  prompts = [rng.integers(1, 32, n).tolist() for n in (3, 16, 9, 12)]
  settings = sampler.Settings(12, samples_per_prompt=4, stop_ids=(0, 1), expert_ids=True)
  return sampler.generate(params, SPEC, prompts, jax.random.key(1), settings)


def test_r3_holds_the_samplers_choices():
  """In float32 they are the learner's own; in bfloat16 some flip, unless they are replayed."""
  sampled = rollouts(PARAMS)
  assert {r.finish for r in sampled} == {"stop", "length"}
  for r in sampled:
    assert r.expert_ids.dtype == np.uint8
    assert r.expert_ids.shape == (len(r.prompt_ids) + len(r.response_ids), 2, 2)
  batch, _ = make_batch(sampled, 4, 12, 0)
  real = real_tokens(batch)
  own = np.asarray(scored(PARAMS, batch.replace(expert_ids_PJLA=None))[1])
  np.testing.assert_array_equal(batch.expert_ids_PJLA[real], own[real])

  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  batch, _ = make_batch(rollouts(half), 4, 12, 0)
  real, theirs = real_tokens(batch), batch.expert_ids_PJLA
  own = np.asarray(scored(PARAMS, batch.replace(expert_ids_PJLA=None))[1])
  flipped = np.sort(own[real]) != np.sort(theirs[real])
  assert 0 < flipped.mean() < 0.2
  held = routed(PARAMS, batch)
  np.testing.assert_array_equal(by_token(held, batch)[real], theirs[real])
  assert float(jnp.sum(held.mismatch_L)) > 0


def test_a_dense_model_has_no_choices_to_report():
  dense = models.ModelSpec(8, 8, 1, 1, 1, 8, 8)
  settings = sampler.Settings(2, expert_ids=True)
  with pytest.raises(ValueError, match="without experts"):
    sampler.generate({}, dense, [[1]], jax.random.key(0), settings)
