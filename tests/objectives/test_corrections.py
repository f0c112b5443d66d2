"""Rollout corrections against verl's and TRL's definitions."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import gradient, make_batch, parts

from vespo_jax.objectives import AGGREGATIONS, Correction, corrections, make
from vespo_jax.objectives.corrections import STATISTICS, Rejection

# --- by hand

RATIOS = np.array([[2.0, 0.6, 4.0], [1.0, 1.5, 9.0], [0.25, 2.9, 1.0]])  # products 4.8, 1.5, 0.725
MASK = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1]], bool)
ALL = [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
BY_HAND = {
  "none": ({}, ALL),
  "token_tis": ({}, [[2, 0.6, 2], [1, 1.5, 0], [0.25, 2, 1]]),
  "sequence_tis": ({}, [[2, 2, 2], [1.5, 1.5, 0], [0.725, 0.725, 0.725]]),
  "token_mis": ({}, [[2, 0.6, 0], [1, 1.5, 0], [0.25, 2.9, 1]]),
  "sequence_mis": ({}, [[0, 0, 0], [1.5, 1.5, 0], [0.725, 0.725, 0.725]]),
  "icepop": ({}, [[2, 0.6, 4], [1, 1.5, 0], [0, 2.9, 1]]),
  # the inverse geometric means are 0.593, 0.816 and 1.113; mean k3 is 0.677, 0.047 and 0.491
  "geometric_rejection": ({"low": 0.7, "high": 1.0}, [[0, 0, 0], [1, 1, 0], [0, 0, 0]]),
  "k3_rejection": ({"high": 0.6}, [[0, 0, 0], [1, 1, 0], [1, 1, 1]]),
  # the inverse products are 0.208, 0.667 and 1.379
  "sequence_tis_rejection": ({"high": 1.2}, [[0, 0, 0], [1.5, 1.5, 0], [0, 0, 0]]),
}


@pytest.mark.parametrize("name", corrections.names())
def test_by_hand(name):
  if name == "custom":  # by default the truncated token ratio
    options, expected = {}, BY_HAND["token_tis"][1]
  else:
    options, expected = BY_HAND[name]
  correction = corrections.make(name, **options)
  corrected, metrics = correction(jnp.log(RATIOS), jnp.asarray(MASK))
  expected = np.asarray(expected, float)
  np.testing.assert_allclose(corrected.weights, expected, rtol=1e-6)
  kept = MASK if "rejection" not in name else expected > 0
  np.testing.assert_array_equal(corrected.mask, kept)
  np.testing.assert_allclose(metrics["correction/rejected_fraction"], 1 - kept.sum() / 8, rtol=1e-6)
  k3 = (RATIOS - 1 - np.log(RATIOS))[MASK].mean()
  np.testing.assert_allclose(metrics["correction/kl"], k3, rtol=1e-6)
  assert correction.has_weights == (name not in ("none", "geometric_rejection", "k3_rejection"))


def test_the_published_defaults():
  """verl's C = 2 and its rejection presets, IcePop's bounds, TRL's cap of 3."""
  assert {name: corrections.defaults(name) for name in corrections.names()} == {
    "none": {},
    "token_tis": {"cap": 2.0, "normalize": False},
    "sequence_tis": {"cap": 2.0, "normalize": False},
    "token_mis": {"cap": 3.0, "normalize": False},
    "sequence_mis": {"cap": 3.0, "normalize": False},
    "icepop": {"low": 0.5, "high": 5.0, "normalize": False},
    "geometric_rejection": {"low": 0.999, "high": 1.001},
    "k3_rejection": {"high": 0.01},
    "sequence_tis_rejection": {"cap": 2.0, "low": 0.5, "high": 2.0, "normalize": False},
    "custom": {
      "level": "token",
      "action": "truncate",
      "low": 0.0,
      "high": 2.0,
      "normalize": False,
      "reject": "",
    },
  }


# --- against loops


def keeps(statistic, low, high, logs):
  """Whether each of a row's tokens stays: verl `compute_rollout_rejection_mask`."""
  of = {"k1": lambda x: -x, "k2": lambda x: x * x / 2, "k3": lambda x: math.exp(x) - 1 - x}
  over, kind = statistic.rsplit("_", 1)
  values = [of[kind](x) for x in logs]
  within = lambda v: math.log(low) <= v <= math.log(high) if kind == "k1" else v <= high
  reduce = {"seq_sum": sum, "seq_mean": lambda v: sum(v) / len(v), "seq_max": max}
  if over == "token":
    return [within(v) for v in values]
  return [within(reduce[over](values))] * len(values)


