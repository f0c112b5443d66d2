"""The system calls of isolation that Python has no names for. Every failure is an OSError.

Numbers and structures: linux/mount.h, linux/landlock.h, linux/seccomp.h, linux/filter.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 0x1, 0x2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_SET_SUBREAPER = 1, 38, 22, 36
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
# the same number on every architecture
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
  if result < 0:
    code = ctypes.get_errno()
    raise OSError(code, f"{what}: {os.strerror(code)}")
  return result


def _call(number: int, what: str, *args: object) -> int:
  return _check(_libc.syscall(ctypes.c_long(number), *args), what)


def unshare(flags: int) -> None:
  """From now on, namespaces of this process's own (of its next child's, for processes)."""
  _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
  """mount(2)."""
  names = [text.encode() or None for text in (source, target, kind)]
  done = _libc.mount(*names, ctypes.c_ulong(flags), options.encode() or None)
  _check(done, f"mount {target}")


def make_read_only(path: str) -> None:
  """Every mount at and below `path` becomes read-only and honours no set-user-id."""
  _set_mount(path, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0)


def make_writable(path: str) -> None:
  """The mount at `path`, and none below it, may be written again."""
  _set_mount(path, 0, 0, _MOUNT_ATTR_RDONLY)


def _set_mount(path: str, flags: int, on: int, off: int) -> None:
  attributes = struct.pack("=4Q", on, off, 0, 0)
  at = (ctypes.c_int(_AT_FDCWD), path.encode(), ctypes.c_uint(flags))
  _call(_MOUNT_SETATTR, "mount_setattr", *at, attributes, ctypes.c_size_t(len(attributes)))


def die_with_parent() -> None:
  """The kernel kills this process once its parent is gone."""
  _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl")


def adopt_orphans() -> None:
  """Descendants whose parent is gone become this process's children."""
  _check(_libc.prctl(_PR_SET_SUBREAPER, 1, 0, 0, 0), "prctl")


def drop_capabilities() -> None:
  """What root executes from now on has none of its powers."""
  for capability in range(64):
    if _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
      _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl")


def forbid_privileges() -> None:
  """No program that is executed from now on gains rights; what follows needs that."""
  _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


# --- Landlock -----------------------------------------------------------------

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15  # truncate, ioctl on a device
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # by version; from 5 on 16


def landlock_version() -> int:
  """Of the kernel's Landlock; 0 if it has none."""
  return max(_libc.syscall(ctypes.c_long(_LANDLOCK_CREATE), None, ctypes.c_size_t(0), 1), 0)


def restrict_files(
  readable: Iterable[str], listable: Iterable[str], writable: Iterable[str], devices: Iterable[str]
) -> None:
  """From now on this process reads what is below `readable`, lists what is below `listable`,
  changes what is below `writable`, and nothing else; where the kernel's version has that, it opens
  no TCP connection and signals no process outside."""
  version = landlock_version()
  if not version:
    raise OSError("no Landlock")
  every = (1 << _FILE_RIGHTS.get(version, 16)) - 1
  handled = [every, 0b11, 0b11][: 1 + (version >= 4) + (version >= 6)]  # files, TCP, scopes
  attributes = struct.pack(f"={len(handled)}Q", *handled)
  size = ctypes.c_size_t(len(attributes))
  ruleset = _call(_LANDLOCK_CREATE, "landlock_create_ruleset", attributes, size, 0)
  granted = (
    (readable, _READ),
    (listable, _READ_DIR),
    (writable, every),
    (devices, _READ_FILE | _WRITE_FILE),
  )
  for paths, rights in granted:
    for path in paths:
      fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
      allowed = rights & every & (every if os.path.isdir(path) else _FILE_ONLY)
      rule = struct.pack("=Qi", allowed, fd)
      _call(_LANDLOCK_ADD, "landlock_add_rule", ruleset, 1, rule, 0)
      os.close(fd)
  _call(_LANDLOCK_RESTRICT, "landlock_restrict_self", ruleset, 0)
  os.close(ruleset)


