"""The worker: which weights sample which token, and which orders share the engine."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from tests.sampler.toy import PROMPTS, SPEC, assert_same, learner_logprobs, settings, weights
from vespo_jax import models, sampler
from vespo_jax.sampler.weights import prepare
from vespo_jax.types import TrainBatch

WEIGHTS = {version: weights(version) for version in range(3)}


class Channel:
  """Weights by version; a read that fails takes a millisecond, whatever it was given."""

  def __init__(self, *versions):
    self.versions = list(versions)

  def newest(self):
    return max(self.versions, default=-1)

  def read(self, version, timeout_s, exact):
    found = version if exact else self.newest()
    if found < version or found not in self.versions:
      time.sleep(0.001)
      raise TimeoutError(f"no weights of version {version}")
    return found, WEIGHTS[found]


def worker(*versions, **how):
  channel = Channel(*versions)
  how = {"slots": 8, "chunk": 3, **how}
  return sampler.Worker(SPEC, sampler.WorkerSettings(**how), channel), channel


def order(order_id=0, groups=(0, 1), version=0, plan=(), seed=0, stream=0, **how):
  how = settings(**{"stop_ids": (), "samples_per_prompt": 2, "max_new_tokens": 9, **how})
  prompts = [PROMPTS[g] for g in groups]
  return sampler.Order(order_id, version, seed, stream, prompts, groups, how, plan)


def finish(made, ticks=60):
  results = []
  while not made.idle and ticks:
    results += made.tick()
    ticks -= 1
  assert made.idle, "orders were left over"
  return {result.order_id: result for result in results}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_weights_are_held_once(dtype):
  """Layers apart, as they are sampled with, and not in a stack beside."""
  made, _ = worker(0, 1, dtype=dtype)
  for version in (0, 1):
    made.accept(order(version=version))
    finish(made)
    layers = made._params["layers"]
    assert isinstance(layers, tuple) and made._engine._params["layers"] is layers


def versions_of(result):
  (found,) = {tuple(rollout.weight_versions.tolist()) for rollout in result.rollouts}
  return list(found)


def assert_sampled_by_its_versions(rollout, since=0):
  """Every token from `since` on has the log-prob that the weights of its version give it."""
  for version in set(rollout.weight_versions.tolist()):
    tokens = np.flatnonzero(rollout.weight_versions == version)
    tokens = tokens[tokens >= since]
    expected = learner_logprobs(WEIGHTS[version], rollout)[tokens]
    np.testing.assert_allclose(rollout.behaviour_logprobs[tokens], expected, atol=2e-5, rtol=1e-5)


def test_an_order_is_finished_by_the_weights_that_began_it():
  made, channel = worker(0)
  made.accept(order(0))
  assert made.tick() == []
  channel.versions.append(1)
  made.accept(order(1))  # there is a slot for it, but newer weights too
  results = finish(made)
  assert versions_of(results[0]) == [0] * 9 and versions_of(results[1]) == [1] * 9
  for result in results.values():
    for rollout in result.rollouts:
      assert_sampled_by_its_versions(rollout)


@pytest.mark.parametrize("mode", ["keep_cache", "recompute_cache"])
def test_newer_weights_are_adopted_in_flight(mode):
  made, channel = worker(0, partial_rollouts=mode)
  made.accept(order(0))
  made.tick()
  channel.versions.append(2)
  made.tick()
  made.accept(order(1, groups=(2,)))  # joins under the newest
  results = finish(made)
  assert versions_of(results[0]) == [0] * 3 + [2] * 6 and versions_of(results[1]) == [2] * 9
  for rollout in results[1].rollouts:
    assert_sampled_by_its_versions(rollout)
  for rollout in results[0].rollouts:
    if mode == "recompute_cache":
      assert_sampled_by_its_versions(rollout)
    else:  # the first part only; the rest saw keys and values of two versions
      with pytest.raises(AssertionError):
        assert_sampled_by_its_versions(rollout, since=4)


@pytest.mark.parametrize("mode", ["keep_cache", "recompute_cache"])
def test_a_plan_says_which_weights_sample_which_token(mode):
  """Whatever the chunks and slots; waiting for weights that are not there yet."""
  plan = ((0, 0), (4, 1), (5, 2))
  results = []
  for chunk, slots in ((3, 8), (9, 2), (1, 8)):
    made, channel = worker(0, partial_rollouts=mode, chunk=chunk, slots=slots)
    made.accept(order(plan=plan))
    for _ in range(8):
      assert made.tick() == []  # no further than token 4
    channel.versions[:] = [2, 1]  # the first is gone, and the newest is not the next
    results.append(finish(made)[0])
    assert versions_of(results[-1]) == [0] * 4 + [1] + [2] * 4
  for result in results:
    for one, other in zip(results[0].rollouts, result.rollouts, strict=True):
      np.testing.assert_array_equal(one.response_ids, other.response_ids)
      if mode == "recompute_cache":
        assert_sampled_by_its_versions(one)


@pytest.mark.parametrize("mode", ["keep_cache", "recompute_cache"])
def test_while_a_plan_waits_what_needs_no_newer_weights_is_sampled(mode):
  """The learner may be waiting for it, an evaluation or a refill, before it publishes any."""
  first, second = order(0, plan=((0, 0), (4, 1), (6, 2))), order(1, plan=((0, 1), (6, 2)))
  evaluation, refill = order(2, plan=((0, 1),), stream=1), order(3, plan=((0, 0), (4, 1)))
  last = order(4, groups=(2,), plan=((0, 1),), stream=1)  # joins the evaluation
  alone = {}
  for one in (first, second, evaluation, refill, last):
    made, _ = worker(0, 1, 2, partial_rollouts=mode)
    made.accept(one)
    alone |= finish(made)
  made, channel = worker(0, 1, partial_rollouts=mode)
  for one in (first, second, evaluation, refill, last):
    made.accept(one)
  results = {result.order_id: result for _ in range(60) for result in made.tick()}
  assert set(results) == {2, 3, 4} and not made.idle
  channel.versions.append(2)
  results |= finish(made)
  for order_id, result in alone.items():
    for one, other in zip(result.rollouts, results[order_id].rollouts, strict=True):
      assert_same(one, other)


def test_before_a_plan_begins_what_needs_no_newer_weights_is_sampled():
  """As in a replayed run, whose plan names the version that the evaluation behind it is of."""
  made, channel = worker(0, 1)
  made.accept(order(0, plan=((0, 2),)))
  made.accept(order(1, plan=((0, 1),), stream=1))
  made.accept(order(2, groups=(2,), plan=((0, 0),)))
  results = {result.order_id: result for _ in range(30) for result in made.tick()}
  assert set(results) == {1, 2} and not made.idle
  channel.versions.append(2)
  results |= finish(made)
  assert [versions_of(results[i])[0] for i in range(3)] == [2, 1, 0]


def test_a_plan_waits_anew_after_what_was_sampled_meanwhile():
  made, channel = worker(0, 1, partial_rollouts="keep_cache", timeout_s=0.05)
  made.accept(order(0, plan=((0, 1), (4, 2))))
  for plan in (((0, 1),), ((0, 0),)):
    for _ in range(8):
      made.tick()  # it has asked for version 2
    made.accept(order(1, plan=plan, stream=1))
    evaluation = []
    while not evaluation:
      evaluation = made.tick()
      time.sleep(0.05)
    assert made.tick() == []
  channel.versions.append(2)
  assert versions_of(finish(made)[0]) == [1] * 4 + [2] * 5


def test_a_plan_of_one_version_ignores_newer_weights():
  made, _ = worker(0, 1)
  made.accept(order(0, plan=((0, 0),)))
  made.accept(order(1))
  results = finish(made)
  assert versions_of(results[0]) == [0] * 9 and versions_of(results[1]) == [1] * 9


def test_plans_and_settings_that_cannot_be():
  with pytest.raises(ValueError, match="partial_rollouts is off"):
    worker(0)[0].accept(order(plan=((0, 0), (4, 1))))
  for plan in (((1, 0),), ((0, 0), (4, 1), (4, 2))):
    with pytest.raises(ValueError, match="must ascend from token 0"):
      order(plan=plan)
  for field, value in (("dtype", "float8"), ("partial_rollouts", "yes"), ("chunk", 0)):
    with pytest.raises(ValueError, match=field):
      sampler.WorkerSettings(**{field: value})


def test_weights_that_do_not_come():
  """There is no limit for those that are still to be published; there is for lost ones."""
  made, channel = worker(0, timeout_s=0.05)
  made.accept(order(version=1, plan=((0, 1),)))
  until = time.monotonic() + 0.2
  while time.monotonic() < until:
    assert made.tick() == [] and not made.idle
  channel.versions.append(2)
  with pytest.raises(TimeoutError, match="for 0.05 s: no weights of version 1"):
    for _ in range(1000):
      made.tick()
  channel.versions.append(1)
  assert versions_of(finish(made)[0]) == [1] * 9  # the order is still there


def test_orders_share_the_engine():
  """Alike ones run side by side, in any slots, and become what they would alone."""
  alone = {}
  for i in range(3):
    made, _ = worker(0)
    made.accept(order(i, groups=(2 * i, 2 * i + 1), stop_ids=(0,)))
    alone[i] = finish(made)[i]
  made, _ = worker(0)
  for i in range(3):
    made.accept(order(i, groups=(2 * i, 2 * i + 1), stop_ids=(0,)))
  made.accept(order(3, max_new_tokens=2))  # not alike: begins when the others have ended
  together = finish(made)
  assert made._engine.settings.max_new_tokens == 2 and len(together[3].rollouts) == 4
  for i in range(3):
    for one, other in zip(together[i].rollouts, alone[i].rollouts, strict=True):
      assert_same(one, other)
  made, _ = worker(0, chunk=9)
  made.accept(order(0))
  made.accept(order(1, groups=(2, 3)))
  assert [result.order_id for result in made.tick()] == [0, 1]  # both in one chunk of decoding


def test_seeds_and_streams_have_responses_of_their_own():
  responses = []
  for seed, stream in ((0, 0), (1, 0), (0, 1), (0, 0)):
    made, _ = worker(0)
    made.accept(order(seed=seed, stream=stream))
    responses.append(str([r.response_ids.tolist() for r in finish(made)[0].rollouts]))
  assert responses[0] == responses[3] and len(set(responses)) == 3


def test_a_float32_sampler_agrees_with_the_learner():
  """To rounding: the learner multiplies other shapes. Two samplers agree to the last bit."""
  results = []
  for _ in range(2):
    made, _ = worker(0)
    made.accept(order(groups=(0, 2)))
    results.append(finish(made)[0].rollouts)
  for one, other in zip(*results, strict=True):
    assert_same(one, other)
  tokens, mask = sampler.pad_prompts([PROMPTS[0], PROMPTS[2]])
  responses = np.stack([r.response_ids for r in results[0]]).reshape(2, 2, 9)
  zeros = np.zeros(responses.shape, np.float32)
  batch = TrainBatch(tokens, mask, responses, zeros == 0, zeros, zeros[..., 0])
  learner, _ = models.group_logprobs(WEIGHTS[0], SPEC, batch)
  behaviour = np.stack([r.behaviour_logprobs for r in results[0]]).reshape(2, 2, 9)
  np.testing.assert_allclose(behaviour, learner, atol=1e-5)


def test_weights_are_exact_or_have_noise_in_the_dose_asked_for():
  exact = prepare(WEIGHTS[0], 0, "float32", 0.0)
  jax.tree.map(np.testing.assert_array_equal, exact, WEIGHTS[0])
  one, again, next_one = (prepare(WEIGHTS[0], v, "float32", 0.01) for v in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, again)
  draws = []
  for noisy, later, clean in zip(
    *(jax.tree.leaves(x) for x in (one, next_one, WEIGHTS[0])), strict=True
  ):
    rms = np.sqrt(np.mean(np.square(clean)))
    draws.append(np.ravel((noisy - clean) / (0.01 * rms)))
    assert np.abs(noisy - later).max() > 0
  draws = np.concatenate(draws)
  assert abs(draws.mean()) < 4 / np.sqrt(len(draws))
  assert abs(draws.std() - 1) < 4 / np.sqrt(2 * len(draws))


def test_a_noisy_sampler_reports_what_really_sampled():
  made, _ = worker(0, weight_noise=0.02)
  made.accept(order())
  noisy = prepare(WEIGHTS[0], 0, "float32", 0.02)
  errors = []
  for rollout in finish(made)[0].rollouts:
    expected = learner_logprobs(noisy, rollout)
    np.testing.assert_allclose(rollout.behaviour_logprobs, expected, atol=2e-5, rtol=1e-5)
    errors.append(np.abs(rollout.behaviour_logprobs - learner_logprobs(WEIGHTS[0], rollout)).max())
  assert max(errors) > 1e-3


@pytest.mark.parametrize("plan", [(), ((0, 0),)])
def test_orders_without_noise_are_of_the_policy_itself(plan):
  """Evaluations, between noisy orders of the same version."""
  made, _ = worker(0, weight_noise=0.02)
  noisy = prepare(WEIGHTS[0], 0, "float32", 0.02)
  for id_, is_noisy in enumerate((True, False, True)):
    made.accept(dataclasses.replace(order(id_, plan=plan), noisy=is_noisy))
  results = finish(made)
  for id_, params in enumerate((noisy, WEIGHTS[0], noisy)):
    for rollout in results[id_].rollouts:
      expected = learner_logprobs(params, rollout)
      np.testing.assert_allclose(rollout.behaviour_logprobs, expected, atol=2e-5, rtol=1e-5)


def test_a_plan_that_waited_goes_on_with_noise():
  """After an order without, which was sampled meanwhile."""
  noise = {"weight_noise": 0.02, "partial_rollouts": "keep_cache"}
  plan = order(0, plan=((0, 0), (4, 1)))
  made, channel = worker(0, **noise)
  made.accept(plan)
  made.accept(dataclasses.replace(order(1, plan=((0, 0),)), noisy=False))
  results = []
  while not results:
    results += made.tick()
  assert [result.order_id for result in results] == [1]
  channel.versions.append(1)
  found = finish(made)[0].rollouts
  alone, _ = worker(0, 1, **noise)
  alone.accept(plan)
  for one, other in zip(found, finish(alone)[0].rollouts, strict=True):
    assert_same(one, other)


def test_room_for_prompts_is_what_the_order_says_whatever_was_sampled_before():
  """With other room the same numbers may be summed in another order."""
  fresh, _ = worker(0)
  used, _ = worker(0)
  for made, orders in ((fresh, (2,)), (used, (0, 1, 2))):
    rooms = {0: 90, 1: 0, 2: 20}
    for id_ in orders:
      made.accept(dataclasses.replace(order(id_), longest_prompt=rooms[id_]))
    found = []
    while not made.idle:
      made.tick()
      found.append(made._engine.longest_prompt)
    assert list(dict.fromkeys(found)) == [96, 32][-len(orders) :]


def test_times_are_told():
  made, _ = worker(0)
  made.accept(order(0))
  made.accept(order(1, groups=(2, 3)))
  results = finish(made)
  assert all(result.sample_s > 0 for result in results.values())
  assert results[0].weights_s > 0 and results[0].wait_s > 0
  assert results[1].weights_s == 0 and results[1].wait_s == 0