def by_loops(correction, log_ratio, mask):
  """weights, mask, log_weights_B and the tokens whose weight was out of its bounds."""
  weights, kept = np.zeros(mask.shape), np.zeros(mask.shape, bool)
  log_weights, out = np.zeros(len(mask)), np.zeros(mask.shape, bool)
  for i, row in enumerate(mask):
    logs = [log_ratio[i, t] for t in np.flatnonzero(row)]
    for place, t in enumerate(np.flatnonzero(row)):
      kept[i, t] = all(
        keeps(r.statistic, r.low, r.high, logs)[place] for r in correction.rejections
      )
      raw = {"none": 1.0, "token": math.exp(logs[place]), "sequence": math.exp(sum(logs))}
      weight = raw[correction.level]
      if correction.level != "none":
        too_low = correction.action == "mask" and weight < correction.low
        out[i, t] = weight > correction.high or too_low
        cut = correction.high if correction.action == "truncate" else 0.0
        weight = cut if out[i, t] else weight
      weights[i, t] = weight
  if correction.normalize:
    rows = [weights[i][row].mean() for i, row in enumerate(mask) if row.any()]
    weights = weights / (np.mean(rows) if correction.level == "sequence" else weights[mask].mean())
  for i, row in enumerate(mask):
    each = [math.log(max(weights[i, t], 1e-8)) for t in np.flatnonzero(row)]
    if correction.level == "sequence":
      log_weights[i] = each[0] if each else 0.0
    else:
      log_weights[i] = sum(x for x, t in zip(each, np.flatnonzero(row), strict=True) if kept[i, t])
  return weights, kept, log_weights, out


def assert_as_by_loops(correction, batch):
  log_ratio, _, mask = parts(batch)
  corrected, metrics = correction(jnp.asarray(log_ratio, jnp.float32), jnp.asarray(mask))
  weights, kept, log_weights, out = by_loops(correction, log_ratio, mask)
  np.testing.assert_array_equal(corrected.mask, kept)
  np.testing.assert_allclose(corrected.weights, np.where(kept, weights, 0.0), rtol=5e-6)
  np.testing.assert_allclose(corrected.log_weights_B, log_weights, rtol=1e-5, atol=1e-5)
  expected = {
    "weight_mean": weights[mask].mean(),
    "out_of_bounds_fraction": out[mask].mean(),
    "rejected_fraction": 1 - kept.sum() / mask.sum(),
    "kl": (np.exp(log_ratio) - 1 - log_ratio)[mask].mean(),
  }
  for key, value in expected.items():
    np.testing.assert_allclose(metrics[f"correction/{key}"], value, rtol=5e-6, atol=1e-7)
  return kept, out, mask


@pytest.mark.parametrize("name", sorted(set(corrections.names()) - {"none", "custom"}))
def test_presets_are_the_loops(name):
  options = {
    "geometric_rejection": {"low": 0.8, "high": 1.2},
    "k3_rejection": {"high": 0.1},
  }.get(name, {})
  batch = make_batch(0, spread=0.6)
  kept, out, mask = assert_as_by_loops(corrections.make(name, **options), batch)
  rejects = "rejection" in name
  assert (0 < kept[mask].mean() < 1) == rejects
  assert 0 < out[mask].mean() < 1 or rejects
  if "normalize" in corrections.defaults(name):
    assert_as_by_loops(corrections.make(name, normalize=True, **options), batch)


BOUNDS = {"k1": (0.7, 1.3), "k2": (0.0, 0.15), "k3": (0.0, 0.12)}


@pytest.mark.parametrize("statistic", STATISTICS)
def test_rejections_are_the_loops(statistic):
  kind = statistic[-2:]
  low, high = BOUNDS[kind] if "sum" not in statistic else {"k1": (0.5, 3.0)}.get(kind, (0.0, 0.6))
  batch = make_batch(1, spread=0.5)
  kept, _, mask = assert_as_by_loops(
    Correction("", rejections=(Rejection(statistic, low, high),)), batch
  )
  assert 0 < kept[mask].mean() < 1
  text = f"{statistic}:{low}_{high}" if kind == "k1" else f"{statistic}:{high}"
  parsed = corrections.make("custom", level="none", reject=text)
  assert parsed.rejections == (Rejection(statistic, low, high),)
  partly = [0 < kept[i][row].mean() < 1 for i, row in enumerate(mask) if row.any()]
  assert any(partly) == statistic.startswith("token")  # whole sequences otherwise


