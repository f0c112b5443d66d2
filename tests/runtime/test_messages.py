"""Orders and results on the wire, and what is refused: bytes that are none, answers to nothing."""

import dataclasses

import msgpack
import numpy as np
import pytest
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.example import SPEC, answer, order, same_rollouts
from vespo_jax.runtime import messages
from vespo_jax.runtime.checks import check_result
from vespo_jax.runtime.links import Fault, Heartbeat
from vespo_jax.sampler import Result


def test_orders_survive_the_wire():
  sent = dataclasses.replace(order(3, version=2, plan=((0, 2), (3, 4))), noisy=False)
  sent = dataclasses.replace(sent, longest_prompt=7)
  received = messages.decode_order(messages.encode(sent))
  assert [list(prompt) for prompt in received.prompts] == sent.prompts
  assert dataclasses.replace(received, prompts=sent.prompts) == sent
  assert messages.decode_order(messages.encode(order())).plan == ()


def test_results_survive_the_wire():
  sent = answer(order())
  rng = np.random.default_rng(0)
  for row, rollout in enumerate(sent.rollouts):  # every length another, down to none at all
    for field in ("response_ids", "behaviour_logprobs", "plain_logprobs", "weight_versions"):
      setattr(rollout, field, getattr(rollout, field)[: row % 4])
    rollout.topk_ids = rng.integers(0, 11, (row % 4, 2)).astype(np.int32)
    rollout.topk_logprobs = -rng.random((row % 4, 2)).astype(np.float32)
    rollout.expert_ids = rng.integers(0, 9, (row + 1, 2, 3)).astype(np.uint8)
  sent.wait_s, sent.weights_s = 0.25, 0.125
  received = messages.decode_reply(messages.encode(sent))
  same_rollouts(received.rollouts, sent.rollouts)
  assert received.rollouts[0].expert_ids.dtype == np.uint8
  assert dataclasses.replace(received, rollouts=[]) == dataclasses.replace(sent, rollouts=[])


def test_other_words_survive_the_wire():
  assert messages.decode_reply(messages.encode(Heartbeat(17))) == Heartbeat(17)
  with pytest.raises(Fault, match="it failed:\nTraceback") as caught:
    messages.decode_reply(messages.encode_error("Traceback ..."))
  assert caught.value.kind == "died"


VALID = messages.encode(answer(order()))


@settings(max_examples=300, deadline=None)
@given(
  st.binary(max_size=100)
  | st.builds(
    lambda at, new, cut: VALID[:at] + new + VALID[at + len(new) :][:cut],
    st.integers(0, len(VALID)),
    st.binary(min_size=1, max_size=8),
    st.integers(0, 2 * len(VALID)),
  )
)
def test_no_bytes_break_the_reader(data):
  """Any bytes are a result, a heartbeat or a fault with a kind; a mutilated result never passes
  as the answer unless every field of it still is one."""
  try:
    message = messages.decode_reply(data)
    if isinstance(message, Result):
      check_result(message, order(), newest=0, vocab_size=SPEC.vocab_size)
  except Fault as fault:
    assert fault.kind in ("malformed", "non_finite", "stale", "died")


def test_a_message_that_contradicts_itself_is_refused():
  message = serialization.msgpack_restore(VALID)
  for lengths, reason in (([3, 3, 3, 3, 3, 4], "18 values and lengths"), ([-3] + [3] * 7, "18")):
    data = serialization.msgpack_serialize(message | {"plain_logprobs_lengths": np.array(lengths)})
    with pytest.raises(Fault, match=f"plain_logprobs has {reason}") as caught:
      messages.decode_reply(data)
    assert caught.value.kind == "malformed"
  for change in ({"response_ids": message["response_ids"] * 1.0}, {"finish": np.full(6, -1)}):
    with pytest.raises(Fault, match="cannot be read"):
      messages.decode_reply(serialization.msgpack_serialize(message | change))


def nested(depth):
  """A map in a map in a map: more than Python recurses, and fewer than msgpack refuses."""
  return b"\x81\xa1a" * depth + b"\x01"


def array_of(shape, dtype, data):
  return msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))})


def of_nothing(rollouts):
  """A few bytes for each of very many rollouts, which would be arrays of their own."""
  empty = np.zeros(0, np.int32)
  return {"prompt_ids": empty, "prompt_ids_lengths": np.zeros(rollouts, np.int8)}


