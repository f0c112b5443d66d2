"""The default transport: spawned sampler processes, weights through shared memory or in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vespo_jax.processes import Child, ChildDied, ChildStalled
from vespo_jax.runtime import messages
from vespo_jax.runtime.channels import SharedWeights, anonymous_file
from vespo_jax.runtime.links import Fault, Heartbeat
from vespo_jax.runtime.published import PublishedPieces
from vespo_jax.runtime.serving import Blueprint
from vespo_jax.sampler import Order, Result
from vespo_jax.types import Params

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"  # read when JAX starts its backend


class LocalTransport:
  """Workers in processes of their own on this machine.

  Args:
    blueprint: of a worker.
    slots: versions of the weights kept.
    pieces: where weights are published, if the blueprint says in pieces.
    env: environment variables of the processes, for instance their share of the GPU's memory.
    devices: ids of the GPUs that they see, `tensor` of the blueprint's settings for each in turn;
      none: all there are.

  Raises OSError if there is no room for the weights.
  """

  def __init__(
    self,
    blueprint: Blueprint,
    slots: int,
    pieces: PublishedPieces | None = None,
    env: Mapping[str, str] | None = None,
    devices: Sequence[str] = (),
  ):
    self._weights = pieces or SharedWeights(blueprint.spec, slots)
    # in a file: an argument of a process may have 128 KiB, and a tokenizer is longer
    plan = blueprint.to_json().encode()
    self._blueprint = anonymous_file(len(plan))
    self._blueprint.write(plan)
    self._blueprint.flush()
    shared = [self._weights.fd] if isinstance(self._weights, SharedWeights) else []
    self._fds = [self._blueprint.fileno(), *shared]
    self._args = [str(number) for number in (self._fds[0], (*shared, -1)[0], slots)]
    self._env, self._devices, self._tensor = env or {}, devices, blueprint.settings.tensor

  def start(self, worker: int) -> LocalLink:
    """A new process. It finds all kept weights where its predecessor did."""
    mine = self._devices[worker * self._tensor :][: self._tensor]
    visible = {VISIBLE_DEVICES: ",".join(mine)} if mine else {}
    try:
      child = Child(
        "vespo_jax.runtime.sampler_process",
        name="sampler",
        env={**self._env, **visible},
        pass_fds=self._fds,
        args=self._args,
      )
    except OSError as error:
      raise Fault("died", f"its process cannot be started: {error}") from error
    return LocalLink(child)

  def publish(self, version: int, params: Params) -> None:
    """Copies the weights to where workers find them."""
    self._weights.publish(version, params)

  def weights(self, version: int) -> Params:
    """A copy of a kept set. Raises LookupError."""
    return self._weights.weights(version)

  def close(self) -> None:
    """Frees what holds the weights and the blueprint. Idempotent."""
    self._weights.close()
    self._blueprint.close()


class LocalLink:
  """A worker in a child process."""

  def __init__(self, child: Child):
    self._child = child

  def send(self, order: Order) -> None:
    """Sends an order. Raises Fault."""
    try:
      self._child.send(messages.encode(order))
    except ChildDied as error:
      raise Fault("died", str(error)) from error
    except ChildStalled as error:
      raise Fault("hung", str(error)) from error

  def poll(self) -> Result | Heartbeat | None:
    """The next message, or None. Raises Fault."""
    try:
      return messages.decode_reply(self._child.receive(0.0))
    except ChildDied as error:
      raise Fault("died", str(error)) from error
    except ChildStalled as error:
      raise Fault("hung", str(error)) from error
    except TimeoutError:
      return None

  @property
  def alive(self) -> bool:
    """Whether the process is running."""
    return self._child.alive

  @property
  def pid(self) -> int:
    """Its process id."""
    return self._child.pid

  def kill(self) -> None:
    """Ends it with SIGKILL."""
    self._child.kill()

  def close(self) -> None:
    """Ends it: hang up, then signals."""
    self._child.close()
