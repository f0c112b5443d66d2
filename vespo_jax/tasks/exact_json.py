"""JSON that keeps what JSON loses: tuples, and keys that are not strings.

Some verifiers compare metadata with `==`, to which a tuple and a list are different.
"""

from __future__ import annotations

import json
from typing import Any

_TUPLE, _ITEMS = "__tuple__", "__items__"


def dumps(value: Any) -> str:
  """`value` as JSON text. Raises TypeError for what is neither JSON, tuple nor dict."""
  return json.dumps(_pack(value))


def loads(text: str) -> Any:
  """The inverse of `dumps`."""
  return json.loads(text, object_hook=_unpack)


def _pack(value: Any) -> Any:
  if isinstance(value, tuple):
    return {_TUPLE: [_pack(item) for item in value]}
  if isinstance(value, list):
    return [_pack(item) for item in value]
  if isinstance(value, dict):
    if all(isinstance(key, str) for key in value):
      return {key: _pack(item) for key, item in value.items()}
    return {_ITEMS: [[_pack(key), _pack(item)] for key, item in value.items()]}
  return value


def _unpack(value: dict[str, Any]) -> Any:
  if value.keys() == {_TUPLE}:
    return tuple(value[_TUPLE])
  if value.keys() == {_ITEMS}:
    return {key: item for key, item in value[_ITEMS]}
  return value
