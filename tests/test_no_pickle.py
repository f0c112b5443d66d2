"""Nothing is pickled, unpickled or evaluated: not in the text of the code, not in a whole run.

That the default debug run does not is shown in tests/test_end_to_end.py, which makes one anyway,
and that stopping and resuming does not in tests/test_resume.py.
"""

import ast
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from tests.watched import pickle_watch

REPOSITORY = Path(__file__).parent.parent
PACKAGES = {
  *("pickle", "_pickle", "pickletools", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
  *("code", "codeop", "runpy", "multiprocessing.pool", "multiprocessing.managers"),
}
NAMES = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {  # `object.attribute`, or `attribute` of any object
  *("np.load", "numpy.load", "torch.load", "yaml.load", "os.system", "os.popen"),
  *("recv", "read_pickle", "to_pickle"),  # of a `multiprocessing` connection, of a data frame
}


def forbidden(source):
  """What a file imports, calls or reaches for that it may not."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    else:
      names = []
    yield from (n for n in names if n in PACKAGES or n.split(".")[0] in PACKAGES)
    if isinstance(node, ast.Name) and node.id in NAMES:
      yield node.id
    if isinstance(node, ast.Attribute):
      whole = f"{node.value.id}.{node.attr}" if isinstance(node.value, ast.Name) else node.attr
      yield from {whole, node.attr} & ATTRIBUTES
    if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
      yield node.arg


def test_no_file_of_ours_pickles_or_evaluates():
  files = [
    path
    for room in ("vespo_jax", "configs", "experiments")
    for path in (REPOSITORY / room).rglob("*.py")
  ]
  assert len(files) > 100
  found = {str(path.relative_to(REPOSITORY)): list(forbidden(path.read_text())) for path in files}
  assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
  "source",
  [
    "import pickle",
    "from pickle import loads",
    "import dill as json",
    "from multiprocessing import managers",
    "eval(text)",
    "exec(compile(text, '', 'exec'))",
    "f = eval",
    "np.load(path)",
    "np.savez(path, allow_pickle=True)",
    "torch.load(path)",
    "connection.recv()",
    "subprocess.run(text, shell=True)",
  ],
)
def test_the_text_of_each_way_is_found(source):
  assert list(forbidden(source))


PICKLES = """
import io, marshal, subprocess, sys
import _pickle, pickle
from collections import OrderedDict
data = pickle.dumps([OrderedDict()])
_pickle.Unpickler(io.BytesIO(data)).load()
marshal.loads(marshal.dumps(3))
if len(sys.argv) == 1:
  subprocess.run([sys.executable, __file__, 'child'], check=True)
"""


def test_the_watch_sees_every_way_in_every_process(tmp_path):
  script, log = tmp_path / "pickles.py", tmp_path / "log"
  script.write_text(PICKLES)
  with pickle_watch.watched_children(log):
    subprocess.run([sys.executable, script], check=True, timeout=60)
  started, told = pickle_watch.read(log)
  assert started == {str(script), f"{script} child"}
  for process in started:
    assert [entry["event"] for entry in told if entry["process"] == process] == [
      *("pickle.dumps", "_pickle.Unpickler", "pickle.find_class collections.OrderedDict"),
      "marshal.loads",
    ]


def test_the_watch_sees_this_process_while_it_is_asked_to():
  data = pickle.dumps([OrderedDict()])
  original = pickle.loads
  with pickle_watch.watched_here() as told:
    pickle.loads(data)
  pickle.loads(data)
  assert [event for event, _ in told] == [
    "pickle.loads",
    "pickle.find_class collections.OrderedDict",
  ]
  assert __file__ in told[0][1][0] and pickle.loads is original


@pytest.mark.slow
@pytest.mark.parametrize("compilation_cache", [False, True])
def test_a_run_that_is_resumed_and_replayed_pickles_nothing(
  compilation_cache, tmp_path, monkeypatch
):
  """Training, stopping, resuming, and a second run on the rollouts that the first one kept."""
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  if compilation_cache:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  log = tmp_path / "log"

  def train(run, *flags):
    command = [
      *(sys.executable, "-m", "vespo_jax.train", "--config=configs/debug.py"),
      *(f"--workdir={tmp_path / run}", f"--config.task.data_dir={tmp_path / 'data'}"),
      *("--config.rollouts.save_all=True", "--config.checkpoint.every=2", *flags),
    ]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=500)

  with pickle_watch.watched_children(log):
    train("first", "--config.updates=2")
    train("first", "--config.updates=4")
    assert sorted(path.name for path in (tmp_path / "first" / "checkpoints").iterdir()) >= [
      "2",
      "4",
    ]
    train("second", "--config.updates=4", f"--config.sampler.source=replay:{tmp_path / 'first'}")
  started, told = pickle_watch.read(log)
  assert started == {
    f"-m vespo_jax.{module}"
    for module in ("train", "runtime.sampler_process", "tasks.grader_process", "tasks.build")
  }
  assert told == []
