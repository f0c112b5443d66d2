"""The gradient of a minibatch: what it is made of, against other ways to write it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from example import (
  OPTIMIZER,
  REWARD,
  SPEC,
  add,
  advantages_of,
  example_batch,
  fresh_state,
  masked_rewards,
  plain_gradient,
  run,
)

from tests.marks import slow_but
from vespo_jax import advantages, models, objectives, sharding
from vespo_jax.learner.gradient import Evaluated, LossSettings, make_gradient, measure, score
from vespo_jax.learner.optimizer import make_optimizer
from vespo_jax.learner.update import (
  PER_SEQUENCE,
  StepSettings,
  compile_update,
  init_state,
  make_update,
  place_state,
)
from vespo_jax.models import lora
from vespo_jax.types import TrainBatch

PARAMS = fresh_state().params
NEAR = models.init(SPEC, jax.random.key(1))  # another policy, to be proximal or reference


def near_batch(seed=0, **more):
  """A batch whose behaviour log-probs are close to the policy's, so that nothing saturates."""
  batch = example_batch(seed=seed, **more)
  logprobs = logprobs_of(PARAMS, batch)
  noise = np.random.default_rng(seed).normal(0, 0.4, logprobs.shape).astype(np.float32)
  return batch.replace(behaviour_logprobs_PRT=np.asarray(logprobs) + noise)


@jax.jit
def logprobs_of(params, batch):
  return models.group_logprobs(params, SPEC, batch)[0]


def rows(x):
  return jnp.asarray(x).reshape(-1, *x.shape[2:])


def alone_is_kept(baseline_P, valid_PR):
  """[P, 1]: 0 in place of the baseline of a group of one."""
  return np.where(valid_PR.sum(axis=1) > 1, baseline_P, 0.0)[:, None]


WIDE = [name for name in objectives.names() if objectives.make(name).batch_wide]


@pytest.mark.parametrize("name", slow_but(WIDE, "m2po"))
def test_batch_wide_methods_see_the_whole_minibatch_through_micro_batches(name):
  options = {"bapo": {"low_end": 0.9}, "m2po": {"clip_low": 0.0, "clip_high": 0.0}}
  cov = {"selected": 0.1, "cov_low": 0.1} if name == "clip_cov" else {"selected": 0.1}
  options |= {"clip_cov": cov, "kl_cov": cov}
  objective = objectives.make(name, **options.get(name, {}))
  batch = near_batch()
  whole = plain_gradient(objective)(PARAMS, batch)
  chex.assert_trees_all_close(
    plain_gradient(objective, micro_batches=4)(PARAMS, batch), whole, atol=1e-6, rtol=1e-4
  )


@pytest.mark.parametrize(
  "correction",
  [
    objectives.corrections.make("k3_rejection", high=0.05),
    *(
      pytest.param(objectives.corrections.make(name, **options), marks=pytest.mark.slow)
      for name, options in (
        ("token_tis", {"normalize": True}),
        ("custom", {"reject": "token_k1:0.8_1.25"}),
      )
    ),
  ],
)
def test_corrections_see_the_whole_minibatch_through_micro_batches(correction):
  batch = near_batch()
  batch = batch.replace(proximal_logprobs_PRT=np.asarray(logprobs_of(PARAMS, batch)))
  settings = {"correction": correction, "proximal_denominator": True}
  whole = plain_gradient("grpo", **settings)(PARAMS, batch)
  pieces = plain_gradient("grpo", **settings, micro_batches=4)(PARAMS, batch)
  chex.assert_trees_all_close(pieces, whole, atol=1e-6, rtol=1e-4)
  plain = plain_gradient("grpo")(PARAMS, batch)
  assert optax.tree.norm(add(whole, plain, -1.0)) > 0.05 * optax.tree.norm(plain)


def test_the_denominator_is_the_one_that_is_set():
  """With the proximal policy as denominator, and itself the policy, every ratio is 1."""
  batch = near_batch()
  own = np.asarray(logprobs_of(PARAMS, batch))
  on_policy = plain_gradient("reinforce", aggregation="token-mean")(PARAMS, batch)
  proximal = plain_gradient("vespo", proximal_denominator=True)
  grads = proximal(PARAMS, batch.replace(proximal_logprobs_PRT=own))
  chex.assert_trees_all_close(grads, on_policy, atol=1e-6, rtol=1e-4)
  behaviour = plain_gradient("vespo")(PARAMS, batch.replace(proximal_logprobs_PRT=own))
  assert optax.tree.norm(add(behaviour, on_policy, -1.0)) > 0.05 * optax.tree.norm(on_policy)


