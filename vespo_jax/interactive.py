"""Prompts by hand: a session on a terminal, or one prompt on each line of a pipe."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator

from vespo_jax.conversation import Conversation, Piece
from vespo_jax.metrics import printable

PROMPT = "> "
MAX_SAMPLES = 64
INTERRUPTED = 130  # exit code, as shells have it
HELP = """\
  /reset              forget the conversation so far
  /system TEXT        what the model is told first, from the next turn on; without TEXT, nothing
  /temperature 0.7    of the softmax that is sampled; 0 is greedy
  /samples 4          answers to each prompt; the first one is what the conversation goes on with
  /help               this
  /quit               leave, as Ctrl-D does
Ctrl-C stops an answer. A prompt that begins with a slash has two of them."""


def run(conversation: Conversation) -> int:
  """Answers what standard input holds; returns the exit code.

  A pipe has a prompt on each line, each standing alone, and gets the answers, nothing else; a line
  that cannot be a prompt is told on standard error and makes the exit code 2. A terminal has line
  editing, history, commands and statistics.
  """
  for stream in (sys.stdin, sys.stdout):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="replace")
  if sys.stdin.isatty():
    return _session(conversation)
  try:
    return _pipe(conversation)
  except KeyboardInterrupt:
    return INTERRUPTED
  except BrokenPipeError:  # whoever reads has enough; nor is there anything to flush at the end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _pipe(conversation: Conversation) -> int:
  code = 0
  for line in sys.stdin:
    conversation.reset()
    try:
      pieces = list(conversation.ask(line.removesuffix("\n")))
    except ValueError as error:
      print(f"error: {printable(str(error))}", file=sys.stderr)
      code = 2
      continue
    for sample in range(conversation.settings.samples_per_prompt):
      print(printable("".join(p.text for p in pieces if p.sample == sample)), flush=True)
  return code


def _session(conversation: Conversation) -> int:
  with contextlib.suppress(ImportError):  # not everywhere; `input` uses it once it is imported
    import readline  # noqa: F401
  turns = "a conversation" if conversation.many_turns else "each line stands alone"
  print(f"{turns}; /help for commands, Ctrl-D to leave")
  while True:
    try:
      said = input(PROMPT)
    except EOFError:
      print()
      return 0
    except KeyboardInterrupt:
      print()
      continue
    line = said.strip()
    if line in ("/quit", "/exit"):
      return 0
    try:
      if line.startswith("/") and not line.startswith("//"):
        print(command(conversation, line))
      elif line:
        _show(conversation, line.removeprefix("/") if line.startswith("//") else said)
    except ValueError as error:
      print(f"error: {printable(str(error))}")


def command(conversation: Conversation, line: str) -> str:
  """Obeys a line that begins with a slash; returns what to say. Raises ValueError naming what is
  wrong with it."""
  name, _, value = line.partition(" ")
  value = value.strip()
  if name == "/help":
    return HELP
  if name == "/reset":
    conversation.reset()
    return "forgotten"
  if name == "/system":
    if not conversation.many_turns:
      raise ValueError("the model has no chat template to tell it in")
    conversation.system = value
    return "told" if value else "told nothing"
  if name == "/temperature":
    try:
      changed = dataclasses.replace(conversation.settings, temperature=float(value))
    except ValueError:
      raise ValueError(f"/temperature {printable(value)}: not a number, at least 0") from None
    conversation.settings = changed
    return f"temperature {changed.temperature}"
  if name == "/samples":
    if not (value.isdecimal() and 1 <= int(value) <= MAX_SAMPLES):
      raise ValueError(f"/samples {printable(value)}: not a whole number from 1 to {MAX_SAMPLES}")
    samples = int(value)
    conversation.settings = dataclasses.replace(conversation.settings, samples_per_prompt=samples)
    return f"samples {samples}"
  raise ValueError(f"no command {printable(name)}; /help lists them")


def _show(conversation: Conversation, line: str) -> None:
  """Prints answers while they come: one as it grows, several as each ends."""
  several = conversation.settings.samples_per_prompt > 1
  texts: dict[int, list[str]] = {}
  with _interrupts() as stopped:
    for piece in conversation.ask(line, stopped):
      texts.setdefault(piece.sample, []).append(piece.text)
      if not several:
        print(printable(piece.text), end="", flush=True)
      if piece.end is not None:
        whole = printable("".join(texts[piece.sample]))
        if several:
          print(f"[{piece.sample + 1}] {whole}", end="")
        print(_end(whole, piece))


def _end(text: str, piece: Piece) -> str:
  return f"{'' if text.endswith(chr(10)) or not text else chr(10)}  ({piece.end})"


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
  """Within it, Ctrl-C raises nothing: the function it gives says whether there was one."""
  seen: list[int] = []
  before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
  try:
    yield lambda: bool(seen)
  finally:
    signal.signal(signal.SIGINT, before)
