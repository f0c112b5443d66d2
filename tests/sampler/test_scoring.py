"""The engine against itself: what it says of given tokens is what it said when it sampled them."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.sampler.toy import KEY, LONGEST, PROMPTS, SPEC, assert_same, settings, weights
from vespo_jax import models, sampler
from vespo_jax.sampler.weights import prepare

PARAMS, NEW = weights(0), weights(1)
HOW = settings(temperature=0.7)


def engine(params, how=HOW, slots=5, steps=3):
  """With fewer slots than sequences, so that they enter and leave all the time."""
  made = sampler.Engine(SPEC, how, slots=slots, longest_prompt=8, steps=steps)
  made.adopt(0, params)
  return made


def finished(made, sequences, then=None):
  """The rollouts, once they are; with `then`, weights that take over after three tokens."""
  if then is not None:
    while not made.stalled(3):
      made.advance(limit=3)
    made.adopt(7, then)
  while made.busy:
    made.advance()
  return [sequence.rollout() for sequence in sequences]


def sampled(params, how=HOW, **kwargs):
  made = engine(params, how, **kwargs)
  return finished(made, made.submit(KEY, PROMPTS, range(6)))


def scored(params, rollouts, how=HOW, **kwargs):
  made = engine(params, how, **kwargs)
  return finished(made, made.replay(rollouts))


def mismatch(one, other):
  """Mean |log-ratio| over all tokens."""
  pairs = zip(one, other, strict=True)
  return np.abs(
    np.concatenate([a.behaviour_logprobs - b.behaviour_logprobs for a, b in pairs])
  ).mean()


@pytest.fixture(scope="module")
def rollouts():
  return sampled(PARAMS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_engine_has_exactly_no_mismatch_to_itself(dtype, rollouts):
  """Every log-prob, to the last bit, whatever slot a sequence is in and whoever is beside it."""
  params = prepare(PARAMS, 0, dtype, noise=0.0)
  own = sampled(params)
  assert {rollout.finish for rollout in own} == {"stop", "length"}
  order = np.random.default_rng(0).permutation(len(own))  # groups are torn apart
  for i, again in zip(order, scored(params, [own[i] for i in order]), strict=True):
    assert_same(again, own[i])
  if dtype != "float32":  # and it is another engine
    assert 1e-4 < mismatch(scored(params, rollouts), rollouts) < 0.2


def test_given_and_drawn_sequences_share_an_engine(rollouts):
  made = engine(PARAMS)
  sequences = made.replay(rollouts[:8]) + made.submit(KEY, PROMPTS[2:], range(2, 6))
  for one, other in zip(finished(made, sequences), rollouts, strict=True):
    assert_same(one, other)


def test_weights_that_change_in_flight_are_replayed():
  every = {"slots": 24, "steps": 12}
  made, again = engine(PARAMS, **every), engine(PARAMS, **every)
  own = finished(made, made.submit(KEY, PROMPTS, range(6)), then=NEW)
  for one, other in zip(finished(again, again.replay(own), then=NEW), own, strict=True):
    assert_same(one, other)
  old = scored(PARAMS, own, **every)
  for one, other in zip(old, own, strict=True):
    np.testing.assert_array_equal(one.plain_logprobs[:3], other.plain_logprobs[:3])
  assert mismatch(old, own) > 0.1


def test_the_mismatch_grows_with_the_dose_of_noise(rollouts):
  doses = [
    mismatch(scored(prepare(PARAMS, 0, "float32", noise), rollouts), rollouts)
    for noise in (0.0, 1e-4, 1e-3, 1e-2)
  ]
  assert doses[0] == 0
  for smaller, larger in zip(doses[1:], doses[2:], strict=False):
    assert 5 < larger / smaller < 20  # a noise ten times as large
  assert 1e-5 < doses[1] < 1e-3


def test_tokens_that_could_not_have_been_sampled(rollouts):
  """Scored under truncation: -inf outside the kept tokens, renormalised within."""
  how = dataclasses.replace(HOW, top_k=4, top_p=0.8, min_p=0.02)
  own = sampled(PARAMS, how)
  for one, other in zip(scored(PARAMS, own, how), own, strict=True):
    assert_same(one, other)
  outside = 0
  for rollout, found in zip(rollouts, scored(PARAMS, rollouts, how), strict=True):
    row, start = np.concatenate([rollout.prompt_ids, rollout.response_ids]), len(rollout.prompt_ids)
    hidden, _ = forward(PARAMS, SPEC, np.pad(row, (0, LONGEST - len(row)))[None])
    logits_TV = np.asarray(hidden[0] @ models.head_table(PARAMS).T, np.float64)[start - 1 :]
    for token, logits_V, logprob in zip(
      rollout.response_ids, logits_TV / 0.7, found.behaviour_logprobs, strict=False
    ):
      kept = np.argsort(-logits_V)[:4]
      probs = np.exp(logits_V[kept]) / np.exp(logits_V[kept]).sum()
      kept = kept[np.cumsum(probs) - probs < 0.8]
      kept = kept[logits_V[kept] >= logits_V.max() + np.log(0.02)]
      outside += token not in kept
      expected = logits_V[token] - np.log(np.exp(logits_V[kept]).sum())
      np.testing.assert_allclose(logprob, expected if token in kept else -np.inf, atol=2e-5)
    np.testing.assert_array_equal(found.plain_logprobs, rollout.plain_logprobs)
    assert len(found.behaviour_logprobs) == len(rollout.response_ids)
  assert 5 < outside < 100


forward = jax.jit(models.forward, static_argnums=1)


def test_whole_batches():
  own = sampler.generate(PARAMS, SPEC, PROMPTS, KEY, HOW)
  again = sampler.score(PARAMS, SPEC, own, HOW)
  for one, other in zip(again, own, strict=True):
    assert_same(one, other)
  empty = dataclasses.replace(own[0], response_ids=np.zeros(0, np.int32))
  for wrong in ([*own, empty], own):
    with pytest.raises(ValueError, match="has not 1 to 5 tokens"):
      sampler.score(PARAMS, SPEC, wrong, dataclasses.replace(HOW, max_new_tokens=5))