@pytest.mark.parametrize("micro_batches", slow_but([1, 4], 4))
def test_what_is_said_of_w_is_of_the_w_that_vespo_has(micro_batches):
  """The behaviour policy's mismatch, cut at 1, is a factor of W: against the terms written out."""
  batch = near_batch()
  proximal = np.asarray(logprobs_of(NEAR, batch))
  batch = batch.replace(proximal_logprobs_PRT=proximal)
  correction = objectives.corrections.make("token_tis", cap=1.0, normalize=True)
  settings = LossSettings(
    proximal_denominator=True, correction=correction, micro_batches=micro_batches
  )
  gradient = make_gradient(SPEC, objectives.make("vespo"), REWARD, settings)
  metrics = jax.jit(lambda p, b: measure(gradient(p, b)[1], b, settings))(PARAMS, batch)
  mask = np.asarray(batch.response_mask_PRT)
  mismatch = np.where(mask, proximal - batch.behaviour_logprobs_PRT, 0.0)
  factor = np.minimum(np.exp(mismatch), 1.0)
  log_factor = np.where(mask, np.log(factor / factor[mask].mean()), 0.0).sum(axis=-1)
  log_ratio = np.where(mask, np.asarray(logprobs_of(PARAMS, batch)) - proximal, 0.0)
  log_w = (log_ratio.sum(axis=-1) + log_factor)[mask.any(axis=-1)]
  w, positive = np.exp(log_w), (masked_rewards(batch) >= 0)[mask.any(axis=-1)]
  phi = np.where(positive, w**2 * np.exp(3 - 3 * w), w**3 * np.exp(2 - 2 * w))
  expected = {
    "weight/log_w_mean": log_w.mean(),
    "weight/log_w_min": log_w.min(),
    "weight/ess_fraction": w.sum() ** 2 / (len(w) * (w**2).sum()),
    "weight/log_z": np.log(phi.mean()),
    "weight/q_mean_w": (phi * w).sum() / phi.sum(),
  }
  for key, value in expected.items():
    np.testing.assert_allclose(metrics[key], value, rtol=1e-3, atol=1e-4, err_msg=key)


