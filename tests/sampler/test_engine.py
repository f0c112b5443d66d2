"""The engine: what a sequence becomes does not depend on its company; what it reports is true."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from jax.experimental.pallas.ops.gpu import decode_attention

from tests.marks import slow_but
from tests.sampler.toy import (
  KEY,
  LONGEST,
  PROMPTS,
  SPEC,
  assert_same,
  learner_logprobs,
  settings,
  weights,
)
from vespo_jax import models, sampler
from vespo_jax.sampler import decode as device
from vespo_jax.sampler import engine as engine_module

OLD, NEW = weights(0), weights(1)
forward = jax.jit(models.forward, static_argnums=1)


def engine(how=None, *, slots=24, steps=5, longest_prompt=8, spec=SPEC, params=OLD, decode=None):
  made = sampler.Engine(
    spec,
    how or settings(),
    slots=slots,
    longest_prompt=longest_prompt,
    steps=steps,
    decode=decode,
  )
  made.adopt(0, params)
  return made


def run(made, groups=range(6), late=()):
  """The rollouts of some groups by seed; those `late` are submitted after two chunks."""
  sequences = made.submit(KEY, [PROMPTS[g] for g in groups], groups)
  rounds = 0
  while made.busy:
    made.advance()
    rounds += 1
    if rounds == 2 and late:
      sequences += made.submit(KEY, [PROMPTS[g] for g in late], late)
  return {sequence.seed: sequence.rollout() for sequence in sequences}


@pytest.fixture(scope="module")
def reference():
  return run(engine())


@pytest.mark.parametrize(
  "how, groups, late",
  [
    (dict(), [5, 3, 1, 0, 2, 4], []),  # in other slots
    (dict(), [2, 0, 5], [4, 3, 1]),  # at other times
    (dict(longest_prompt=40), range(6), []),  # with room for longer company
  ],
)
def test_a_sequence_does_not_depend_on_its_company(reference, how, groups, late):
  """To the last bit, as long as as many rows are multiplied at a time."""
  found = run(engine(**how), groups, late)
  assert found.keys() == reference.keys()
  assert {r.finish for r in found.values()} == {"stop", "length"}
  for seed, rollout in found.items():
    assert_same(rollout, reference[seed])


def test_nor_on_how_many_slots_there_are(reference):
  """Slots are given again and again: the same tokens, and log-probs to rounding; to the last bit
  between runs with as many slots."""
  few = run(engine(slots=5))
  for seed, rollout in few.items():
    np.testing.assert_array_equal(rollout.response_ids, reference[seed].response_ids)
    np.testing.assert_allclose(
      rollout.behaviour_logprobs, reference[seed].behaviour_logprobs, atol=5e-6, rtol=5e-6
    )
  again = run(engine(slots=5, steps=2), [4, 5, 3, 2], [0, 1])
  for seed, rollout in again.items():
    assert_same(rollout, few[seed])


@pytest.mark.parametrize("slots", [24, 6])
def test_nor_on_how_many_lanes_decode_them(reference, monkeypatch, slots):
  """Each lane has its share of the sequences, and none another's."""
  monkeypatch.setattr(engine_module, "lanes", lambda slots: 3)
  decoded, compiled = [], device.decode

  def decode(params, spec, settings, cache, rows, *rest):
    decoded.append(int(np.sum(rows.live_B)))
    return compiled(params, spec, settings, cache, rows, *rest)

  monkeypatch.setattr(device, "decode", decode)
  found = run(engine(slots=slots))
  assert decoded[:3] == [slots // 3] * 3
  assert found.keys() == reference.keys()
  for seed, rollout in found.items():
    np.testing.assert_array_equal(rollout.response_ids, reference[seed].response_ids)
    np.testing.assert_allclose(
      rollout.behaviour_logprobs, reference[seed].behaviour_logprobs, atol=5e-6, rtol=5e-6
    )
  again = run(engine(slots=slots, steps=2), [4, 5, 3, 2], [0, 1])
  for seed, rollout in again.items():
    assert_same(rollout, found[seed])


def test_lanes_are_of_equal_sizes_and_one_for_each_core_at_most(monkeypatch):
  monkeypatch.setattr(engine_module.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
  assert [engine_module.lanes(slots) for slots in (1, 127, 128, 192, 193, 256, 768)] == [
    *(1, 1, 2, 3, 1, 2, 3)
  ]
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert engine_module.lanes(768) == 1


def test_what_fails_in_a_lane_is_raised(monkeypatch):
  monkeypatch.setattr(engine_module, "lanes", lambda slots: 2)
  made = engine()
  made.submit(KEY, PROMPTS, range(6))

  def decode(*_):
    raise RuntimeError("out of memory")

  monkeypatch.setattr(device, "decode", decode)
  with pytest.raises(RuntimeError, match="out of memory"):
    made.advance()


def test_log_probs_are_the_learners(reference):
  for rollout in reference.values():
    expected = learner_logprobs(OLD, rollout)
    np.testing.assert_allclose(rollout.behaviour_logprobs, expected, atol=1e-5, rtol=1e-5)


def test_batching_is_continuous(reference):
  """No more steps than the tokens need, up to what ends alone; far fewer than batch by batch."""
  made = engine(slots=4, steps=40)
  run(made)
  lengths = [len(rollout.response_ids) for rollout in reference.values()]
  batches = sum(max(lengths[i : i + 4]) for i in range(0, 24, 4))
  assert sum(lengths) / 4 <= made.steps_done <= sum(lengths) / 4 + max(lengths)
  assert made.steps_done < 0.85 * batches


def test_nothing_is_compiled_again_and_each_prompt_is_computed_once(reference, monkeypatch):
  computed = []
  for name, static in (
    ("decode", ("spec", "settings")),
    ("prefill", ("spec", "expert_ids", "attention")),
    ("place", ()),
  ):
    once = chex.assert_max_traces(getattr(device, name).__wrapped__, n=1)
    monkeypatch.setattr(device, name, jax.jit(once, static_argnames=static))
  compiled = device.prefill

  def prefill(params, spec, tokens_PS, lengths_P, *static):
    computed.extend(tokens_PS[row, :n].tolist() for row, n in enumerate(lengths_P) if n)
    return compiled(params, spec, tokens_PS, lengths_P, *static)

  monkeypatch.setattr(device, "prefill", prefill)
  made = engine(slots=5, steps=3)
  run(made, [0, 3], [1, 2, 4, 5])
  again = list(run(made, [5]).values())  # the same engine again
  made.replay(again)  # and its tokens given, as one group
  while made.busy:
    made.advance()
  expected = [prompt[:-1] for prompt in [*PROMPTS, PROMPTS[5], PROMPTS[5]] if len(prompt) > 1]
  assert sorted(computed) == sorted(expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_weights_change_in_flight(recompute):
  """Three tokens by the old weights, the rest by the new, with the old cache or a new one."""
  made = engine(settings(stop_ids=(), samples_per_prompt=2), steps=40)
  sequences = made.submit(KEY, PROMPTS[:3], range(3))
  assert made.advance(limit=3) == [] and made.stalled(3)
  made.adopt(7, NEW, recompute=recompute)
  made.advance()
  for rollout in (sequence.rollout() for sequence in sequences):
    np.testing.assert_array_equal(rollout.weight_versions, [0] * 3 + [7] * 9)
    found = rollout.behaviour_logprobs
    np.testing.assert_allclose(found[:3], learner_logprobs(OLD, rollout)[:3], atol=1e-5, rtol=1e-5)
    anew, kept = learner_logprobs(NEW, rollout)[3:], logprobs_with_the_old_cache(rollout)
    expected, other = (anew, kept) if recompute else (kept, anew)
    np.testing.assert_allclose(found[3:], expected, atol=2e-5, rtol=1e-5)
    assert np.abs(found[3:] - other).max() > 1e-2


def logprobs_with_the_old_cache(rollout, tokens=3):
  """Of the response after some tokens: the last of them is the first that the new weights see."""
  row = np.concatenate([rollout.prompt_ids, rollout.response_ids])
  seen = len(rollout.prompt_ids) + tokens - 1
  cache = models.init_cache(SPEC, 1, LONGEST)
  for params, part in ((OLD, row[:seen]), (NEW, row[seen:-1])):  # padded: one shape, one program
    padded = np.pad(part, (0, LONGEST - len(part)))[None]
    real = (np.arange(LONGEST) < len(part))[None]
    hidden, cache = forward(params, SPEC, padded, segments=real, cache=cache)
  logprobs = jax.nn.log_softmax(hidden[0, : len(row) - seen - 1] @ models.head_table(NEW).T)
  return np.take_along_axis(np.asarray(logprobs), row[seen + 1 :, None], axis=-1)[:, 0]


@pytest.mark.parametrize("recompute", [False, True])
def test_what_waits_is_sampled_by_the_new_weights(recompute):
  """Though its prompt was computed by the old ones, for a sample of its group that had a slot."""
  made = engine(slots=5, steps=2)
  sequences = made.submit(KEY, PROMPTS, range(6))
  made.advance()
  made.adopt(7, NEW, recompute=recompute)
  while made.busy:
    made.advance()
  counts = {0: 0, 7: 0}
  for rollout in (sequence.rollout() for sequence in sequences):
    counts[int(rollout.weight_versions[0])] += 1
    for version, params in ((0, OLD), (7, NEW)):
      tokens = rollout.weight_versions == version
      if version == 0 or recompute or tokens.all():
        np.testing.assert_allclose(
          rollout.behaviour_logprobs[tokens],
          learner_logprobs(params, rollout)[tokens],
          atol=1e-5,
          rtol=1e-5,
        )
  assert counts == {0: 5, 7: 19}


def test_rows_wait_at_a_limit(reference):
  """Stopping everywhere on the way changes nothing."""
  made = engine(slots=24, steps=2)
  sequences = made.submit(KEY, PROMPTS, range(6))
  for limit in (1, 2, 5, 11, 12):
    while not made.stalled(limit):
      made.advance(limit)
    assert all(len(s.response) == limit for s in sequences if not s.finish)
  for sequence in sequences:
    assert_same(sequence.rollout(), reference[sequence.seed])


def letters(tokens):
  return "".join("_bcdefghijk"[token] for token in tokens)


@pytest.mark.parametrize("steps", slow_but([2, 5, 40], 5))
def test_stop_strings_end_a_response_wherever_chunks_end(reference, steps):
  strings = ("cb", "ee", "j")
  made = engine(settings(stop_strings=strings), steps=steps, decode=letters)
  cut = 0
  for seed, rollout in run(made).items():
    free = reference[seed]
    text = letters(free.response_ids)
    ends = [text.index(s) + len(s) for s in strings if s in text]
    n = min(ends, default=len(text))
    cut += n < len(text)
    assert_same(rollout, dataclasses.replace(free, **first(free, n, bool(ends))))
  assert cut > 5
  with pytest.raises(ValueError, match="need a way to decode"):
    engine(settings(stop_strings=strings))


def first(rollout, n, stopped):
  fields = ("response_ids", "behaviour_logprobs", "plain_logprobs", "weight_versions")
  finish = "stop" if stopped else rollout.finish
  return {"finish": finish, **{field: getattr(rollout, field)[:n] for field in fields}}


def test_likeliest_tokens_are_reported(reference):
  """Under the distribution that was sampled: tempered, and truncated to two tokens."""
  how = settings(temperature=0.7, top_k=2, topk_logprobs=3, max_new_tokens=4)
  for rollout in run(engine(how)).values():
    row = np.concatenate([rollout.prompt_ids, rollout.response_ids])
    hidden, _ = forward(OLD, SPEC, np.pad(row, (0, LONGEST - len(row)))[None])
    start, T = len(rollout.prompt_ids), len(rollout.response_ids)
    logits = np.asarray(hidden[0] @ models.head_table(OLD).T)[start - 1 : start - 1 + T] / 0.7
    order = np.argsort(-logits, axis=-1)[:, :2]
    np.testing.assert_array_equal(rollout.topk_ids[:, :2], order)
    two = np.take_along_axis(logits, order, axis=-1)
    expected = two - np.logaddexp(two[:, :1], two[:, 1:])
    np.testing.assert_allclose(rollout.topk_logprobs[:, :2], expected, atol=2e-5)
    assert rollout.topk_logprobs.dtype == np.float32 and rollout.topk_ids.dtype == np.int32
    assert (np.exp(rollout.topk_logprobs[:, 2]) == 0).all()
    assert np.isfinite(rollout.topk_logprobs).all()
    chosen = rollout.topk_ids == rollout.response_ids[:, None]
    np.testing.assert_array_equal(rollout.topk_logprobs[chosen], rollout.behaviour_logprobs)


def test_expert_ids_are_those_of_every_token():
  spec = models.ModelSpec(
    vocab_size=11,
    width=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_width=8,
    mlp_width=12,
    experts=5,
    active_experts=2,
  )
  params = weights(2, spec)
  rollouts = run(engine(settings(expert_ids=True), spec=spec, params=params, slots=9, steps=3))
  routed = jax.jit(models.forward_routed, static_argnums=1)
  for rollout in rollouts.values():
    row = np.concatenate([rollout.prompt_ids, rollout.response_ids])
    _, _, routing = routed(params, spec, np.pad(row, (0, LONGEST - len(row)))[None])
    expected = np.moveaxis(np.asarray(routing.expert_ids_LMA), 0, 1)[: len(row)]
    assert rollout.expert_ids.dtype == np.uint8
    np.testing.assert_array_equal(rollout.expert_ids, expected)
  with pytest.raises(ValueError, match="without experts"):
    run(engine(settings(expert_ids=True)))


def test_prompts_must_fit():
  with pytest.raises(ValueError, match="longer than 8"):
    engine().submit(KEY, [[1] * 9], [0])
  with pytest.raises(ValueError, match="at least one token"):
    engine().submit(KEY, [[1], []], [0, 1])


def test_a_kernel_that_this_platform_lacks_is_refused():
  with pytest.raises(ValueError, match="'paged' needs a TPU, .* on cpu, which has 'dense'"):
    sampler.Engine(SPEC, settings(), slots=1, longest_prompt=8, steps=1, attention="paged")


@pytest.mark.slow
def test_tokens_by_a_kernel_are_those_of_plain_products(monkeypatch):
  """Interpreted, in a cache of whole pages; the platform is not asked."""
  mqa = functools.partial(decode_attention.mqa, interpret=True)
  monkeypatch.setattr(decode_attention, "mqa", mqa)
  monkeypatch.setattr(models, "check_platform", lambda kernels, name, platform: None)
  rollouts = []
  for attention in ("dense", "flash"):
    made = sampler.Engine(SPEC, settings(), slots=3, longest_prompt=8, steps=5, attention=attention)
    made.adopt(0, OLD)
    rollouts.append(run(made, groups=range(2)))
  assert rollouts[0].keys() == rollouts[1].keys()
  for one, other in zip(*(r.values() for r in rollouts), strict=True):
    np.testing.assert_array_equal(one.response_ids, other.response_ids)
    np.testing.assert_allclose(one.behaviour_logprobs, other.behaviour_logprobs, atol=1e-5)
