"""The processes of a run that spans several hosts (multi-controller JAX).

Every process makes the same calls in the same order; what one of them alone knows is shared here,
so that all decide alike. What is short (a decision, a failure) goes through the coordination
service of `jax.distributed`, which can be waited for with a limit; what is long goes through a
collective of the devices, which is entered once all are known to be there.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

_PREFIX = "vespo_jax"  # of the keys in the coordination service
_LOOK_S = 0.5  # between two looks at what others say, while waiting
_GRACE_S = 30.0  # from a failure anywhere to the end of every process, whatever it hangs in
_SMALLEST = 4096  # bytes of a collective; sizes are powers of two, so that few are compiled


class HostsFailed(RuntimeError):
  """Another process of the run failed, ended, or did not come in time."""


class Hosts:
  """A process that is a whole run by itself, for which all of this is trivial.

  Args:
    stop: whether this process was asked to stop.

  Attributes:
    index: of this process, from 0.
    count: of processes.
  """

  index = 0
  count = 1

  def __init__(self, stop: Callable[[], bool] = lambda: False):
    self._stop = stop

  @property
  def first(self) -> bool:
    """Whether this is the process that writes the run directory and speaks to the terminal."""
    return self.index == 0

  def connect(self, mesh: Mesh) -> None:
    """Lets the devices that will speak with one another, those along any axes of the mesh, meet."""

  def stopping(self) -> bool:
    """Whether some process is known to have been asked to stop. Others may not know it yet: it ends
    waits, and decides nothing that all must do alike."""
    return self._stop()

  def stopped(self) -> bool:
    """Whether some process was asked to stop, with the same answer in all of them."""
    return self._stop()

  def tell(self, make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, values that JSON has, in all of them."""
    return make()

  def merge(self, mine: bytes | None) -> list[bytes] | None:
    """The bytes of all processes, by index; None if one of them gave None instead."""
    return None if mine is None else [mine]

  def wait(self) -> None:
    """Returns once all processes are here."""

  @contextlib.contextmanager
  def together(self) -> Iterator[None]:
    """What fails inside, in one process, fails in all of them."""
    yield

  def close(self) -> None:
    """Leaves the run, once all processes are done."""


