"""Finding the answer in a response, and telling the policy where to put it. Linear in the text."""

from __future__ import annotations

from collections.abc import Callable


def _text(response: str) -> str | None:
  return response.strip()


def _tag(response: str) -> str | None:
  end = response.rfind("</answer>")
  start = response.rfind("<answer>", 0, max(end, 0))
  return None if start < 0 else response[start + len("<answer>") : end].strip()


def _boxed(response: str) -> str | None:
  opening = response.rfind("\\boxed{")
  if opening < 0:
    return None
  start = opening + len("\\boxed{")
  depth = 1
  for position in range(start, len(response)):
    depth += {"{": 1, "}": -1}.get(response[position], 0)
    if depth == 0:
      return response[start:position].strip()
  return None


def _last_line(response: str) -> str | None:
  lines = response.rstrip().rsplit("\n", 1)
  return lines[-1].strip() or None


FORMATS: dict[str, tuple[Callable[[str], str | None], str]] = {
  "text": (_text, ""),
  "tag": (_tag, " Put your final answer between <answer> and </answer>."),
  "boxed": (_boxed, " Put your final answer within \\boxed{}."),
  "last_line": (_last_line, " Put your final answer alone on the last line."),
}


def extract(response: str, answer_format: str) -> str | None:
  """The answer in a response, or None where there is none.

  `answer_format`: "text", the whole response; "tag", the last <answer>...</answer>; "boxed", the
  last \\boxed{...}; "last_line", the last line that is not empty.
  """
  return FORMATS[answer_format][0](response)


def instruct(question: str, answer_format: str) -> str:
  """The question, followed by where the answer belongs."""
  return question + FORMATS[answer_format][1]
