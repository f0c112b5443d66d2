"""Generation against exact probabilities and against the learner's own log-probs."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import slow_but
from tests.sampler.toy import weights
from vespo_jax import models, sampler
from vespo_jax.sampler import decode as device
from vespo_jax.types import TrainBatch

SPEC = models.ModelSpec(
  vocab_size=5, width=16, layers=2, heads=2, kv_heads=1, head_width=8, mlp_width=24
)


@pytest.fixture(scope="module")
def params():
  return weights(0, SPEC)


def settings(**kwargs):
  return sampler.Settings(**{"max_new_tokens": 6, "stop_ids": (0,), **kwargs})


PROMPTS = [[1, 2, 3], [4], [2, 2, 1, 3, 4, 1]]


token_logprobs = jax.jit(models.token_logprobs, static_argnums=1)


def full_logprobs(params, rollout, temperature=1.0):
  """The learner's log-probs of a rollout's response; what follows it has no influence."""
  row = np.concatenate([rollout.prompt_ids, rollout.response_ids])
  logprobs, _ = token_logprobs(params, SPEC, np.pad(row, (0, 16 - len(row)))[None], temperature)
  return np.asarray(logprobs)[0, len(rollout.prompt_ids) : len(row)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_the_learners(params, temperature):
  rollouts = sampler.generate(
    params,
    SPEC,
    PROMPTS,
    jax.random.key(1),
    settings(samples_per_prompt=4, temperature=temperature),
    weight_version=3,
  )
  assert len(rollouts) == 12
  for i, rollout in enumerate(rollouts):
    assert rollout.group_id == i // 4 and rollout.sample_seed == i
    np.testing.assert_array_equal(rollout.prompt_ids, PROMPTS[i // 4])
    np.testing.assert_array_equal(rollout.weight_versions, np.full(len(rollout.response_ids), 3))
    np.testing.assert_allclose(
      rollout.behaviour_logprobs, full_logprobs(params, rollout, temperature), atol=2e-5
    )
    np.testing.assert_allclose(rollout.plain_logprobs, full_logprobs(params, rollout), atol=2e-5)


def test_logprobs_equal_those_of_the_training_layout(params):
  rollouts = sampler.generate(
    params, SPEC, PROMPTS, jax.random.key(1), settings(samples_per_prompt=4, stop_ids=())
  )
  tokens, mask = sampler.pad_prompts(PROMPTS)
  responses = np.stack([r.response_ids for r in rollouts]).reshape(3, 4, 6)
  zeros = np.zeros(responses.shape, np.float32)
  batch = TrainBatch(tokens, mask, responses, zeros == 0, zeros, zeros[..., 0])
  logprobs, _ = jax.jit(models.group_logprobs, static_argnums=1)(params, SPEC, batch)
  behaviour = np.stack([r.behaviour_logprobs for r in rollouts]).reshape(3, 4, 6)
  np.testing.assert_allclose(behaviour, logprobs, atol=2e-5)


def test_stopping(params):
  rollouts = sampler.generate(
    params, SPEC, PROMPTS, jax.random.key(2), settings(samples_per_prompt=16)
  )
  finishes = {r.finish for r in rollouts}
  assert finishes == {"stop", "length"}
  for rollout in rollouts:
    stops = np.flatnonzero(rollout.response_ids == 0)
    if rollout.finish == "stop":
      np.testing.assert_array_equal(stops, [len(rollout.response_ids) - 1])
    else:
      assert len(stops) == 0 and len(rollout.response_ids) == 6


def test_sampling_follows_the_exact_distribution(params):
  """Frequencies of all two-token responses against their enumerated probabilities."""
  n = 4000
  rollouts = sampler.generate(
    params,
    SPEC,
    [PROMPTS[0]],
    jax.random.key(3),
    settings(max_new_tokens=2, stop_ids=(), samples_per_prompt=n),
  )
  counts = np.zeros((5, 5))
  for rollout in rollouts:
    counts[tuple(rollout.response_ids)] += 1
  rows = np.array([[*PROMPTS[0], a, b] for a, b in itertools.product(range(5), range(5))])
  logprobs, _ = token_logprobs(params, SPEC, jnp.asarray(rows))
  exact = np.exp(np.asarray(logprobs)[:, -2:].sum(axis=1)).reshape(5, 5)
  np.testing.assert_allclose(exact.sum(), 1.0, rtol=1e-4)
  error = (counts / n - exact) / np.sqrt(exact * (1 - exact) / n + 1e-12)
  assert np.abs(error).max() < 4.5  # standard errors, over 25 cells


def test_a_rollout_does_not_depend_on_its_batch(params):
  together = sampler.generate(
    params, SPEC, PROMPTS, jax.random.key(4), settings(samples_per_prompt=2)
  )
  alone = sampler.generate(
    params, SPEC, PROMPTS[2:], jax.random.key(4), settings(samples_per_prompt=2), group_ids=[2]
  )
  for one, other in zip(together[4:], alone, strict=True):
    np.testing.assert_array_equal(one.response_ids, other.response_ids)
    assert one.sample_seed == other.sample_seed


def test_samples_of_a_prompt_differ(params):
  rollouts = sampler.generate(
    params, SPEC, PROMPTS[:1], jax.random.key(5), settings(samples_per_prompt=20, stop_ids=())
  )
  assert len({tuple(r.response_ids) for r in rollouts}) > 10


def test_greedy_takes_the_likeliest_token(params):
  (rollout,) = sampler.generate(
    params, SPEC, PROMPTS[:1], jax.random.key(6), settings(temperature=0.0, stop_ids=())
  )
  row = np.concatenate([rollout.prompt_ids, rollout.response_ids])
  hidden, _ = models.forward(params, SPEC, jnp.asarray(row)[None])
  likeliest = np.argmax(hidden[0] @ models.head_table(params).T, axis=-1)
  start = len(rollout.prompt_ids)
  np.testing.assert_array_equal(rollout.response_ids, likeliest[start - 1 : -1])


@pytest.mark.parametrize(
  "limits",
  slow_but(
    [{"top_k": 2}, {"top_p": 0.7}, {"top_k": 3, "top_p": 0.8}, {"min_p": 0.3}, {"min_p": 1.0}],
    {"top_k": 3, "top_p": 0.8},
    {"min_p": 0.3},
  ),
)
def test_truncated_sampling_reports_the_truncated_distribution(params, limits):
  rollouts = sampler.generate(
    params,
    SPEC,
    [PROMPTS[0]],
    jax.random.key(7),
    settings(max_new_tokens=1, stop_ids=(), samples_per_prompt=300, **limits),
  )
  hidden, _ = models.forward(params, SPEC, jnp.asarray([PROMPTS[0]]))
  plain = np.exp(np.asarray(jax.nn.log_softmax(hidden[0, -1] @ models.head_table(params).T)))
  kept = np.argsort(-plain)[: limits.get("top_k", 5)]
  probs = plain[kept] / plain[kept].sum()
  if "top_p" in limits:
    kept = kept[: np.searchsorted(np.cumsum(probs), limits["top_p"]) + 1]
  kept = kept[plain[kept] >= limits.get("min_p", 0) * plain.max()]
  assert 0 < len(kept) < 5
  seen = {int(r.response_ids[0]) for r in rollouts}
  assert seen <= set(kept.tolist())
  for rollout in rollouts:
    token = int(rollout.response_ids[0])
    np.testing.assert_allclose(
      np.exp(rollout.behaviour_logprobs), plain[token] / plain[kept].sum(), rtol=1e-4
    )
    np.testing.assert_allclose(np.exp(rollout.plain_logprobs), plain[token], rtol=1e-4)


def test_bfloat16_weights_sample_with_their_own_logprobs(params):
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  rollouts = sampler.generate(low, SPEC, PROMPTS, jax.random.key(8), settings(samples_per_prompt=8))
  error = np.concatenate([r.behaviour_logprobs - full_logprobs(params, r) for r in rollouts])
  assert 1e-4 < np.abs(error).max() < 0.5  # a real mismatch, of the size of the rounding


def test_one_trace_for_prompts_of_a_bucket(params, monkeypatch):
  for name in ("decode", "prefill", "place"):
    program = getattr(device, name)
    once = chex.assert_max_traces(program.__wrapped__, n=1)
    static = {"decode": ("spec", "settings"), "prefill": ("spec", "expert_ids", "attention")}
    monkeypatch.setattr(device, name, jax.jit(once, static_argnames=static.get(name)))
  for length in (3, 9, 11):
    sampler.generate(params, SPEC, [[1] * length], jax.random.key(9), settings())
  with pytest.raises(AssertionError, match="traced"):
    sampler.generate(params, SPEC, [[1] * 18], jax.random.key(9), settings())


def test_bad_prompts_and_settings():
  with pytest.raises(ValueError, match="at least one prompt"):
    sampler.pad_prompts([])
  with pytest.raises(ValueError, match="at least one token"):
    sampler.pad_prompts([[1], []])
  for field, value in (
    ("top_p", 0.0),
    ("temperature", -1.0),
    ("temperature", 1e-40),  # by which a logit is infinite
    ("temperature", float("inf")),
    ("max_new_tokens", 0),
    ("min_p", 1.5),
  ):
    with pytest.raises(ValueError, match=field):
      settings(**{field: value})
