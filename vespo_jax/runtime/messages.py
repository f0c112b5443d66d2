"""Orders and results as bytes: msgpack with raw arrays, never pickle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import serialization

from vespo_jax.sampler import Order, Result, Settings
from vespo_jax.types import FINISH, Rollout

_PER_TOKEN = {  # the response-long fields of a Rollout and their types
  "response_ids": np.int32,
  "behaviour_logprobs": np.float32,
  "plain_logprobs": np.float32,
  "weight_versions": np.int32,
}


def encode(message: Any) -> bytes:
  """A tree of dicts, lists, strings, numbers and numpy arrays as bytes."""
  return serialization.msgpack_serialize(message)


def decode(data: bytes) -> dict[str, Any]:
  """The inverse of `encode`."""
  message: Any = serialization.msgpack_restore(data)
  return message


def pack_order(order: Order) -> dict[str, Any]:
  """An order as a message."""
  return {
    "order_id": order.order_id,
    "weight_version": order.weight_version,
    "seed": order.seed,
    "stream": order.stream,
    "settings": {**dataclasses.asdict(order.settings), "stop_ids": list(order.settings.stop_ids)},
    "group_ids": np.asarray(order.group_ids, np.int64),
    **_pack_ragged("prompts", order.prompts, np.int32),
  }


def unpack_order(message: dict[str, Any]) -> Order:
  """The inverse of `pack_order`."""
  return Order(
    order_id=message["order_id"],
    weight_version=message["weight_version"],
    seed=message["seed"],
    stream=message["stream"],
    prompts=_unpack_ragged("prompts", message),
    group_ids=message["group_ids"].tolist(),
    settings=Settings(**message["settings"]),
  )


def pack_result(result: Result) -> dict[str, Any]:
  """A result as a message; what the learner knows anyway (prompts, task) does not travel."""
  rollouts = result.rollouts
  message: dict[str, Any] = {"order_id": result.order_id, "sample_s": result.sample_s}
  for field, dtype in _PER_TOKEN.items():
    message |= _pack_ragged(field, [getattr(r, field) for r in rollouts], dtype)
  message |= _pack_expert_ids(rollouts)
  message["finish"] = np.array([FINISH.index(r.finish) for r in rollouts], np.int8)
  message["sample_seed"] = np.array([r.sample_seed for r in rollouts], np.int64)
  return message


def unpack_result(message: dict[str, Any], order: Order) -> Result:
  """The result of `order`. Raises ValueError if the message does not answer it."""
  expected = len(order.prompts) * order.settings.samples_per_prompt
  if message["order_id"] != order.order_id or len(message["finish"]) != expected:
    raise ValueError(
      f"the sampler answered order {message['order_id']} with {len(message['finish'])} rollouts; "
      f"expected order {order.order_id} with {expected}"
    )
  columns: dict[str, Any] = {field: _unpack_ragged(field, message) for field in _PER_TOKEN}
  samples = order.settings.samples_per_prompt
  if order.settings.expert_ids:
    columns["expert_ids"] = _unpack_expert_ids(message, samples)
  rollouts = [
    Rollout(
      prompt_ids=np.asarray(order.prompts[row // samples], np.int32),
      finish=FINISH[message["finish"][row]],
      group_id=order.group_ids[row // samples],
      sample_seed=int(message["sample_seed"][row]),
      **{field: column[row] for field, column in columns.items()},
    )
    for row in range(expected)
  ]
  return Result(order.order_id, rollouts, message["sample_s"])


def _pack_expert_ids(rollouts: Sequence[Rollout]) -> dict[str, np.ndarray]:
  """The choices for every response, and those for every prompt once: its samples share them; no
  entry if none were reported."""
  prompts, responses = {}, []
  for rollout in rollouts:
    if rollout.expert_ids is None:
      return {}
    start = len(rollout.prompt_ids)
    prompts[rollout.group_id] = rollout.expert_ids[:start]
    responses.append(rollout.expert_ids[start:])
  return {
    **_pack_ragged("prompt_expert_ids", list(prompts.values()), responses[0].dtype),
    **_pack_ragged("response_expert_ids", responses, responses[0].dtype),
  }


def _unpack_expert_ids(message: dict[str, Any], samples: int) -> list[np.ndarray]:
  prompts = _unpack_ragged("prompt_expert_ids", message)
  responses = _unpack_ragged("response_expert_ids", message)
  return [np.concatenate([prompts[row // samples], ids]) for row, ids in enumerate(responses)]


def _pack_ragged(
  name: str, rows: Sequence[Any], dtype: np.typing.DTypeLike
) -> dict[str, np.ndarray]:
  rows = [np.asarray(row, dtype) for row in rows]
  return {
    name: np.concatenate(rows) if rows else np.zeros(0, dtype),
    f"{name}_lengths": np.array([len(row) for row in rows], np.int32),
  }


def _unpack_ragged(name: str, message: dict[str, Any]) -> list[np.ndarray]:
  return np.split(message[name], np.cumsum(message[f"{name}_lengths"])[:-1])