class ManyHosts(Hosts):
  """One of several processes, after `jax.distributed.initialize`.

  Every method that returns what all know raises HostsFailed if another process announced a failure,
  or is not there within `timeout_s`. One that dies without a word is noticed by JAX itself, which
  then ends this process: within the heartbeat timeout.

  Args:
    stop: as of `Hosts`.
    timeout_s: the longest wait for another process: longer than any of them may work alone.
  """

  def __init__(self, stop: Callable[[], bool], timeout_s: float):
    super().__init__(stop)
    self.index, self.count = jax.process_index(), jax.process_count()
    self._timeout_s, self._client = timeout_s, _client()
    self._round = 0
    self._asked_to_stop = False
    self._failure = ""  # of another process, in its words
    self._ended = threading.Event()
    self._watcher = threading.Thread(target=self._watch, name="hosts", daemon=True)
    self._watcher.start()

  def connect(self, mesh: Mesh) -> None:
    """See `Hosts.connect`. Gloo gives them half a minute, which compiling may take one of them."""
    self.merge(b"")
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    for count in range(1, len(axes) + 1):
      for along in itertools.combinations(axes, count):
        add = functools.partial(jax.lax.psum, axis_name=along)
        meet = jax.shard_map(add, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
        jax.block_until_ready(jax.jit(meet)(np.zeros(1, np.float32)))

  def stopping(self) -> bool:
    """See `Hosts.stopping`."""
    return self._asked_to_stop or self._stop()

  def stopped(self) -> bool:
    """See `Hosts.stopped`."""
    return any(self._agree(self._stop()))

  def tell(self, make: Callable[[], Any]) -> Any:
    """See `Hosts.tell`."""
    return self._agree(make() if self.first else None)[0]

  def merge(self, mine: bytes | None) -> list[bytes] | None:
    """See `Hosts.merge`."""
    sizes = self._agree(None if mine is None else len(mine))
    if mine is None or None in sizes:
      return None
    ends = np.cumsum(sizes).tolist()
    width = max(_SMALLEST, 1 << max(ends[-1] - 1, 0).bit_length())
    part = np.zeros(width, np.uint8)
    part[ends[self.index] - len(mine) : ends[self.index]] = np.frombuffer(mine, np.uint8)
    # all are sources, and it is a sum: where one of them has a byte, the others have zeros
    whole = multihost_utils.broadcast_one_to_all(part, is_source=True).tobytes()
    return [whole[end - size : end] for size, end in zip(sizes, ends, strict=True)]

  def wait(self) -> None:
    """See `Hosts.wait`."""
    self._agree(None)

  @contextlib.contextmanager
  def together(self) -> Iterator[None]:
    """See `Hosts.together`. A collective that fails raises HostsFailed."""
    try:
      yield
    except (HostsFailed, jax.errors.JaxRuntimeError) as error:
      if not self._failure:  # then JAX's orderly end would wait for whoever is gone
        atexit.register(_leave)
      self._announce(error)
      if isinstance(error, HostsFailed):
        raise
      words = self._failure or f"a collective failed, as when another process ends: {error}"
      raise HostsFailed(words) from error
    except BaseException as error:  # whatever it is: the others are waiting for this process
      self._announce(error)
      raise

  def close(self) -> None:
    """See `Hosts.close`."""
    self.wait()
    self._ended.set()
    self._watcher.join()
    jax.distributed.shutdown()

  def _agree(self, mine: Any) -> list[Any]:
    """What every process gave, by index, values that JSON has; the first collects and hands out."""
    self._round += 1
    here = f"{_PREFIX}/{self._round}"
    self._client.key_value_set(f"{here}/{self.index}", json.dumps(mine))
    if self.first:
      others = [self._read(f"{here}/{index}", index) for index in range(1, self.count)]
      values = [json.dumps(mine), *others]
      self._client.key_value_set(f"{here}/all", f"[{', '.join(values)}]")
      self._client.key_value_delete(f"{_PREFIX}/{self._round - 1}/")  # all have read that
    return json.loads(self._read(f"{here}/all", 0))

  def _read(self, key: str, index: int) -> str:
    """What process `index` wrote, once it has. Raises HostsFailed."""
    deadline = time.monotonic() + self._timeout_s
    while True:
      try:
        return self._client.blocking_key_value_get(key, int(1000 * _LOOK_S))
      except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
          raise HostsFailed(f"the coordination service of JAX is gone: {error}") from error
      if self._failure:
        raise HostsFailed(self._failure)
      if time.monotonic() > deadline:
        raise HostsFailed(f"process {index} did not come within {self._timeout_s:g} s")

  def _announce(self, error: BaseException) -> None:
    """Tells the others, and ends this process if it is still there a while later."""
    words = f"process {self.index} failed: {type(error).__name__}: {error}"
    if not self._failure:
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # one that failed first was faster
        self._client.key_value_set(f"{_PREFIX}/notices/failed", words)
    self._end_soon(words)

  def _end_soon(self, words: str) -> None:
    timer = threading.Timer(_GRACE_S, _give_up, [words])
    timer.daemon = True
    timer.start()

  def _watch(self) -> None:
    """Passes on that a process is to stop, and notices that one failed."""
    notices = f"{_PREFIX}/notices/"
    told = False
    while not self._ended.wait(_LOOK_S):
      try:
        if self._stop() and not told:
          self._client.key_value_set(f"{notices}stop", str(self.index), allow_overwrite=True)
          told = True
        found = dict(self._client.key_value_dir_get(notices))
      except jax.errors.JaxRuntimeError:
        return  # the service is gone, which JAX notices
      self._asked_to_stop = f"{notices}stop" in found
      failure = found.get(f"{notices}failed", "")
      if failure and not self._failure and not failure.startswith(f"process {self.index} "):
        self._failure = failure
        self._end_soon(failure)


def join(
  *,
  coordinator_address: str,
  num_processes: int,
  process_id: int,
  initialization_timeout_s: int,
  heartbeat_timeout_s: int,
  timeout_s: float,
  stop: Callable[[], bool],
) -> ManyHosts:
  """Joins the processes of a run, before JAX has touched a device.

  The first three are those of `jax.distributed.initialize`; "", 0 and -1 leave them to what JAX
  finds in the environment (Cloud TPU, GKE, SLURM, Open MPI). SIGTERM stays this process's own: it
  is not given to JAX's preemption service, since `Hosts` tells all processes itself.

  Raises HostsFailed if the others are not there within `initialization_timeout_s`, ValueError if
  something is missing that JAX cannot find.
  """
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      coordinator_address or None,
      num_processes or None,
      None if process_id < 0 else process_id,
      initialization_timeout=initialization_timeout_s,
      heartbeat_timeout_seconds=heartbeat_timeout_s,
      shutdown_timeout_seconds=int(_GRACE_S),
    )
  except jax.errors.JaxRuntimeError as error:
    raise HostsFailed(f"the processes of the run did not find each other: {error}") from error
  return ManyHosts(stop, timeout_s)


def _client() -> Any:
  """The client of the coordination service. JAX gives it no public name; its users are many."""
  from jax._src import distributed

  return distributed.global_state.client


def _leave() -> None:
  time.sleep(2 * _LOOK_S)  # others may still ask this process what failed
  for stream in (sys.stdout, sys.stderr):
    stream.flush()
  os._exit(1)


def _give_up(words: str) -> None:
  print(f"error: {words}; this process hangs, and ends", file=sys.stderr, flush=True)
  os._exit(1)
