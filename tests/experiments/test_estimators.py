"""The estimator lab: exact where it says so, and whole from command to figures."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.estimators import (
  __main__,
  engines,
  estimates,
  exact,
  families,
  kernels,
  monte_carlo,
  policy,
  run,
  tree,
)
from experiments.estimators.presets import PRESETS
from vespo_jax import advantages, models, objectives

PRESET = PRESETS["smoke"]
COMMON = "seq-mean-token-sum"
STALE = 12  # updates


@functools.cache
def world():
  """A stale behaviour policy, a policy, and the setting they make."""
  responses = tree.enumerate_responses(3, 4)
  rewards_B = tree.rewards(responses)
  start = policy.initial(PRESET.spec, seed=1)
  path = engines.ascent(start, PRESET.spec, responses, rewards_B, learning_rate=3e-3)
  params = next(itertools.islice(path, STALE, None))[0]
  target = estimates.make_target(params, PRESET.spec, responses, rewards_B)
  behaviour_BT = responses.along(policy.log_probs(start, PRESET.spec, responses))
  return params, estimates.Setting("staleness", STALE, target, behaviour_BT)


def numbers(name, setting, aggregation=COMMON, batch_size=8):
  weights_BT = exact.token_weights(objectives.make(name), setting)
  return exact.moments(setting, weights_BT, aggregation, [batch_size])[0].numbers()


def on_policy():
  _, setting = world()
  return estimates.Setting("staleness", 0, setting.target, setting.target.logprobs_BT)


def test_the_tree_holds_every_response_once():
  _, setting = world()
  responses = setting.target.tree
  texts = {tuple(row[:n]) for row, n in zip(responses.tokens_BT, responses.lengths_B, strict=True)}
  assert len(texts) == len(responses.tokens_BT) == 1 + 2 + 4 + 8 + 16
  for logprobs_BT in (setting.target.logprobs_BT, setting.behaviour_BT):
    assert np.exp(logprobs_BT.sum(axis=1)).sum() == pytest.approx(1.0, abs=1e-12)


def test_its_log_probs_are_the_models():
  params, setting = world()
  responses = setting.target.tree
  begin_B1 = np.full((len(responses.tokens_BT), 1), tree.END)
  rows = np.concatenate([begin_B1, responses.tokens_BT], axis=1)
  logprobs, _ = models.token_logprobs(params, PRESET.spec, rows)
  expected_BT = np.where(responses.mask_BT, logprobs[:, 1:], 0.0)
  np.testing.assert_allclose(setting.target.logprobs_BT, expected_BT, atol=1e-5)


def test_the_gradient_is_that_of_the_expected_reward():
  params, setting = world()
  target = setting.target
  grads = jax.grad(policy.expected_reward)(params, PRESET.spec, target.tree, target.rewards_B)
  gradient_Z, _ = ravel_pytree(grads)
  size = np.linalg.norm(gradient_Z)
  assert size > 0.1
  np.testing.assert_allclose(target.gradient_Z, gradient_Z, atol=1e-5 * size)


def test_sequence_is_has_no_bias_under_a_stale_policy_and_reinforce_has():
  _, setting = world()
  assert estimates.conditions(setting)["ess_fraction"] < 0.9
  assert numbers("sequence_is", setting)["bias"] < 1e-12
  assert numbers("reinforce", setting)["bias"] > 0.05
  assert numbers("reinforce", on_policy())["bias"] < 1e-12


def test_every_exact_method_is_reinforce_on_policy():
  expected = numbers("reinforce", on_policy())
  for name in objectives.names():
    if not objectives.make(name).batch_wide:
      assert numbers(name, on_policy()) == pytest.approx(expected, abs=1e-9), name


def test_the_variance_of_a_mean_over_sequences_falls_with_their_number():
  _, setting = world()
  single, batch = (numbers("vespo", setting, batch_size=n) for n in (1, 8))
  assert batch["variance"] == pytest.approx(single["variance"] / 8, rel=1e-9)
  assert batch["bias"] == pytest.approx(single["bias"], rel=1e-9)


@pytest.mark.parametrize("aggregation", [COMMON, "seq-mean-token-mean", "token-mean"])
def test_sampling_agrees_with_enumeration(aggregation):
  _, setting = world()
  batches = monte_carlo.draw(setting, batches=8000, batch_size=6, seed=0)
  weights_JRT = monte_carlo.token_weights(objectives.make("vespo"), setting, batches)
  sampled = monte_carlo.numbers(setting, batches, weights_JRT, aggregation)
  for key, value in numbers("vespo", setting, aggregation, batch_size=6).items():
    error = sampled[f"{key}_se"]
    assert error < 0.1 * max(abs(value), 0.1), key  # the interval says something
    assert abs(sampled[key] - value) < 3 * error, key


def test_grouped_advantages_are_those_of_the_group():
  _, setting = world()
  batches = monte_carlo.draw(setting, batches=20, batch_size=8, seed=0)
  grouped = monte_carlo.in_groups(
    batches, setting.target.rewards_B, advantages.make("dr_grpo"), group_size=4
  )
  rewards = setting.target.rewards_B[batches.rows_JR].reshape(20, 2, 4)
  expected = rewards - rewards.mean(axis=2, keepdims=True)
  np.testing.assert_allclose(grouped.advantages_JR, expected.reshape(20, 8), atol=1e-6)


def test_families_are_found_by_probing():
  found = {name: families.family(objectives.make(name)) for name in ("vespo", "gspo", "sapo")}
  found |= {name: families.family(objectives.make(name)) for name in ("grpo", "dppo_tv", "m2po")}
  assert list(found.values()) == [
    families.SEQUENCE,
    families.NORMALISED,
    families.TOKEN,
    families.CLIP,
    families.DIVERGENCE,
    families.BATCH,
  ]
  assert families.family(objectives.make("reinforce")) == families.NONE


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_integral_of_the_kernel_is_its_surrogate(advantage):
  vespo = objectives.make("vespo")
  f_W = kernels.integral(kernels.phi(vespo, advantage))
  np.testing.assert_allclose(f_W, kernels.surrogate(vespo, advantage), atol=1e-3)


@pytest.mark.slow
def test_the_smoke_run_writes_everything(tmp_path, capsys):
  assert __main__.main(["--preset=smoke", f"--out={tmp_path}"]) == 0
  rows = [json.loads(line) for line in (tmp_path / "results.jsonl").open()]
  assert {row["objective"] for row in rows} == set(objectives.names())
  assert {row["sweep"] for row in rows} == {"staleness", "drift", "noise", "rounding", "length"}
  for row in rows:
    assert np.isfinite([v for v in row.values() if isinstance(v, float)]).all(), row
    assert row["method"] == "exact" or row["signal_se"] >= 0
    assert row["table"] == "own" or row["aggregation"] == run.COMMON
  unbiased = [r["bias"] for r in rows if (r["objective"], r["table"]) == ("sequence_is", "common")]
  assert max(unbiased) < 1e-9
  page, output = (tmp_path / "table.md").read_text(), capsys.readouterr().out
  for name in objectives.names():
    assert name in page and name in output
  assert "Where VESPO wins, and where it does not" in output
  figures = {path.stem for path in tmp_path.glob("*.png")}
  assert figures >= {"overview", "kernels", "bias_variance", "cosine_staleness"}
  assert figures >= {f"signal_{sweep}" for sweep in ("staleness", "drift", "noise", "length")}


@pytest.mark.parametrize("arguments", [["--preset=huge"], ["--sizes=3"], ["--out={file}"]])
def test_bad_arguments_end_with_one_message(arguments, tmp_path, capsys):
  file = tmp_path / "file"
  file.touch()
  try:
    code = __main__.main([argument.format(file=file) for argument in arguments])
  except SystemExit as error:
    code = error.code
  assert code == 2
  assert capsys.readouterr().err.count("error:") == 1
