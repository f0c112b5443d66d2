"""Chat templates: the jinja2 source that comes with a tokenizer, rendered in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
  """{% generation %} and {% endgeneration %}, between which `transformers` finds what an assistant
  writes. Here they only hold in what is set between them, as they do there."""

  tags = {"generation"}

  def parse(self, parser: Parser) -> jinja2.nodes.Node:
    """The block that begins here."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return jinja2.nodes.Scope(body, lineno=line)


class ChatTemplate:
  """Renders messages as the text a chat model was trained on, exactly as `transformers` does.

  `strftime_now` is not defined: a prompt that depends on the day cannot be reproduced. Templates
  that ask whether it is defined fall back to their fixed date.

  Args:
    source: the template.
    tokens: the special tokens that it may name, such as `bos_token`.

  Raises:
    ValueError: if `source` is not a jinja2 template.
  """

  def __init__(self, source: str, tokens: Mapping[str, str]):
    self.source, self.tokens = source, dict(tokens)
    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    try:
      self._template = environment.from_string(source, {"raise_exception": _refuse})
    except jinja2.TemplateError as error:
      raise ValueError(f"the chat template is not valid: {error}") from error

  def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
    """The text of `messages` (each with a role and a content), ending where an answer begins if
    `add_generation_prompt`. Raises ValueError with the reason where the template refuses them."""
    try:
      return self._template.render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
        **self.tokens,
      )
    except (
      *(jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError),
      *(AttributeError, RecursionError, MemoryError),
    ) as error:
      raise ValueError(f"the chat template does not render: {error}") from error


def _to_json(value: Any, **options: Any) -> str:
  """As `transformers` has it: jinja2's own filter would escape the characters of HTML."""
  return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), **options)


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)
