"""Sees whatever a process pickles, unpickles or reads with `marshal`, by Python code or by C."""

import _pickle
import contextlib
import functools
import json
import os
import pickle
import sys
from pathlib import Path

WAYS = [
  (module, name)
  for module in (pickle, _pickle)
  for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler")
  for name in (name, f"_{name}")
  if hasattr(module, name)
]
# Jinja2 pickles a text and a number when it is imported, to know the files of a cache we do not use
HARMLESS = "jinja2/bccache.py"


def watch(tell):
  """From now on `tell(event, where)` hears of it; `where` are lines of code, innermost first."""

  def seen(event):
    frame, where = sys._getframe(2), []
    while frame is not None and len(where) < 10:
      where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
      frame = frame.f_back
    if not (event.endswith("dumps") and HARMLESS in where[0]):
      tell(event, where)

  def function(name, original):
    @functools.wraps(original)
    def call(*args, **kwargs):
      seen(name)
      return original(*args, **kwargs)

    return call

  def subclass(name, original):
    class Watched(original):
      def __init__(self, *args, **kwargs):
        seen(name)
        super().__init__(*args, **kwargs)

    return Watched

  def audit(event, args):
    if event == "pickle.find_class":
      seen(f"{event} {args[0]}.{args[1]}")
    elif event in ("marshal.load", "marshal.loads"):  # the interpreter reads its own .pyc files so
      if not sys._getframe(1).f_code.co_filename.startswith("<frozen "):
        seen(event)

  for module, name in WAYS:
    watched = subclass if name.endswith("ler") else function
    setattr(module, name, watched(f"{module.__name__}.{name}", getattr(module, name)))
  sys.addaudithook(audit)


@contextlib.contextmanager
def watched_here():
  """What this process does meanwhile, as a list of events and where they were."""
  originals = [(module, name, getattr(module, name)) for module, name in WAYS]
  told, listening = [], [True]
  watch(lambda event, where: told.append((event, where)) if listening else None)
  try:
    yield told
  finally:
    listening.clear()  # an audit hook cannot be taken away
    for original in originals:
      setattr(*original)


@contextlib.contextmanager
def watched_children(log):
  """Environment variables under which every process that is started tells the file `log`."""
  before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PICKLE_LOG")}
  paths = [str(Path(__file__).parent), *filter(None, [before["PYTHONPATH"]])]
  os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "PICKLE_LOG": str(log)}
  try:
    yield
  finally:
    for name, value in before.items():
      os.environ.pop(name)
      if value is not None:
        os.environ[name] = value


def read(log):
  """The processes that told the file, and what they did."""
  told = [json.loads(line) for line in Path(log).read_text().splitlines()]
  started = {entry["process"] for entry in told if entry["event"] == "started"}
  return started, [entry for entry in told if entry["event"] != "started"]