# --- seccomp ------------------------------------------------------------------

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name: (x86_64, aarch64)
_ALWAYS = {
  "socket": (41, 198),
  "ptrace": (101, 117),
  "process_vm_readv": (310, 270),
  "process_vm_writev": (311, 271),
  "pidfd_getfd": (438, 438),
  "io_uring_setup": (425, 425),
  "unshare": (272, 97),
  "setns": (308, 268),
  "mount": (165, 40),
  "umount2": (166, 39),
  "pivot_root": (155, 41),
  "chroot": (161, 51),
  "open_tree": (428, 428),
  "move_mount": (429, 429),
  "fsopen": (430, 430),
  "mount_setattr": (442, 442),
  "keyctl": (250, 219),
  "add_key": (248, 217),
  "request_key": (249, 218),
  "bpf": (321, 280),
  "perf_event_open": (298, 241),
  "userfaultfd": (323, 282),
  "memfd_create": (319, 279),
}
# where the processes of others are in sight, and what is left is killed by its process group
_IN_SIGHT = {
  "setsid": (112, 157),
  "setpgid": (109, 154),
  "kill": (62, 129),
  "tkill": (200, 130),
  "tgkill": (234, 131),
  "rt_sigqueueinfo": (129, 138),
  "rt_tgsigqueueinfo": (297, 240),
  "pidfd_send_signal": (424, 424),
  "shmget": (29, 194),
  "msgget": (68, 186),
  "semget": (64, 190),
  "mq_open": (240, 180),
  "sched_setaffinity": (203, 122),
  "sched_setscheduler": (144, 119),
  "setpriority": (141, 140),
  "ioprio_set": (251, 30),
}
_PRLIMIT64, _CLONE, _CLONE3 = (302, 261), (56, 220), (435, 435)
_CLONE_THREAD = 0x00010000
_LOAD, _RETURN, _EQUAL, _AT_LEAST, _ANY_BIT = 0x20, 0x06, 0x15, 0x35, 0x45
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # where they are in what a filter sees


def filter_calls(*, in_sight: bool, forks: bool) -> None:
  """From now on system calls that reach beyond the process fail with EPERM.

  Args:
    in_sight: whether those fail too that reach other processes of the user, or leave the group.
    forks: whether it may start processes; threads it may.

  Raises OSError on an architecture that is not known here.
  """
  machine = platform.machine()
  if machine not in _ARCHITECTURES:
    raise OSError(f"no filter of system calls for {machine}")
  column = list(_ARCHITECTURES).index(machine)
  calls = _ALWAYS | (_IN_SIGHT if in_sight else {})
  refused = [call[column] for call in calls.values()]
  if not forks and machine == "x86_64":
    refused += [57, 58]  # fork and vfork, which aarch64 does not have
  # (code, operand, where to if true, where to if not): a label, or a number of lines to skip
  lines: list[tuple[int, int, str | int, str | int]] = [
    (_LOAD, _ARCHITECTURE, 0, 0),
    (_EQUAL, _ARCHITECTURES[machine], 0, "kill"),
    (_LOAD, _NUMBER, 0, 0),
    (_AT_LEAST, 0x40000000, "refuse", 0),  # the other table of x86_64
    *((_EQUAL, number, "refuse", 0) for number in refused),
  ]
  if not forks:  # the flags of clone3 are out of a filter's reach; without it, clone is used
    lines += [(_EQUAL, _CLONE3[column], "missing", 0), (_EQUAL, _CLONE[column], 0, 2)]
    lines += [(_LOAD, _FIRST_ARGUMENT, 0, 0), (_ANY_BIT, _CLONE_THREAD, "allow", "refuse")]
  lines += [(_EQUAL, _PRLIMIT64[column], 0, "allow"), (_LOAD, _FIRST_ARGUMENT, 0, 0)]
  lines += [(_EQUAL, 0, "allow", "refuse")]  # its own limits
  ends = {"allow": _ALLOW, "refuse": _ERROR | 1, "missing": _ERROR | 38, "kill": _KILL}
  place = {label: len(lines) + i for i, label in enumerate(ends)}

  def jump(line: int, to: str | int) -> int:
    return to if isinstance(to, int) else place[to] - line - 1

  code = b"".join(
    struct.pack("=HBBI", kind, jump(i, yes), jump(i, no), operand)
    for i, (kind, operand, yes, no) in enumerate(lines)
  )
  code += b"".join(struct.pack("=HBBI", _RETURN, 0, 0, value) for value in ends.values())
  buffer = ctypes.create_string_buffer(code, len(code))
  header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
  _check(_libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0), "seccomp")