@pytest.mark.parametrize("level", ["none", "token", "sequence"])
@pytest.mark.parametrize("action", ["truncate", "mask"])
@pytest.mark.parametrize("normalize", [False, True])
def test_combinations_are_the_loops(level, action, normalize):
  reject = "token_k2:0.5, seq_mean_k1:0.7_1.4,seq_max_k3:0.7"
  low = 0.6 if action == "mask" else 0.0
  correction = corrections.make(
    "custom", level=level, action=action, low=low, high=1.5, normalize=normalize, reject=reject
  )
  assert len(correction.rejections) == 3
  kept, _, mask = assert_as_by_loops(correction, make_batch(2, spread=0.5))
  assert 0 < kept[mask].mean() < 1


@pytest.mark.parametrize("name", ["token_tis", "sequence_tis", "icepop", "sequence_mis"])
def test_normalised_weights_have_mean_one_after_the_bounds(name):
  log_ratio, _, mask = parts(make_batch(3))
  log_ratio = jnp.asarray(log_ratio, jnp.float32)
  plain, _ = corrections.make(name)(log_ratio, jnp.asarray(mask))
  scaled, metrics = corrections.make(name, normalize=True)(log_ratio, jnp.asarray(mask))
  if name.startswith("sequence"):  # one weight per sequence: over sequences
    rows = mask.any(1)
    mean = (np.asarray(scaled.weights).max(1)[rows]).mean()
  else:
    mean = np.asarray(scaled.weights)[mask].mean()
    np.testing.assert_allclose(metrics["correction/weight_mean"], 1.0, rtol=1e-6)
  np.testing.assert_allclose(mean, 1.0, rtol=1e-6)
  ratio = np.asarray(scaled.weights)[mask] / np.maximum(np.asarray(plain.weights)[mask], 1e-30)
  nonzero = np.asarray(plain.weights)[mask] > 0
  np.testing.assert_allclose(ratio[nonzero], ratio[nonzero][0], rtol=1e-6)  # one factor for all


def test_normalised_zeros_stay_zeros():
  log_ratio, mask = jnp.full((2, 3), 5.0), jnp.ones((2, 3), bool)
  corrected, _ = corrections.make("token_mis", normalize=True)(log_ratio, mask)
  assert not np.asarray(corrected.weights).any()


def test_weights_are_held_to_twenty_nats():
  for level in ("token", "sequence"):
    unbounded = corrections.make("custom", level=level, high=math.inf)
    corrected, _ = unbounded(jnp.asarray([[100.0], [-100.0]]), jnp.ones((2, 1), bool))
    np.testing.assert_allclose(corrected.weights, np.exp([[20.0], [-20.0]]), rtol=1e-6)


def test_what_cancels_in_a_sequence_is_not_bounded_token_by_token():
  log_ratio, mask = jnp.asarray([[30.0, -30.5], [30.0, -20.0]]), jnp.ones((2, 2), bool)
  corrected, _ = corrections.make("sequence_tis")(log_ratio, mask)
  np.testing.assert_allclose(corrected.weights, [[np.exp(-0.5)] * 2, [2.0] * 2], rtol=1e-6)
  for statistic, low, high in (("seq_sum_k1", 1.6, 1.7), ("seq_mean_k1", 1.2, 1.3)):
    reject = corrections.make("custom", level="none", reject=f"{statistic}:{low}_{high}")
    assert reject(log_ratio, mask)[0].mask.tolist() == [[True] * 2, [False] * 2]


