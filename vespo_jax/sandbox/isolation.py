"""What isolates a program, at each level: built once by the supervisor, entered by each run."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vespo_jax.sandbox.limits import Limits

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
_SETTINGS = ("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_NOBODY = 65534
_LINUX = sys.platform == "linux"
# this interpreter with its environment, without links among the directories
PYTHON = os.path.join(
  os.path.realpath(os.path.dirname(sys.executable)), os.path.basename(sys.executable)
)


def readable() -> list[str]:
  """What a Python program needs to see: the system's programs and libraries, and this interpreter
  with what is installed for it. Real paths, none within another."""
  folders = {os.path.dirname(sys.executable), os.path.dirname(os.path.realpath(sys.executable))}
  environments = {os.path.dirname(os.path.realpath(folder)) for folder in folders}
  own = {os.path.realpath(sys.base_prefix), *environments} - {"/"}
  kept: list[str] = []
  for path in (*_SYSTEM, *_SETTINGS, *sorted(own)):
    if os.path.exists(path) and not any(f"{path}/".startswith(f"{outer}/") for outer in kept):
      kept.append(path)
  return kept


def _around(path: str, hidden: Sequence[str]) -> tuple[list[str], list[str]]:
  """What is at a real path but for the files `hidden`: what has none of them below it, and the
  folders that have. Links lead elsewhere, and are left out of such folders."""
  if path in hidden:
    return [], []
  if not any(file.startswith(f"{path}/") for file in hidden):
    return [path], []
  whole, divided = [], [path]
  with os.scandir(path) as entries:
    for inner in (_around(entry.path, hidden) for entry in entries if not entry.is_symlink()):
      whole += inner[0]
      divided += inner[1]
  return whole, divided


def _devices() -> list[str]:
  return [path for path in _DEVICES if os.path.exists(path)]


class Interpreter:
  """The level that needs nothing of the kernel: see the package's docstring.

  Args:
    files: of the program, by name.
    limits: of each run.
    hidden: files that it must not read, by their real paths; at this level it can.

  Attributes:
    program: the directory of its files, as the program sees it.
    temporary: where it may write, as it sees it.

  Raises OSError where the level is not to be had.
  """

  def __init__(self, files: Mapping[str, str], limits: Limits, hidden: Sequence[str]):
    self._folder = _make_folder()
    self.program, self.temporary = f"{self._folder}/program", f"{self._folder}/tmp"
    os.mkdir(self.program, 0o755)
    os.mkdir(self.temporary, 0o700)
    _write_files(self.program, {**files, "sitecustomize.py": _fence_source(files)})

  def enter(self, limits: Limits) -> None:
    """Called in a fork, before the program is executed: gives up what it must not have."""
    _limit(limits, _tasks_of_user() if _LINUX else 0)
    os.chdir(self.temporary)
    if _LINUX:
      from vespo_jax.sandbox import linux

      linux.die_with_parent()
      linux.forbid_privileges()
      with contextlib.suppress(OSError):  # another architecture
        linux.filter_calls(in_sight=True, forks=False)

  def close(self) -> None:
    """Removes what is on disk."""
    shutil.rmtree(self._folder, ignore_errors=True)


class Landlock(Interpreter):
  """Rules for files, and a filter of system calls."""

  def __init__(self, files: Mapping[str, str], limits: Limits, hidden: Sequence[str]):
    from vespo_jax.sandbox import linux

    if not linux.landlock_version():
      raise OSError("no Landlock")
    self._folder = _make_folder()
    self.program, self.temporary = f"{self._folder}/program", f"{self._folder}/tmp"
    os.mkdir(self.program, 0o755)
    os.mkdir(self.temporary, 0o700)
    _write_files(self.program, files)
    around = [_around(path, hidden) for path in readable()]
    self._readable = [self.program, *(path for whole, _ in around for path in whole)]
    self._listable = [path for _, divided in around for path in divided]

  def enter(self, limits: Limits) -> None:
    """See `Interpreter.enter`."""
    from vespo_jax.sandbox import linux

    is_root = os.geteuid() == 0  # for whom there is no limit of processes
    _limit(limits, _tasks_of_user())
    os.chdir(self.temporary)
    if is_root:
      linux.drop_capabilities()
    linux.die_with_parent()
    linux.forbid_privileges()
    linux.restrict_files(self._readable, self._listable, [self.temporary], _devices())
    linux.filter_calls(in_sight=True, forks=not is_root)


class Namespaces:
  """Namespaces of users, mounts, processes, network and IPC; a root directory in memory.

  It is mounted over /tmp, in a mount namespace that only this process and its children are in.
  """

  program, temporary = "/program", "/tmp"

  def __init__(self, files: Mapping[str, str], limits: Limits, hidden: Sequence[str]):
    from vespo_jax.sandbox import linux

    self._root = "/tmp"
    self._is_root = os.geteuid() == 0
    _enter_namespaces(self._is_root)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    # the root is mounted over some of them, maybe
    sources = {path: os.open(path, os.O_PATH) for path in (*readable(), *_devices())}
    size = (4 << 20) + sum(len(text.encode(errors="surrogatepass")) for text in files.values())
    _mount_memory(self._root, f"size={size},mode=755")
    temporary = f"{self._root}{self.temporary}"
    os.mkdir(temporary)
    _mount_memory(temporary, f"size={limits.file_bytes},mode=1777")
    for path, fd in sources.items():  # the interpreter may itself be in /tmp
      _bind(f"/proc/self/fd/{fd}", f"{self._root}{path}", os.path.isdir(f"/proc/self/fd/{fd}"))
      os.close(fd)
    for path in hidden:
      if os.path.exists(f"{self._root}{path}"):
        linux.mount("/dev/null", f"{self._root}{path}", flags=linux.MS_BIND)
    os.mkdir(f"{self._root}{self.program}")
    _write_files(f"{self._root}{self.program}", files)
    linux.make_read_only(self._root)
    linux.make_writable(temporary)

  def enter(self, limits: Limits) -> None:
    """See `Interpreter.enter`."""
    from vespo_jax.sandbox import linux

    linux.die_with_parent()
    linux.unshare(linux.CLONE_NEWPID)
    program = os.fork()
    if program:
      _end_like(program)
    # beside it, the supervisor and its fork are in the user namespace: where root is, as root
    _limit(limits, 0 if self._is_root else 2)
    os.chroot(self._root)
    os.chdir(self.temporary)
    if self._is_root:
      os.setgroups([])
      os.setresgid(_NOBODY, _NOBODY, _NOBODY)
      os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    linux.die_with_parent()
    linux.forbid_privileges()
    linux.filter_calls(in_sight=False, forks=True)

  def close(self) -> None:
    """Nothing is on disk."""


LEVELS: dict[str, Any] = {
  "namespaces": Namespaces,
  "landlock": Landlock,
  "interpreter": Interpreter,
}


def _enter_namespaces(is_root: bool) -> None:
  """New namespaces, with the same user in them; root has "nobody" there too, to become it."""
  from vespo_jax.sandbox import linux

  user, group, supervisor = os.geteuid(), os.getegid(), os.getpid()
  kinds = linux.CLONE_NEWUSER | linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC
  if not is_root:
    linux.unshare(kinds)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    return
  ready, go = os.pipe()
  helper = os.fork()  # the map of two users is written from outside
  if helper == 0:
    try:
      os.close(go)
      os.read(ready, 1)
      for kind in ("uid", "gid"):
        _write(f"/proc/{supervisor}/{kind}_map", f"0 0 1\n{_NOBODY} {_NOBODY} 1\n")
      os._exit(0)
    finally:
      os._exit(1)
  try:
    linux.unshare(kinds)
  finally:
    os.close(ready)
    os.close(go)
    _, status = os.waitpid(helper, 0)
  if status:
    raise OSError("the users of the namespace could not be set")


def _end_like(pid: int) -> NoReturn:
  """Waits for the child and ends as it does, holding nothing open meanwhile."""
  os.closerange(0, 256)
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
  os._exit(max(code, 0))


def _limit(limits: Limits, others: int) -> None:
  """Resource limits; `others` tasks of the same user are not the program's."""
  cpu = math.ceil(limits.seconds) + 1
  amounts = {
    resource.RLIMIT_AS: limits.memory_bytes,
    resource.RLIMIT_FSIZE: limits.file_bytes,
    resource.RLIMIT_NOFILE: 64,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_CPU: cpu,
  }
  if _LINUX:
    amounts[resource.RLIMIT_NPROC] = limits.processes + others
  for kind, amount in amounts.items():
    most = resource.getrlimit(kind)[1]
    allowed = amount if most == resource.RLIM_INFINITY else min(amount, most)
    with contextlib.suppress(ValueError):  # macOS refuses some
      resource.setrlimit(kind, (allowed, allowed))
  for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)


