"""Where the answer stands in a response: finding it, saying so, and putting it there. Linear in the
text.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable


def _text(response: str) -> str | None:
  return response.strip()


def _tag(response: str) -> str | None:
  end = response.rfind("</answer>")
  start = response.rfind("<answer>", 0, max(end, 0))
  if start < 0:
    return None
  start += len("<answer>")
  return response[start : response.index("</answer>", start)].strip()


_BRACES = re.compile(r"\\boxed\{|\\[{}]|[{}]")  # an escaped brace is a character, not a brace


def _boxed(response: str) -> str | None:
  first = response.find("\\boxed{")
  if first < 0:
    return None
  best_start, best_end = -1, -1
  open_braces: list[int] = []  # where the content of each open \boxed starts; -1: another brace
  for brace in _BRACES.finditer(response, first):
    if brace[0] == "}":
      start = open_braces.pop() if open_braces else -1
      if start > best_start:
        best_start, best_end = start, brace.start()
    elif brace[0] == "{":
      open_braces.append(-1)
    elif brace[0] == "\\boxed{":
      open_braces.append(brace.end())
  return None if best_start < 0 else response[best_start:best_end].strip()


def _last_line(response: str) -> str | None:
  lines = response.rstrip().rsplit("\n", 1)
  return lines[-1].strip() or None


_NUMBER = re.compile(r"-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")


def _number(response: str) -> str | None:
  last = collections.deque(_NUMBER.finditer(response), maxlen=1)
  return last[0][0] if last else None


FORMATS: dict[str, tuple[Callable[[str], str | None], str]] = {
  "text": (_text, ""),
  "tag": (_tag, " Put your final answer between <answer> and </answer>."),
  "boxed": (_boxed, " Put your final answer within \\boxed{}."),
  "last_line": (_last_line, " Put your final answer alone on the last line."),
  "number": (_number, ""),
}


def extract(response: str, answer_format: str) -> str | None:
  """The answer in a response, or None where there is none.

  `answer_format`: "text", the whole response; "tag", the last <answer>...</answer>; "boxed", the
  last balanced \\boxed{...}; "last_line", the last line that is not empty; "number", the last
  number in the text.
  """
  return FORMATS[answer_format][0](response)


def respond(answer: str, answer_format: str) -> str:
  """The shortest response that `extract` finds the answer in."""
  wrapped = {"tag": f"<answer>{answer}</answer>", "boxed": f"\\boxed{{{answer}}}"}
  return wrapped.get(answer_format, answer)


def instruct(question: str, answer_format: str) -> str:
  """The question, followed by where the answer belongs."""
  return question + FORMATS[answer_format][1]