@pytest.mark.parametrize(
  "data,reason",
  [
    (nested(1020), "RecursionError"),
    (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len"),  # 2**32 - 1 items of a list, a map, a text
    (b"\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
    (b"\xdb\xff\xff\xff\xff", "incomplete input"),
    (array_of((1,), "O", bytes(8)), "OBJECT array"),  # pointers
    (array_of((2**62, 4), "int8", b""), "cannot reshape"),
    (array_of((1,), "V0", b""), "itemsize cannot be zero"),
    (serialization.msgpack_serialize(of_nothing(2**18 + 1)), "not an array of at most 262144"),
    (msgpack.packb({"a": {"__msgpack_chunked_array__": 1, "shape": {}, "chunks": {}}}), "concaten"),
    (msgpack.packb({"heartbeat": "9" * 5000}), "Exceeds the limit"),
  ],
)
def test_bytes_made_to_harm_the_reader_are_malformed(data, reason):
  with pytest.raises(Fault, match=f"cannot be read: .*{reason}") as caught:
    messages.decode_reply(data)
  assert caught.value.kind == "malformed" and len(str(caught.value)) < 300


def test_last_words_are_bounded_and_no_orders_to_a_terminal():
  with pytest.raises(Fault, match="it failed:\n") as caught:
    messages.decode_reply(messages.encode_error("x" * 10**6 + "\x1b]0;title\x07\x9b2Jend\n"))
  said = str(caught.value)
  assert len(said) < 5000 and said.endswith("\ufffd]0;title\ufffd\ufffd2Jend\n")
  assert all(c.isprintable() or c == "\n" for c in said)


def first(result):
  return result.rollouts[0]


def put(field, index, value):
  def change(result):
    array = getattr(first(result), field)
    array[index] = value

  return change


def replace(field, value):
  return lambda result: setattr(first(result), field, value(first(result)))


LIES = {
  "a rollout too few": (lambda r: r.rollouts.pop(), "malformed", "5 rollouts instead of 6"),
  "another prompt": (replace("prompt_ids", lambda r: r.prompt_ids[:-1]), "malformed", "prompt"),
  "another group": (replace("group_id", lambda r: 8), "malformed", "group 8"),
  "another seed": (replace("sample_seed", lambda r: 5), "malformed", "seed 5"),
  "an id below": (put("response_ids", 1, -1), "malformed", "response_ids outside"),
  "an id above": (put("response_ids", 1, 11), "malformed", "response_ids outside"),
  "too long": (
    lambda r: [
      setattr(first(r), f, np.resize(v, 5)) for f, v in vars(first(r)).items() if f in LONG
    ],
    "malformed",
    "5 tokens where 1 to 4",
  ),
  "empty": (
    lambda r: [setattr(first(r), f, v[:0]) for f, v in vars(first(r)).items() if f in LONG],
    "malformed",
    "0 tokens",
  ),
  "unequal lengths": (
    replace("plain_logprobs", lambda r: r.plain_logprobs[:-1]),
    "malformed",
    "2 plain_logprobs for 3",
  ),
  "a positive log-prob": (put("behaviour_logprobs", 0, 0.1), "malformed", "above 0: 0.1"),
  "nan": (put("behaviour_logprobs", 2, np.nan), "non_finite", "behaviour_logprobs are not finite"),
  "-inf": (put("plain_logprobs", 2, -np.inf), "non_finite", "plain_logprobs are not finite"),
  "no such finish": (replace("finish", lambda r: "done"), "malformed", "finish 'done'"),
  "too old": (put("weight_versions", 2, 1), "stale", "weight version 1 is below 2"),
  "from the future": (put("weight_versions", 2, 6), "malformed", "6 is above the newest.*5"),
  "top-k of other tokens": (
    replace("topk_ids", lambda r: np.zeros((2, 4), np.int32)),
    "malformed",
    "2 topk_ids for 3",
  ),
  "experts of other tokens": (
    replace("expert_ids", lambda r: np.zeros((5, 1, 2), np.uint8)),
    "malformed",
    "5 expert_ids",
  ),
}
UNASKED = {
  "topk_ids": np.zeros((3, 4), np.int32),
  "topk_logprobs": np.full((3, 4), -1.0, np.float32),
  "expert_ids": np.zeros((6, 1, 2), np.uint8),
}
LIES |= {
  f"{field} that nobody asked for": (
    replace(field, lambda r, values=values: values),
    "malformed",
    f"{field} were sent and not asked for",
  )
  for field, values in UNASKED.items()
}
LONG = ("response_ids", "behaviour_logprobs", "plain_logprobs", "weight_versions")


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_by_name(lie):
  change, kind, reason = LIES[lie]
  asked = order(version=2)
  result = answer(asked)
  check_result(result, asked, newest=5, vocab_size=SPEC.vocab_size)
  change(result)
  with pytest.raises(Fault, match=reason) as caught:
    check_result(result, asked, newest=5, vocab_size=SPEC.vocab_size)
  assert caught.value.kind == kind


def test_what_was_asked_for_is_there_and_of_its_type():
  settings = dataclasses.replace(order().settings, topk_logprobs=4, expert_ids=True)
  asked = order(settings=settings)
  result = answer(asked)
  for rollout in result.rollouts:
    vars(rollout).update(UNASKED)
    rollout.expert_ids = np.zeros((len(rollout.prompt_ids) + 3, 1, 2), np.uint8)
  check_result(result, asked, newest=0, vocab_size=SPEC.vocab_size)
  for field, value, reason in (
    ("expert_ids", None, "expert_ids were asked for and not sent"),
    ("expert_ids", np.zeros((6, 1, 2)), "expert_ids of type float64"),
    ("topk_ids", np.zeros((3,), np.int32), r"topk_ids of type int32 and shape \(3,\)"),
  ):
    good = getattr(first(result), field)
    setattr(first(result), field, value)
    with pytest.raises(Fault, match=reason):
      check_result(result, asked, newest=0, vocab_size=SPEC.vocab_size)
    setattr(first(result), field, good)


def test_a_plan_is_kept_to_the_token():
  asked = order(version=2, plan=((0, 2), (1, 3), (3, 7)))
  result = answer(asked)
  for rollout in result.rollouts:
    rollout.weight_versions = np.array([2, 3, 3], np.int32)
  check_result(result, asked, newest=3, vocab_size=SPEC.vocab_size)
  result.rollouts[4].weight_versions[1] = 2
  with pytest.raises(Fault, match="rollout 4: weight versions other than the plan"):
    check_result(result, asked, newest=3, vocab_size=SPEC.vocab_size)


def test_rounding_and_an_aborted_start_are_no_lies():
  asked = order()
  result = answer(asked)
  first(result).behaviour_logprobs[0] = 1e-6
  for field in LONG:
    setattr(result.rollouts[1], field, getattr(result.rollouts[1], field)[:0])
  result.rollouts[1].finish = "aborted"
  check_result(result, asked, newest=0, vocab_size=SPEC.vocab_size)