def _tasks_of_user() -> int:
  """Processes and threads of this user."""
  count = 0
  for name in os.listdir("/proc"):
    with contextlib.suppress(OSError):
      if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
        count += len(os.listdir(f"/proc/{name}/task"))
  return count


def _mount_memory(path: str, options: str) -> None:
  from vespo_jax.sandbox import linux

  linux.mount("tmpfs", path, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)


def _bind(source: str, target: str, is_folder: bool) -> None:
  from vespo_jax.sandbox import linux

  os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
  if not is_folder:
    _write(target, "")
  linux.mount(source, target, flags=linux.MS_BIND | linux.MS_REC)


def _make_folder() -> str:
  folder = os.path.join(os.environ["TMPDIR"], f"program-{os.urandom(8).hex()}")
  os.mkdir(folder, 0o755)
  return os.path.realpath(folder)


def _write_files(folder: str, files: Mapping[str, str]) -> None:
  for name, text in files.items():
    _write(os.path.join(folder, name), text)


def _write(path: str, text: str) -> None:
  with open(path, "wb") as file:
    file.write(text.encode(errors="surrogatepass"))


def _fence_source(files: Mapping[str, str]) -> str:
  """What installs the audit hook before the program's first line. It would refuse numpy's import,
  so that a program that may use numpy has it from before."""
  with open(os.path.join(os.path.dirname(__file__), "fence.py")) as file:
    source = file.read()
  if any("numpy" in text for text in files.values()):
    source += "\ntry:\n  import numpy\nexcept ImportError:\n  pass\n"
  return source + "\nimport sys\nsys.addaudithook(fence())\n"
