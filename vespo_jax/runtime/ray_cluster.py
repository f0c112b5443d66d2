"""Samplers as Ray actors, on any node of a cluster; the only module that imports `ray`.

An actor takes and gives `bytes`, the same messages as a process on this machine; weights are one
block of float32 bytes in Ray's object store, put once per version, pulled once per node, and read
there without a copy. Every node needs this package and its requirements.

Ray moves bytes and starts code, with its own serialisation, for whoever reaches its ports: keep
them to trusted machines. Encryption and authentication are Ray's: RAY_USE_TLS and its certificates
(https://docs.ray.io/en/latest/ray-core/configure.html#tls-authentication), and token
authentication (RAY_AUTH_MODE=token), set in the environment of the learner and of every node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import signal
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vespo_jax.runtime import messages
from vespo_jax.runtime.channels import WeightLayout
from vespo_jax.runtime.links import Fault, Heartbeat
from vespo_jax.runtime.published import PublishedPieces
from vespo_jax.runtime.serving import HEARTBEAT_S, Blueprint, serve
from vespo_jax.runtime.threads import KeptWeights
from vespo_jax.sampler import Order, Result
from vespo_jax.types import Params

FETCH_TIMEOUT_S = 60.0  # of weights from the object store
_GROUPS = {"orders": 1, "weights": 1, "replies": 1}  # calls of one kind run in their order


@dataclasses.dataclass(frozen=True)
class RaySettings:
  """Which cluster, and what each sampler takes of it.

  Attributes:
    address: of the cluster, as `ray.init` takes it; "" is that of the environment, or a new one on
      this machine.
    num_cpus, num_gpus: of each sampler; may be fractions.
    resources: custom resources of each sampler, by name.
  """

  address: str = ""
  num_cpus: float = 1.0
  num_gpus: float = 0.0
  resources: Mapping[str, float] = dataclasses.field(default_factory=dict)


class SamplerActor:
  """What runs on a node: a worker on a thread, its inbox and its outbox."""

  def __init__(self, blueprint: str, slots: int):
    plan = Blueprint.from_json(blueprint)
    self._layout = WeightLayout(plan.spec)
    self._weights = KeptWeights(slots)
    self._orders: queue.Queue[bytes | None] = queue.Queue()
    self._said: queue.Queue[bytes] = queue.Queue()
    args = (plan, self._weights, self._orders, self._said.put)
    threading.Thread(target=serve, args=args, name="sampler", daemon=True).start()

  def publish(self, version: int, checksum: int, block: np.ndarray) -> None:
    """Takes over weights from the object store, where they never change.

    Raises ValueError if they are not the bytes that were put there.
    """
    if zlib.crc32(block.data) != checksum:
      raise ValueError(f"version {version} of the weights arrived corrupted")
    self._weights.publish(version, self._layout.read(block))

  def send(self, order: bytes) -> None:
    """Queues an order."""
    self._orders.put(order)

  def replies(self) -> list[bytes]:
    """What the worker said since the last call; waits a moment if that is nothing."""
    said = []
    try:
      said.append(self._said.get(timeout=HEARTBEAT_S))
      while True:
        said.append(self._said.get_nowait())
    except queue.Empty:
      return said


class RayTransport:
  """Workers as actors.

  Args:
    blueprint: of a worker.
    slots: versions of the weights kept.
    settings: where they run.
    env: environment variables of the actors.
    pieces: where weights are published, if the blueprint says in pieces, and not through the object
      store; on a file system that all nodes share.

  Raises:
    ImportError: if ray is not installed (requirements-ray.txt).
    ConnectionError: if there is no cluster at the address.
  """

  def __init__(
    self,
    blueprint: Blueprint,
    slots: int,
    settings: RaySettings,
    env: Mapping[str, str] | None,
    pieces: PublishedPieces | None = None,
  ):
    import ray  # pyrefly: ignore[missing-import]

    remote: Any = ray.remote  # which takes more than its annotations say
    self._ray, self._slots, self._pieces = ray, slots, pieces
    self._blueprint, self._layout = blueprint.to_json(), WeightLayout(blueprint.spec)
    self._owns_ray = not ray.is_initialized()
    if self._owns_ray:
      handler = signal.getsignal(signal.SIGTERM)  # whose place Ray takes
      ray.init(address=settings.address or None, log_to_driver=False)
      if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    self._actor_class = remote(
      num_cpus=settings.num_cpus,
      num_gpus=settings.num_gpus,
      resources=dict(settings.resources),
      runtime_env={"env_vars": dict(env or {})},
      concurrency_groups=_GROUPS,
      max_restarts=0,  # a restart is the pool's decision
    )(SamplerActor)
    self._kept: dict[int, tuple[int, Any]] = {}  # version -> checksum, reference
    self._links: dict[int, RayLink] = {}

  def start(self, worker: int) -> RayLink:
    """Asks the cluster for an actor; it is sent every kept version of the weights."""
    link = RayLink(self._ray, self._actor_class.remote(self._blueprint, self._slots))
    self._links[worker] = link
    for version, (checksum, reference) in self._kept.items():
      link.publish(version, checksum, reference)
    return link

  def publish(self, version: int, params: Params) -> None:
    """Puts the weights into the object store, once, and tells every actor; or writes pieces."""
    if self._pieces is not None:
      self._pieces.publish(version, params)
      return
    block = np.zeros(self._layout.nbytes, np.uint8)
    self._layout.write(params, block)
    checksum, reference = zlib.crc32(block.data), self._ray.put(block)
    self._kept[version] = checksum, reference
    while len(self._kept) > self._slots:
      del self._kept[min(self._kept)]
    for link in self._links.values():
      link.publish(version, checksum, reference)

  def weights(self, version: int) -> Params:
    """A kept set, read where it was published. Raises LookupError if it is not kept."""
    if self._pieces is not None:
      return self._pieces.weights(version)
    _, reference = self._kept[version]
    return self._layout.read(self._ray.get(reference, timeout=FETCH_TIMEOUT_S))

  def close(self) -> None:
    """Leaves the cluster, if this transport entered it. Idempotent."""
    self._kept.clear()
    if self._pieces is not None:
      self._pieces.close()
    if self._owns_ray:
      self._ray.shutdown()
      self._owns_ray = False


class RayLink:
  """A worker in an actor. Calls are sent and not waited for; one call for replies is always out."""

  def __init__(self, ray: Any, actor: Any):
    self._ray, self._actor = ray, actor
    self._ended = False
    self._pid: int | None = None
    self._said: list[bytes] = []
    self._calls: list[Any] = []  # not known to have succeeded yet
    self._replies = self._call("replies", "replies")

  def publish(self, version: int, checksum: int, reference: Any) -> None:
    """Sends weights by reference; if that fails, a later `poll` says so."""
    if not self._ended:
      self._calls.append(self._call("publish", "weights", version, checksum, reference))

  def send(self, order: Order) -> None:
    """Sends an order; if that fails, a later `poll` says so."""
    self._calls.append(self._call("send", "orders", messages.encode(order)))

  def poll(self) -> Result | Heartbeat | None:
    """The next thing said, or None. Raises Fault."""
    if not self._said:
      if self._calls:
        done, self._calls = self._ray.wait(
          self._calls, num_returns=len(self._calls), timeout=0, fetch_local=False
        )
        for call in done:
          self._value(call)
      if self._ray.wait([self._replies], timeout=0)[0]:
        self._said = self._value(self._replies)
        self._replies = self._call("replies", "replies")
    if not self._said:
      return None
    message = messages.decode_reply(self._said.pop(0))
    if isinstance(message, Heartbeat):
      self._pid = message.pid
    return message

  @property
  def alive(self) -> bool:
    """Whether it has said something and was not ended."""
    return self._pid is not None and not self._ended

  @property
  def pid(self) -> int | None:
    """Its process, on whatever node, once it has said so."""
    return self._pid

  def kill(self) -> None:
    """Ends the actor at once; Ray ends it by itself when the cluster or the learner is gone."""
    if not self._ended:
      self._ended = True
      with contextlib.suppress(self._ray.exceptions.RayError):
        self._ray.kill(self._actor)

  def close(self) -> None:
    """The same: an actor has nothing to save."""
    self.kill()

  def _call(self, method: str, group: str, *args: Any) -> Any:
    return getattr(self._actor, method).options(concurrency_group=group).remote(*args)

  def _value(self, call: Any) -> Any:
    try:
      return self._ray.get(call, timeout=HEARTBEAT_S)
    except self._ray.exceptions.RayError as error:
      raise Fault("died", f"its actor: {error}") from error
