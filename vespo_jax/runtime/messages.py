"""What travels between learner and samplers, as bytes: msgpack with raw arrays, never pickle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import serialization

from vespo_jax.metrics import printable
from vespo_jax.runtime.links import Fault, Heartbeat
from vespo_jax.sampler import Order, Result, Settings
from vespo_jax.types import FINISH, Rollout

_REQUIRED = {  # the array fields of a Rollout and their types
  "prompt_ids": np.int32,
  "response_ids": np.int32,
  "behaviour_logprobs": np.float32,
  "plain_logprobs": np.float32,
  "weight_versions": np.int32,
}
_OPTIONAL = ("expert_ids", "topk_ids", "topk_logprobs")  # travel when present, in their own type
_NUMERIC = "iuf"  # numpy kinds that a field may have
_MAX_ROLLOUTS = (
  1 << 18
)  # of one result; each becomes a few arrays, however few bytes it was sent in
_UNREADABLE = (  # what any bytes may raise
  *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
  RecursionError,  # of maps in maps
)
_LAST_WORDS = 4000  # characters of a worker's report that are kept


def encode(message: Order | Result | Heartbeat) -> bytes:
  """A message as bytes."""
  if isinstance(message, Order):
    tree = _pack_order(message)
  elif isinstance(message, Result):
    tree = _pack_result(message)
  else:
    tree = {"heartbeat": message.pid}
  return serialization.msgpack_serialize(tree)


def encode_error(report: str) -> bytes:
  """The last words of a worker, for `decode_reply` to raise."""
  return serialization.msgpack_serialize({"error": report})


def decode_order(data: bytes) -> Order:
  """The order in `data`, which is trusted: it comes from the learner."""
  message: Any = serialization.msgpack_restore(data)
  return Order(
    order_id=message["order_id"],
    weight_version=message["weight_version"],
    seed=message["seed"],
    stream=message["stream"],
    prompts=_unpack_ragged("prompts", message),
    group_ids=message["group_ids"].tolist(),
    settings=Settings(**message["settings"]),
    plan=tuple((start, version) for start, version in message["plan"].tolist()),
    longest_prompt=message["longest_prompt"],
    noisy=message["noisy"],
  )


def decode_result(data: bytes) -> Result:
  """The result in `data`, which is trusted: this process has encoded it."""
  message: Any = serialization.msgpack_restore(data)
  return _unpack_result(message)


def decode_reply(data: bytes) -> Result | Heartbeat:
  """What a worker said. Raises Fault: "died" with its last words, "malformed" for any other bytes.

  It may say anything; only shape and type are looked at here, see `checks` for the meaning.
  """
  try:
    message: Any = serialization.msgpack_restore(data)
    if "error" in message:
      raise Fault("died", f"it failed:\n{printable(str(message['error'])[-_LAST_WORDS:])}")
    if "heartbeat" in message:
      return Heartbeat(int(message["heartbeat"]))
    return _unpack_result(message)
  except _UNREADABLE as error:
    raise Fault("malformed", f"a message that cannot be read: {error!r:.200}") from error


def _pack_order(order: Order) -> dict[str, Any]:
  return {
    "order_id": order.order_id,
    "weight_version": order.weight_version,
    "seed": order.seed,
    "stream": order.stream,
    "settings": {
      field: list(value) if isinstance(value, tuple) else value
      for field, value in dataclasses.asdict(order.settings).items()
    },
    "group_ids": np.asarray(order.group_ids, np.int64),
    "plan": np.asarray(order.plan, np.int64).reshape(-1, 2),
    "longest_prompt": order.longest_prompt,
    "noisy": order.noisy,
    **_pack_ragged("prompts", [np.asarray(prompt, np.int32) for prompt in order.prompts]),
  }


def _pack_result(result: Result) -> dict[str, Any]:
  rollouts = result.rollouts
  message: dict[str, Any] = {
    "order_id": result.order_id,
    "sample_s": result.sample_s,
    "wait_s": result.wait_s,
    "weights_s": result.weights_s,
    "finish": np.array([FINISH.index(r.finish) for r in rollouts], np.int8),
    "group_id": np.array([r.group_id for r in rollouts], np.int64),
    "sample_seed": np.array([r.sample_seed for r in rollouts], np.int64),
  }
  for field, dtype in _REQUIRED.items():
    message |= _pack_ragged(field, [np.asarray(getattr(r, field), dtype) for r in rollouts])
  for field in _OPTIONAL:
    if rollouts and getattr(rollouts[0], field) is not None:
      message |= _pack_ragged(field, [getattr(r, field) for r in rollouts])
  return message


def _unpack_result(message: dict[str, Any]) -> Result:
  columns: dict[str, Any] = {
    field: _unpack_ragged(field, message, dtype) for field, dtype in _REQUIRED.items()
  }
  for field in _OPTIONAL:
    if field in message:
      columns[field] = _unpack_ragged(field, message)
  finish = dict(enumerate(FINISH))
  columns["finish"] = [finish[index] for index in message["finish"].tolist()]
  for field in ("group_id", "sample_seed"):
    columns[field] = [int(value) for value in message[field].tolist()]
  rows = zip(*columns.values(), strict=True)
  return Result(
    order_id=int(message["order_id"]),
    rollouts=[Rollout(**dict(zip(columns, row, strict=True))) for row in rows],
    sample_s=float(message["sample_s"]),
    wait_s=float(message["wait_s"]),
    weights_s=float(message["weights_s"]),
  )


def _pack_ragged(name: str, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays that differ in their first axis, as one array and its lengths."""
  return {
    name: np.concatenate(rows) if rows else np.zeros(0, np.int32),
    f"{name}_lengths": np.array([len(row) for row in rows], np.int32),
  }


def _unpack_ragged(name: str, message: dict[str, Any], dtype: Any = None) -> list[np.ndarray]:
  """The inverse of `_pack_ragged`. Raises ValueError if they are not arrays of numbers like that.

  With a `dtype`, they must be one-dimensional and of it.
  """
  values, lengths = message[name], message[f"{name}_lengths"]
  if not isinstance(lengths, np.ndarray) or len(lengths) > _MAX_ROLLOUTS:
    raise ValueError(f"{name}_lengths is not an array of at most {_MAX_ROLLOUTS}")
  if not isinstance(values, np.ndarray) or values.dtype.kind not in _NUMERIC or values.ndim == 0:
    raise ValueError(f"{name} is not an array of numbers")
  if dtype is not None and (values.dtype != dtype or values.ndim != 1):
    raise ValueError(f"{name} is not a row of {np.dtype(dtype)}")
  if np.any(lengths < 0) or lengths.sum() != len(values):
    raise ValueError(f"{name} has {len(values)} values and lengths {lengths}")
  return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []
