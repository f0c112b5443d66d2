"""Honest workers are believed whatever their engine and staleness; liars are not."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import slow_but
from vespo_jax import models, sampler
from vespo_jax.learner.batching import make_batch
from vespo_jax.learner.evidence import calibration, disagreement, fingerprints
from vespo_jax.learner.integrity import Monitor, Thresholds, judge
from vespo_jax.types import Rollout

V, ROWS, WIDTH, R = 16, 8, 48, 4


def log_softmax(x):
  return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def rollout(tokens, logprobs, version, group_id=0):
  return Rollout(
    prompt_ids=np.zeros(1, np.int32),
    response_ids=np.asarray(tokens, np.int32),
    behaviour_logprobs=np.asarray(logprobs, np.float32),
    plain_logprobs=np.asarray(logprobs, np.float32),
    weight_versions=np.full(len(tokens), version, np.int32),
    finish="stop",
    group_id=group_id,
  )


class World:
  """A policy that is a table of logits for 64 contexts and drifts a step an update."""

  def __init__(self, seed, updates, step=0.03, engine=0.01, keep=V):
    self.rng = np.random.default_rng(seed)
    steps = self.rng.normal(size=(updates, 64, V)) * step
    self.logits = self.rng.normal(size=(64, V)) * 1.5 + np.cumsum(steps, axis=0)
    self.engine, self.keep = engine, keep

  def result(self, update, lag, claimed=None, rows=ROWS):
    """Rollouts sampled `lag` updates ago by a noisy engine, and the policy's log ratios."""
    contexts = self.rng.integers(0, 64, (rows, WIDTH))
    noise = self.engine * self.rng.normal(size=(64, V))
    logits = self.logits[update - lag] + noise
    kept = np.argsort(np.argsort(-logits, axis=-1), axis=-1) < self.keep
    behaviour = log_softmax(np.where(kept, logits, -1e9))[contexts]
    tokens = (behaviour + self.rng.gumbel(size=behaviour.shape)).argmax(axis=-1)
    pick = lambda x: np.take_along_axis(x, tokens[..., None], axis=-1)[..., 0].astype(np.float32)
    policy_BT = pick(log_softmax(self.logits[update])[contexts])
    lengths = self.rng.integers(1, WIDTH + 1, rows)
    version = update - (lag if claimed is None else claimed)
    rollouts = [
      rollout(t[:n], x[:n], version, group_id=update * 2 + i // R)
      for i, (t, x, n) in enumerate(zip(tokens, pick(behaviour), lengths, strict=True))
    ]
    return rollouts, policy_BT


def log_ratios(rollouts, policy_BT):
  ratios_BT = np.full(policy_BT.shape, np.nan, np.float32)  # padding may hold anything
  for row, r in enumerate(rollouts):
    n = len(r.response_ids)
    ratios_BT[row, :n] = policy_BT[row, :n] - r.behaviour_logprobs
  return ratios_BT


def honest_stream(world, updates, workers, most_lag, thresholds=None):
  """The monitor and all verdicts of a stream whose lags grow up to `most_lag`."""
  monitor, verdicts = Monitor(), []
  thresholds = thresholds or Thresholds()
  for update in range(updates):
    lag = min(update, int(world.rng.integers(0, 2 + most_lag * update // updates)))
    rollouts, policy_BT = world.result(update, lag)
    ratios_BT = log_ratios(rollouts, policy_BT)
    monitor, verdict = judge(monitor, thresholds, update % workers, rollouts, ratios_BT, update)
    verdicts.append(verdict)
  return monitor, verdicts


@pytest.mark.parametrize(
  ("workers", "most_lag", "step", "engine"),
  [
    (4, 40, 0.03, 0.01),  # bfloat16 or so
    (4, 40, 0.03, 0.1),  # int8 or worse
    (3, 40, 0.0, 1e-7),  # nothing but rounding
    (1, 20, 0.1, 0.0),
    (2, 20, 0.3, 0.01),  # a ratio of a token is often beyond 3
  ],
)
def test_an_honest_worker_is_never_flagged(workers, most_lag, step, engine):
  world = World(seed=workers, updates=600, step=step, engine=engine)
  _, verdicts = honest_stream(world, 600, workers, most_lag)
  assert {verdict.status for verdict in verdicts} == {"ok"}
  assert max(verdict.score for verdict in verdicts) < 0.85  # with room to spare


@pytest.mark.parametrize("tail", [1.5, 2.0, 2.5])
def test_heavy_tails_of_stale_weights_are_no_lie(tail):
  """A hundredth of the tokens have ratios whose mean, 1, lies beyond what a result has seen."""
  world, rng, monitor, scores = World(seed=7, updates=60), np.random.default_rng(0), Monitor(), []
  for update in range(60):
    rollouts, policy_BT = world.result(update, lag=0, rows=96)
    deviations_BT = np.where(rng.random(policy_BT.shape) < 0.01, tail, 0.02)
    ratios_BT = rng.normal(size=policy_BT.shape) * deviations_BT - deviations_BT**2 / 2
    monitor, verdict = judge(monitor, Thresholds(), 0, rollouts, ratios_BT, update)
    scores.append(verdict.score)
  assert max(scores) < 0.85


def scaled(factor):
  def lie(world, update):
    rollouts, policy_BT = world.result(update, lag=2)
    for r in rollouts:
      r.behaviour_logprobs = np.float32(factor) * r.behaviour_logprobs
    return rollouts, policy_BT

  return lie


def older_weights(world, update):
  return world.result(update, lag=24, claimed=2)


def swapped_logprobs(world, update):
  rollouts, policy_BT = world.result(update, lag=2)
  lengths = [len(r.response_ids) for r in rollouts]
  pool = np.concatenate([r.behaviour_logprobs for r in rollouts[::-1]])
  for r, part in zip(rollouts, np.split(pool, np.cumsum(lengths)[:-1]), strict=True):
    r.behaviour_logprobs = part
  return rollouts, policy_BT


def swapped_tokens(world, update):
  """The tokens of the right rows come with the log-probs of other rows' contexts."""
  rollouts, policy_BT = world.result(update, lag=2)
  return rollouts, np.roll(policy_BT, 1, axis=0)


def future_weights(world, update):
  return world.result(update, lag=0, claimed=-1)


LIES = [scaled(0.8), scaled(1.2), older_weights, swapped_logprobs, swapped_tokens, future_weights]


@pytest.mark.parametrize("workers", [1, 4])
def test_every_lie_is_seen_at_once_after_an_honest_past(workers):
  updates = 200
  world = World(seed=9, updates=updates + 1)
  monitor, _ = honest_stream(world, updates, workers, most_lag=24)
  for lie in LIES:
    for _ in range(20):
      rollouts, policy_BT = lie(world, updates)
      ratios_BT = log_ratios(rollouts, policy_BT)
      after, verdict = judge(monitor, Thresholds(), 0, rollouts, ratios_BT, updates)
      assert verdict.status != "ok", lie
      if after.workers["0"].disagreement or workers > 1:
        assert after.workers["0"].disagreement == monitor.workers["0"].disagreement
      else:  # nobody but its own past says so
        assert verdict.status == "quarantined" and verdict.reason.startswith("it disagrees")
      assert after.workers["0"].calibration == monitor.workers["0"].calibration


@pytest.mark.parametrize("lie", [scaled(0.8), scaled(1.2), future_weights])
def test_lies_about_logprobs_need_no_history(lie):
  world = World(seed=3, updates=30)
  for _ in range(20):
    rollouts, policy_BT = lie(world, 20)
    ratios_BT = log_ratios(rollouts, policy_BT)
    _, verdict = judge(Monitor(), Thresholds(), 0, rollouts, ratios_BT, 20)
    assert verdict.status != "ok"


def test_half_a_percent_is_seen_in_the_average_and_three_in_a_row_quarantine():
  world = World(seed=1, updates=60)
  statuses = {1.0: [], 0.995: []}
  for factor, seen in statuses.items():
    monitor = Monitor()
    for update in range(2, 60):
      rollouts, policy_BT = scaled(factor)(world, update)
      ratios_BT = log_ratios(rollouts, policy_BT)
      monitor, verdict = judge(monitor, Thresholds(), 0, rollouts, ratios_BT, update)
      seen.append(verdict.status)
  assert set(statuses[1.0]) == {"ok"}
  assert statuses[0.995][0] == "ok"  # one result is not enough
  assert statuses[0.995].count("ok") < 20
  in_a_row = "".join(status[0] for status in statuses[0.995])
  assert "ffq" in in_a_row and "fff" not in in_a_row and "qq" not in in_a_row


def test_a_liar_from_the_start_among_four_is_the_only_one_flagged():
  updates = 160
  world, monitor, flagged = World(seed=2, updates=updates), Monitor(), []
  for update in range(32, updates):
    worker = update % 4
    rollouts, policy_BT = world.result(update, lag=24 if worker == 0 else 2, claimed=2)
    ratios_BT = log_ratios(rollouts, policy_BT)
    monitor, verdict = judge(monitor, Thresholds(), worker, rollouts, ratios_BT, update)
    flagged += [worker] * (verdict.status != "ok")
  assert set(flagged) == {0} and len(flagged) > 0.8 * (updates - 32) / 4


def test_when_the_policy_jumps_nobody_is_quarantined():
  """All workers disagree more from one update on: most of them flagged means it is not them."""
  world = World(seed=4, updates=200)
  world.logits[150:] += np.cumsum(world.rng.normal(size=(50, 64, V)) * 0.08, axis=0)
  _, verdicts = honest_stream(world, 200, 4, most_lag=4)
  statuses = [verdict.status for verdict in verdicts]
  assert "flagged" in statuses[150:] and "quarantined" not in statuses
  assert set(statuses[190:]) == {"ok"}  # and the averages have followed


@pytest.mark.parametrize("workers", [1, 2])
def test_one_or_two_workers_are_accused_once_when_the_policy_moves_faster(workers):
  world = World(seed=4, updates=300)
  world.logits[150:] += np.cumsum(world.rng.normal(size=(150, 64, V)) * 0.12, axis=0)
  _, verdicts = honest_stream(world, 300, workers, most_lag=4)
  statuses = [verdict.status for verdict in verdicts]
  assert set(statuses[:150]) == {"ok"} and set(statuses[200:]) == {"ok"}
  accused = [status for status in statuses[150:200] if status != "ok"]
  assert "quarantined" in accused and len(accused) <= 4 * workers


def test_truncated_sampling_is_calibrated_only_to_its_kept_mass():
  world = World(seed=5, updates=100, keep=6)
  _, verdicts = honest_stream(world, 100, 2, 8)
  assert {verdict.status for verdict in verdicts[-10:]} != {"ok"}
  _, verdicts = honest_stream(world, 100, 2, 8, Thresholds(calibrated=False))
  assert {verdict.status for verdict in verdicts} == {"ok"}


def test_replays_are_seen_and_honest_repeats_are_not():
  world = World(seed=6, updates=40)
  rollouts, policy_BT = world.result(30, lag=0)
  ratios_BT = log_ratios(rollouts, policy_BT)
  monitor, verdict = judge(Monitor(), Thresholds(), 0, rollouts, ratios_BT, 30)
  assert verdict.status == "ok"
  again = [dataclasses.replace(r, group_id=999, sample_seed=7) for r in rollouts]
  _, verdict = judge(monitor, Thresholds(), 1, again[::-1], ratios_BT[::-1], 30)
  assert verdict.status == "quarantined" and "came before" in verdict.reason
  one = world.result(31, lag=0)[0][:-1] + [max(again, key=lambda r: len(r.response_ids))]
  _, verdict = judge(monitor, Thresholds(), 1, one, np.zeros((ROWS, WIDTH)), 31)
  assert verdict.status == "quarantined"

  short = [rollout([3, 1], [-2.0, -1.5], 0, group_id=i) for i in range(4)]  # anyone may say that
  assert fingerprints(short, 30.0) == []
  group = [rollout([i, i + 1], [-7.0, -7.0], 0) for i in range(4)]
  assert fingerprints(group[::-1], 30.0) == fingerprints(group, 30.0) != []
  assert fingerprints(group[:2], 30.0) == []

  few = dataclasses.replace(monitor, seen=monitor.seen[-2:])
  limited = Thresholds(window=3)
  assert len(judge(few, limited, 0, *_honest(world, 32))[0].seen) == 3


def _honest(world, update):
  rollouts, policy_BT = world.result(update, lag=0)
  return rollouts, log_ratios(rollouts, policy_BT), update


def test_statistics_by_hand():
  ratios = np.array([2.0, 0.5, 1.0, 1.0])
  z = (1.0 - 0.5) / np.sqrt(1.0 + 0.25 + 4e-6)
  np.testing.assert_allclose(calibration(np.log(ratios), 1e-3), z, rtol=1e-9)
  assert calibration(np.zeros(0), 1e-3) == 0.0
  assert abs(calibration(np.full(1000, 1e-6), 1e-3)) < 0.1  # rounding is no evidence
  levels = disagreement(np.array([0.1, -0.3, 0.0, 5.0]), np.array([0, 0, 3, 40]), 0.01)
  expected = {"0": 0.21, "2": 0.01, "32": 5.01}
  assert levels.keys() == expected.keys()
  for lag, level in expected.items():
    np.testing.assert_allclose(levels[lag], [np.log(level), 1 / (2**0.5 if lag == "0" else 1)])


def test_the_state_survives_json_and_goes_on_the_same():
  world = World(seed=7, updates=60)
  monitor, _ = honest_stream(world, 50, 2, 8)
  restored = Monitor.from_dict(json.loads(json.dumps(monitor.to_dict())))
  assert restored == monitor
  rollouts, policy_BT = older_weights(world, 50)
  ratios_BT = log_ratios(rollouts, policy_BT)
  outcomes = [judge(m, Thresholds(), 1, rollouts, ratios_BT, 50) for m in (monitor, restored)]
  assert outcomes[0] == outcomes[1]


# -- a real policy ---------------------------------------------------------------------------------

SPEC = models.ModelSpec(
  vocab_size=32, width=32, layers=1, heads=4, kv_heads=2, head_width=8, mlp_width=64
)
SETTINGS = sampler.Settings(max_new_tokens=16, samples_per_prompt=8)
PROMPTS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]


def int8(leaf):
  scale = np.abs(leaf).max() / 127
  return (np.round(leaf / scale) * scale).astype(np.float32)


ENGINES = {"float32": lambda x: x, "bfloat16": lambda x: x.astype(jnp.bfloat16), "int8": int8}


@pytest.fixture(scope="module")
def versions():
  """A policy with opinions, and 30 updates of it in a noisy direction."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), models.init(SPEC, jax.random.key(0)))
  normal = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)
  direction = jax.tree.map(normal, params)
  out = [params]
  for _ in range(30):
    out.append(jax.tree.map(lambda x, d: x + 0.002 * (d + normal(x)), out[-1], direction))
  return out


@pytest.fixture(scope="module")
def recompute():
  """`(params, rollouts) -> log ratios [B, T]` by the trainer's own forward pass."""

  @jax.jit
  def score(params, batch):
    logprobs_PRT, _ = models.group_logprobs(params, SPEC, batch)
    return (logprobs_PRT - batch.behaviour_logprobs_PRT).reshape(-1, SETTINGS.max_new_tokens)

  def run(params, rollouts):
    batch, _ = make_batch(rollouts, SETTINGS.samples_per_prompt, SETTINGS.max_new_tokens, 0)
    return np.asarray(score(params, batch))

  return run


@pytest.mark.parametrize("engine", slow_but(ENGINES, "bfloat16"))
def test_a_real_policy_sampled_honestly_and_with_lies(versions, recompute, engine):
  thresholds, count = Thresholds(), iter(range(10_000))

  def sampled(version, claimed=None):
    params = jax.tree.map(ENGINES[engine], versions[version])
    n = next(count)
    return sampler.generate(
      params, SPEC, PROMPTS, jax.random.key(1), SETTINGS,
      group_ids=range(4 * n, 4 * n + 4), weight_version=version if claimed is None else claimed,
    )  # fmt: skip

  monitor, false_alarms = Monitor(), 0
  for i in range(60):
    update = i // 2
    rollouts = sampled(max(0, update - i // 10 - i % 2))  # staleness grows
    ratios_BT = recompute(versions[update], rollouts)
    monitor, verdict = judge(monitor, thresholds, i % 3, rollouts, ratios_BT, update)
    false_alarms += verdict.status != "ok"
  assert false_alarms == 0

  def times(factor):
    return [
      dataclasses.replace(r, behaviour_logprobs=np.float32(factor) * r.behaviour_logprobs)
      for r in sampled(28)
    ]

  def exchanged(field):
    rollouts = sampled(28)
    others = rollouts[9:] + rollouts[:9]
    return [
      dataclasses.replace(r, **{field: getattr(o, field)})
      for r, o in zip(rollouts, others, strict=True)
    ]

  honest = sampled(28)
  known, _ = judge(monitor, thresholds, 1, honest, recompute(versions[30], honest), 30)
  lies = {
    "scaled by 0.8": lambda: times(0.8),
    "weights of version 4": lambda: sampled(4, claimed=28),
    "swapped log-probs": lambda: exchanged("behaviour_logprobs"),
    "swapped tokens": lambda: exchanged("response_ids"),
    "replayed": lambda: [dataclasses.replace(r, group_id=r.group_id + 10**6) for r in honest],
  }
  for name, lie in lies.items():
    caught = 0
    for _ in range(5):
      rollouts = lie()
      ratios_BT = recompute(versions[30], rollouts)
      before = known if name == "replayed" else monitor
      caught += judge(before, thresholds, 0, rollouts, ratios_BT, 30)[1].status != "ok"
    assert caught == 5, f"{name}: {caught} of 5"
