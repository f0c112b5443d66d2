"""First on PYTHONPATH, this watches a process and so every child of it: Python imports a module of
this name when it starts. The file $PICKLE_LOG is told what `pickle_watch` sees."""

import json
import os
import sys

import pickle_watch

# open before the grader forbids itself to open files
_LOG = os.open(os.environ["PICKLE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def tell(event, where):
  told = {"process": " ".join(sys.orig_argv[1:3]), "event": event, "where": where}
  os.write(_LOG, json.dumps(told).encode() + b"\n")


tell("started", [])
pickle_watch.watch(tell)