def test_what_is_said_of_w_is_of_the_tokens_that_a_rejection_left():
  batch = near_batch()
  proximal = np.asarray(logprobs_of(NEAR, batch))
  batch = batch.replace(proximal_logprobs_PRT=proximal)
  mask = np.asarray(batch.response_mask_PRT)
  mismatch = np.where(mask, proximal - batch.behaviour_logprobs_PRT, 0.0)
  bound = float(np.median(0.5 * mismatch[mask] ** 2))
  correction = objectives.corrections.make("custom", level="none", reject=f"token_k2:{bound}")
  settings = LossSettings(proximal_denominator=True, correction=correction)
  gradient = make_gradient(SPEC, objectives.make("vespo"), REWARD, settings)
  metrics = jax.jit(lambda p, b: measure(gradient(p, b)[1], b, settings))(PARAMS, batch)
  kept = mask & (0.5 * mismatch**2 <= bound)
  log_ratio = np.asarray(logprobs_of(PARAMS, batch)) - proximal
  log_w = np.where(kept, log_ratio, 0.0).sum(axis=-1)[kept.any(axis=-1)]
  assert 0 < (mask & ~kept).sum()
  np.testing.assert_allclose(metrics["weight/log_w_mean"], log_w.mean(), rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(metrics["weight/log_w_std"], log_w.std(), rtol=1e-3)


@pytest.mark.parametrize("estimator", slow_but(objectives.KL_ESTIMATORS, "k3"))
def test_kl_in_the_loss_is_added_per_token(estimator):
  """Against the penalty written out over dense rows and differentiated."""
  batch = near_batch()
  reference = np.asarray(logprobs_of(NEAR, batch))
  batch = batch.replace(reference_logprobs_PRT=reference)
  mask = rows(batch.response_mask_PRT)

  def penalty(params):
    x = rows(reference) - rows(models.group_logprobs(params, SPEC, batch)[0])
    kl = {"k1": -x, "k2": x**2 / 2}.get(estimator, jnp.exp(x) - x - 1)
    return 0.3 * jnp.sum(jnp.where(mask, kl, 0.0)) / jnp.sum(mask)

  plain = plain_gradient("vespo")(PARAMS, batch)
  expected = add(plain, jax.jit(jax.grad(penalty))(PARAMS))
  settings = {"kl_coefficient": 0.3, "kl_estimator": estimator, "micro_batches": 4}
  grads = plain_gradient("vespo", **settings)(PARAMS, batch)
  chex.assert_trees_all_close(grads, expected, atol=1e-6, rtol=1e-4)


def test_kl_in_the_reward_is_taken_off_each_sequence():
  batch = near_batch()
  reference = np.asarray(logprobs_of(NEAR, batch))
  x = np.where(batch.response_mask_PRT, reference - batch.behaviour_logprobs_PRT, 0.0)
  shaped = batch.rewards_PR - 0.2 * (np.exp(x) - x - 1).sum(axis=-1)
  given = batch.replace(reference_logprobs_PRT=reference)
  found = advantages_of("vespo", REWARD, given, PARAMS, kl_coefficient=0.2, kl_in_reward=True)
  expected = masked_rewards(batch.replace(rewards_PR=shaped))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_kls_are_of_the_first_policy_named_from_the_second():
  batch = example_batch()
  mask, behaviour = batch.response_mask_PRT, batch.behaviour_logprobs_PRT
  proximal, policy, reference = behaviour - 0.2, behaviour - 0.3, behaviour - 0.7
  batch = batch.replace(proximal_logprobs_PRT=proximal, reference_logprobs_PRT=reference)
  weights = objectives.TokenWeights(0 * policy, mask, 0 * policy, None)
  evaluated = Evaluated(0.0, policy, 0 * policy, batch.rewards_PR, weights, {})
  metrics = measure(evaluated, batch, LossSettings())
  for name, k1 in (("behaviour_policy", 0.3), ("proximal_policy", 0.1), ("policy_reference", 0.4)):
    np.testing.assert_allclose(metrics[f"kl/{name}_k1"], k1, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(metrics[f"kl/{name}"], np.exp(-k1) - 1 + k1, rtol=1e-4)


def test_entropy_bonus():
  batch = near_batch()
  mask = rows(batch.response_mask_PRT)

  def entropy(params):
    return jnp.sum(rows(models.group_logprobs(params, SPEC, batch)[1]) * mask) / jnp.sum(mask)

  expected = add(plain_gradient("vespo")(PARAMS, batch), jax.jit(jax.grad(entropy))(PARAMS), -0.1)
  grads = plain_gradient("vespo", entropy_coefficient=0.1, micro_batches=2)(PARAMS, batch)
  chex.assert_trees_all_close(grads, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("divergence", slow_but(["kl", "tv"], "kl"))
def test_proximal_step(divergence):
  batch = near_batch()
  proximal = np.asarray(logprobs_of(NEAR, batch))
  mask = rows(batch.response_mask_PRT)

  def penalty(params):
    r = jnp.exp(rows(models.group_logprobs(params, SPEC, batch)[0]) - rows(proximal))
    d = r - 1 - jnp.log(r) if divergence == "kl" else jnp.abs(r - 1) / 2
    return jnp.sum(jnp.where(mask, d, 0.0)) / jnp.sum(mask) / 0.5

  plain = plain_gradient("vespo")(PARAMS, batch)
  settings = {"proximal_divergence": divergence, "proximal_step_size": 0.5}
  batch = batch.replace(proximal_logprobs_PRT=proximal)
  grads = plain_gradient("vespo", **settings)(PARAMS, batch)
  expected = add(plain, jax.jit(jax.grad(penalty))(PARAMS))
  chex.assert_trees_all_close(grads, expected, atol=1e-6, rtol=1e-4)


def test_proximal_steps_expected_gradient_is_that_of_the_divergence():
  """Over all tokens of one distribution, each weighed by its probability under the anchor."""
  logits, anchor = jnp.asarray([0.3, -1.0, 0.5]), jnp.asarray([-0.2, 0.1, 0.4])
  log_q = jax.nn.log_softmax(anchor)
  q = jnp.exp(log_q)

  def estimated(logits, divergence):
    log_p = jax.nn.log_softmax(logits)
    return jnp.sum(q * objectives.proximal_divergence(log_p[None], log_q[None], divergence)[0])

  true = {
    "kl": lambda x: jnp.sum(q * (log_q - jax.nn.log_softmax(x))),
    "tv": lambda x: jnp.sum(jnp.abs(q - jax.nn.softmax(x))) / 2,
  }
  for divergence, value in true.items():
    np.testing.assert_allclose(estimated(logits, divergence), value(logits), rtol=1e-5)
    grads = jax.grad(estimated)(logits, divergence), jax.grad(value)(logits)
    np.testing.assert_allclose(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("score_kind", slow_but(advantages.SCORES, "exact"))
def test_vcpo_baseline_from_score_norms(score_kind):
  """Against one gradient per sequence written out, and against the dense logits' gradient."""
  batch = near_batch(prompts=2)
  advantage = advantages.make("vcpo", normalize_std=False, score=score_kind)
  found = advantages_of("vcpo", advantage, batch, PARAMS, micro_batches=2)
  mask = batch.response_mask_PRT
  w = np.exp(
    ((np.asarray(logprobs_of(PARAMS, batch)) - batch.behaviour_logprobs_PRT) * mask).sum(-1)
  )

  def logprob(params, p, r):
    return jnp.sum(models.group_logprobs(params, SPEC, batch)[0][p, r] * jnp.asarray(mask)[p, r])

  squares = np.zeros((2, 4))
  if score_kind == "exact":
    one = jax.jit(jax.grad(logprob))
    for p, r in np.ndindex(2, 4):
      squares[p, r] = optax.tree.norm(one(PARAMS, p, r), squared=True)
  else:
    tokens = np.concatenate(
      [np.repeat(batch.prompt_tokens_PS, 4, axis=0), rows(batch.response_tokens_PRT)], axis=1
    )
    real = np.pad(np.repeat(batch.prompt_mask_PS, 4, axis=0), [(0, 0), (0, 5)], constant_values=1)
    hidden, _ = models.forward(PARAMS, SPEC, tokens, segments=real.astype(np.int32))
    pi = jax.nn.softmax(hidden[:, 15:-1] @ models.head_table(PARAMS).T)
    onehot = jax.nn.one_hot(rows(batch.response_tokens_PRT), 32)
    per_token = np.asarray(jnp.sum((onehot - pi) ** 2, axis=-1)).reshape(mask.shape)
    squares = (per_token * mask).sum(axis=-1)
  valid = mask.any(axis=-1)
  weight = np.where(valid, w**2 * squares, 0.0)
  baseline = (weight * batch.rewards_PR).sum(axis=1) / weight.sum(axis=1)
  expected = np.where(valid, batch.rewards_PR - alone_is_kept(baseline, valid), 0.0)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_lengths_reach_the_advantage():
  batch = near_batch()
  found = advantages_of("grpo", advantages.make("opo"), batch, PARAMS, micro_batches=2)
  lengths = batch.response_mask_PRT.sum(axis=-1)
  baseline = (lengths * batch.rewards_PR).sum(axis=1) / lengths.sum(axis=1)
  expected = np.where(lengths > 0, batch.rewards_PR - alone_is_kept(baseline, lengths > 0), 0.0)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  "scaling,power,base",
  [("sqrt", 0.5, 0.99), pytest.param("linear", 1.0, 0.1, marks=pytest.mark.slow)],
)
def test_vcpo_scales_the_update_after_adam(scaling, power, base):
  batches = [near_batch(seed) for seed in (0, 1)]
  plain, _ = run("vcpo", batches=batches[:1])
  step = StepSettings(ess_scaling=scaling, ess_base=base)
  scaled, (row,) = run("vcpo", batches=batches[:1], step=step)
  w = np.exp(row[PER_SEQUENCE]["log_w"][batches[0].response_mask_PRT.any(axis=-1)])
  factor = min(1.0, w.sum() ** 2 / (w**2).sum() / len(w) / base) ** power
  assert factor < 0.98 if base > 0.5 else factor == 1.0
  np.testing.assert_allclose(row["optimizer/ess_scale"], factor, rtol=1e-5)
  moved = jax.tree.map(lambda a, b: a - b, plain.params, PARAMS)
  expected = jax.tree.map(lambda p, m: p + factor * m, PARAMS, moved)
  chex.assert_trees_all_close(scaled.params, expected, atol=1e-7, rtol=1e-5)
  chex.assert_trees_all_close(scaled.opt_state, plain.opt_state, rtol=1e-5, atol=1e-9)


def test_scores_do_not_depend_on_micro_batches():
  batch = near_batch()
  one, four = (
    jax.jit(score, static_argnums=(1, 3))(PARAMS, SPEC, batch, LossSettings(0.7, None, n))[0]
    for n in (1, 4)
  )
  np.testing.assert_allclose(one, four, rtol=1e-5, atol=1e-6)
  expected = jax.jit(models.group_logprobs, static_argnums=1)(PARAMS, SPEC, batch, 0.7)[0]
  np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)


def test_padding_has_no_effect_even_where_it_is_not_finite():
  batch = near_batch()
  reference = np.asarray(logprobs_of(NEAR, batch))
  hidden = lambda x: np.where(batch.response_mask_PRT, x, np.nan)
  settings = {"kl_coefficient": 0.1, "proximal_divergence": "kl", "proximal_denominator": True}
  names = ("behaviour_logprobs_PRT", "proximal_logprobs_PRT", "reference_logprobs_PRT")
  values = (batch.behaviour_logprobs_PRT, reference, reference)
  clean = plain_gradient("vespo", **settings)(
    PARAMS, batch.replace(**dict(zip(names, values, strict=True)))
  )
  dirty = plain_gradient("vespo", **settings)(
    PARAMS, batch.replace(**{n: hidden(v) for n, v in zip(names, values, strict=True)})
  )
  chex.assert_trees_all_close(dirty, clean, rtol=1e-6)
  assert isinstance(batch, TrainBatch)


@pytest.mark.parametrize("remat", slow_but(["layers", "full"], "layers"))
def test_remat_changes_no_gradient(remat):
  batch = near_batch()
  whole = plain_gradient("vespo")(PARAMS, batch)
  chex.assert_trees_all_close(
    plain_gradient("vespo", compute=models.Compute(remat=remat))(PARAMS, batch),
    whole,
    atol=1e-6,
    rtol=1e-4,
  )


def test_adapters_are_trained_and_the_model_is_not():
  """Adam on the adapters alone, by the chain rule through the merged model."""
  settings = lora.LoraSettings(rank=2, alpha=4.0, targets="q_proj|up_proj")
  adapters = lora.init(SPEC, jax.random.key(3), settings)
  adapters = jax.tree.map(lambda x: x + 0.01, adapters)
  optimizer = make_optimizer(OPTIMIZER)
  update = make_update(
    SPEC,
    objectives.make("vespo"),
    REWARD,
    optimizer,
    LossSettings(micro_batches=2),
    StepSettings(),
    settings,
  )
  state = init_state(jax.tree.map(jnp.copy, adapters), optimizer, frozen=PARAMS)
  mesh = sharding.make_mesh({"data": -1})
  state = place_state(mesh, SPEC, state)
  merged = lora.merge(PARAMS, adapters, settings)
  batch = near_batch()
  after, metrics = compile_update(update, mesh, SPEC, state)(state, batch)
  _, pull = jax.vjp(lambda a: lora.merge(PARAMS, a, settings), adapters)
  (grads,) = pull(plain_gradient("vespo")(merged, batch))
  np.testing.assert_allclose(metrics["grad/norm"], optax.tree.norm(grads), rtol=1e-3)
  updates, _ = optimizer.update(grads, optimizer.init(adapters), adapters)
  expected = optax.apply_updates(adapters, updates)
  chex.assert_trees_all_close(after.params, expected, atol=1e-6, rtol=1e-3)
  assert after.frozen is state.frozen
  moments = {leaf.shape for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim}
  assert moments == {leaf.shape for leaf in jax.tree.leaves(adapters)}