def test_bounds_are_inclusive():
  one, mask = jnp.zeros((1, 1)), jnp.ones((1, 1), bool)
  for options in ({"low": 1.0, "high": 2.0}, {"low": 0.5, "high": 1.0}):
    corrected, _ = corrections.make("icepop", **options)(one, mask)
    assert corrected.weights[0, 0] == 1.0
    corrected, _ = corrections.make("geometric_rejection", **options)(one, mask)
    assert corrected.mask[0, 0]


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("correction", ["k3_rejection", "custom"])
def test_a_rejected_token_leaves_the_loss_and_its_denominator(mode, correction):
  batch = make_batch(4, spread=0.4)
  log_ratio, _, mask = parts(batch)
  options = {"high": 0.08} if correction == "k3_rejection" else {"reject": "token_k2:0.05"}
  options |= {} if correction == "k3_rejection" else {"level": "none"}
  made = corrections.make(correction, **options)
  kept = by_loops(made, log_ratio, mask)[1]
  assert 0 < kept.sum() < mask.sum() and kept.any(1).sum() < mask.any(1).sum()
  corrected = gradient(make("reinforce"), batch, correction=made, aggregation=mode)
  without = gradient(make("reinforce"), {**batch, "mask": kept}, aggregation=mode)
  np.testing.assert_allclose(corrected, without, rtol=1e-6)
  of_sequences = gradient(make("gspo"), batch, correction=made, aggregation=mode)
  without = gradient(make("gspo"), {**batch, "mask": kept}, aggregation=mode)
  np.testing.assert_allclose(of_sequences, without, rtol=1e-6)


# --- what is refused, and what is finite


@pytest.mark.parametrize(
  "options,match",
  [
    ({"level": "word"}, "level='word'.*none, token, sequence"),
    ({"action": "clip"}, "action='clip'.*truncate, mask"),
    ({"reject": "token_k4:1"}, "reject='token_k4:1'.*statistic.*token_k1"),
    ({"reject": "seq_max_k1:0.5_2"}, "statistic must be one of"),
    ({"reject": "0.5"}, "statistic must be one of"),
    ({"reject": "token_k3"}, "bounds must be numbers"),
    ({"reject": "token_k3:"}, "bounds must be numbers"),
    ({"reject": "token_k3:high"}, "bounds must be numbers"),
    ({"reject": "token_k1:2"}, "low_high, ratios above 0"),
    ({"reject": "token_k1:0.5_2_3"}, "low_high, ratios above 0"),
    ({"reject": "token_k1:0_2"}, "low_high, ratios above 0"),
    ({"reject": "token_k2:0.5_2"}, "one number above 0"),
    ({"reject": "token_k2:-1"}, "one number above 0"),
    ({"reject": "token_k2:0"}, "one number above 0"),
    ({"reject": "token_k2:1,token_k9:1"}, "reject='token_k9:1'"),
    ({"low": 0.5}, "low=0.5 is of action='mask'"),
    ({"level": "none"}, "corrects nothing"),
  ],
)
def test_what_custom_refuses(options, match):
  with pytest.raises(ValueError, match=match):
    corrections.make("custom", **options)


@pytest.mark.parametrize("reject", ["token_k1:0.5_-2", "token_k1:0.5_0", "token_k3:nan"])
def test_custom_refuses_bounds_that_nothing_can_be_within(reject):
  with pytest.raises(ValueError, match="above 0"):
    corrections.make("custom", reject=reject)


def test_unknown_corrections_are_refused():
  with pytest.raises(ValueError, match="unknown correction 'tis'.*token_tis"):
    corrections.make("tis")
  with pytest.raises(ValueError, match="unknown correction"):
    gradient(make("reinforce"), make_batch(), correction="tis")


log_ratios = st.lists(
  st.floats(-1e4, 1e4) | st.sampled_from([-1e4, 1e4, 0.0, math.inf]), min_size=6, max_size=6
)


@settings(deadline=None, max_examples=40)
@given(log_ratios, st.lists(st.booleans(), min_size=6, max_size=6))
def test_finite_for_any_log_ratios(values, kept):
  log_ratio, mask = np.float32(values).reshape(2, 3), np.asarray(kept).reshape(2, 3)
  custom = {"reject": ",".join(f"{s}:{'0.5_2' if s[-1] == '1' else 0.5}" for s in STATISTICS)}
  for name in corrections.names():
    options = custom if name == "custom" else {}
    if "normalize" in corrections.defaults(name):
      options = {**options, "normalize": True}
    corrected, metrics = corrections.make(name, **options)(
      jnp.asarray(log_ratio), jnp.asarray(mask)
    )
    for x in (corrected.weights, corrected.log_weights_B, *metrics.values()):
      assert np.isfinite(x).all()
    assert (np.asarray(corrected.weights)[~mask] == 0).all()
    assert not (np.asarray(corrected.mask) & ~mask).any()
