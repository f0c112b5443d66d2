"""A config -> what makes updates, and the state it is in on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from ml_collections import FrozenConfigDict

from vespo_jax import advantages, config_policy, exports, objectives, parts, sharding
from vespo_jax import config as config_lib
from vespo_jax.advantages import Advantage
from vespo_jax.config import ConfigError
from vespo_jax.learner import manifest
from vespo_jax.learner.anchors import Anchors, copy
from vespo_jax.learner.checkpoint import CheckpointError, Checkpoints, RunState, abstract_like
from vespo_jax.learner.gradient import LossSettings
from vespo_jax.learner.numerics import GuardedUpdate, Limits, Update
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.update import (
  StepSettings,
  compile_score,
  compile_score_adapters,
  compile_update,
  init_state,
  make_update,
  place_state,
  state_shardings,
)
from vespo_jax.models import Compute, ModelSpec, lora
from vespo_jax.models.lora import LoraSettings
from vespo_jax.objectives import Objective
from vespo_jax.runtime import Schedule
from vespo_jax.tokenizers import Tokenizer
from vespo_jax.types import Params, TrainState


@dataclasses.dataclass(frozen=True)
class Learner:
  """What makes updates.

  Attributes:
    state: before the first update, placed on `mesh`.
    update: compiled.
    policy: a state -> the model's parameters, merged where adapters are trained.
    anchors: the fixed policies of the loss.
    adapters: None if the whole model is trained.
    offload: whether the optimizer's state is in the host's memory between updates.
  """

  mesh: jax.sharding.Mesh
  spec: ModelSpec
  state: TrainState
  update: GuardedUpdate
  policy: Callable[[TrainState], Params]
  anchors: Anchors
  adapters: LoraSettings | None
  offload: bool

  def restore(
    self, checkpoints: Checkpoints, at_most: int, set_aside: Callable[[Path, str], None]
  ) -> RunState | None:
    """The newest good run of at most `at_most` updates, placed like `state`, with what is frozen.

    The optimizer's moments of `state` are deleted if there is one: with both, a run that fills its
    devices could not go on. See `Checkpoints.restore`.
    """
    shardings = state_shardings(self.mesh, self.spec, self.state, self.offload)
    moments = jax.tree.leaves(self.state.opt_state)

    def make_room() -> None:
      for leaf in moments:
        leaf.delete()

    like = abstract_like(self.state, shardings)
    found = checkpoints.restore(like, at_most, set_aside, make_room)
    if found is None:
      return None
    state = dataclasses.replace(found.state, frozen=self.state.frozen)
    return dataclasses.replace(found, state=state)

  def start_rollout_batch(self, run: RunState, schedule: Schedule) -> None:
    """Fixes the proximal policy: within a rollout batch what was published, and where one begins
    that of `run.state`.

    Raises CheckpointError if the run does not have the adapters behind what was published.
    """
    if not self.anchors.needs_proximal:
      return
    step = int(run.state.step)
    within = not schedule.publishes(step)
    published = run.samplers.weights.get(schedule.published(step)) if within else None
    if published is None:
      self.anchors.start_rollout_batch(run.state.params)
    elif self.adapters is None:
      shardings = sharding.param_shardings(self.mesh, self.spec)
      self.anchors.proximal = sharding.place(published, shardings)
    elif run.proximal is None:
      raise CheckpointError("the checkpoint lacks the adapters that its rollouts began with")
    else:
      self.anchors.proximal = run.proximal


@dataclasses.dataclass(frozen=True)
class Method:
  """What is optimised: the objective, what rewards become, and what surrounds both."""

  objective: Objective
  advantage: Advantage
  loss: LossSettings


def configured_method(config: FrozenConfigDict) -> Method:
  """The method of reinforcement learning that the config names."""
  return Method(
    config_lib.make_objective(config), config_lib.make_advantage(config), loss_settings(config)
  )


def supervised_method(config: FrozenConfigDict) -> Method:
  """The method that imitates: every demonstration has advantage 1, every token coefficient 1
  (cross entropy) or its probability (DFT), and the mean is over tokens."""
  loss = LossSettings(
    aggregation="token-mean",
    micro_batches=config.batch.micro_batches,
    compute=parts.pick(Compute, config.policy),
    balance_coefficient=config.moe.balance_coefficient,
    z_coefficient=config.moe.z_coefficient,
  )
  objective = objectives.dft() if config.sft.loss == "dft" else objectives.make("reinforce")
  return Method(objective, advantages.make("rloo"), loss)  # of one sample the reward itself, 1


def make_learner(
  config: FrozenConfigDict,
  mesh: jax.sharding.Mesh,
  spec: ModelSpec,
  params: Params,
  method: Method | None = None,
  updates: int | None = None,
) -> Learner:
  """The learner of the policy `params`, before its first update, which may donate them.

  `method` and `updates` (of the whole run) are the configured ones where they are not given. Raises
  ConfigError if the policy does not divide over the mesh, or there is no host memory to offload to.
  """
  if config.optimizer.offload:
    try:
      sharding.check_host_memory(mesh.local_devices[0])
    except ValueError as error:
      raise ConfigError(f"optimizer.offload=True: {error}") from error
  parts.param_shardings(mesh, spec)  # or ConfigError
  method = method or configured_method(config)
  step = make_step(config, spec, method, updates)
  optimizer, adapters = step.optimizer, step.adapters
  if adapters is None:
    state = init_state(params, optimizer)
  else:
    trained = lora.init(spec, jax.random.key(config.seed), adapters)
    state = init_state(trained, optimizer, frozen=params)
  loss = method.loss
  offload = config.optimizer.offload
  state = place_state(mesh, spec, state, offload)
  reference = None
  if loss.needs_reference:
    reference = copy(state.params) if adapters is None else state.frozen  # the former is donated
  score_adapters = None
  if adapters is not None and state.frozen is not None:
    score_adapters = compile_score_adapters(mesh, spec, loss, state.frozen, adapters)
  anchors = Anchors(
    score=compile_score(mesh, spec, loss),
    reference=reference,
    needs_proximal=loss.needs_proximal,
    replay_proximal=loss.replay == "R2",
    score_adapters=score_adapters,
  )
  compiled = compile_update(step.update, mesh, spec, state, step.limits, offload)
  return Learner(mesh, spec, state, compiled, model_of(adapters), anchors, adapters, offload)


@dataclasses.dataclass(frozen=True)
class Step:
  """An update that is not compiled yet, and what it was made with."""

  update: Update
  optimizer: optax.GradientTransformation
  adapters: LoraSettings | None
  limits: Limits


def make_step(
  config: FrozenConfigDict,
  spec: ModelSpec,
  method: Method | None = None,
  updates: int | None = None,
) -> Step:
  """The update of the configured run, with no array and no device behind it.

  `method` and `updates` as in `make_learner`.
  """
  method = method or configured_method(config)
  settings = parts.pick(OptimizerSettings, config.optimizer)
  optimizer = make_optimizer(settings, config.updates if updates is None else updates)
  adapters = config_policy.make_lora(config, spec)
  update = make_update(
    spec,
    method.objective,
    method.advantage,
    optimizer,
    method.loss,
    parts.pick(StepSettings, config.optimizer),
    adapters,
    recorded=config.rollouts.save_groups if config.rollouts.save_tokens else 0,
  )
  limits = Limits(
    max_grad_norm=config.guards.max_grad_norm or math.inf,
    max_log_w=config.guards.max_log_w or math.inf,
    max_skipped=config.guards.max_skipped,
  )
  return Step(update, optimizer, adapters, limits)


def read_checkpoint(
  workdir: Path, step: int | None = None, tensor: int = 1
) -> tuple[int, ModelSpec, Params, Tokenizer]:
  """The policy of a run's checkpoint after `step` updates, or of its newest good one, and its step;
  over `tensor` devices, with adapters merged. Nothing is changed there: the run may be under way.

  Raises FileNotFoundError naming the checkpoints there are, ConfigError, CheckpointError.
  """
  config = config_lib.read(workdir / "config.json")
  there = exports.checkpoint_steps(workdir)
  if not there or (step is not None and step not in there):
    wanted = "no checkpoint" if step is None else f"no checkpoint of update {step}"
    raise FileNotFoundError(f"{workdir} has {wanted}; it has {there or 'none'}")
  mesh = sharding.make_mesh({"tensor": tensor}, jax.local_devices()[:tensor])
  spec, params, tokenizer = parts.load_policy(config, mesh)
  learner = make_learner(config, mesh, spec, params)
  damaged: list[str] = []
  with contextlib.closing(
    Checkpoints(workdir / "checkpoints", spec, read_only=True)
  ) as checkpoints:
    at_most = sys.maxsize if step is None else step  # newer ones may be there by now
    run = learner.restore(
      checkpoints, at_most, lambda place, problem: damaged.append(f"{place}: {problem}")
    )
  found = None if run is None else int(run.state.step)
  if run is None or found is None or (step is not None and found != step):
    why = "; ".join(damaged) or "the run has removed it"
    raise CheckpointError(f"a checkpoint in {workdir} cannot be read: {why}")
  if damaged:
    print(f"passed over what is damaged: {'; '.join(damaged)}", file=sys.stderr, flush=True)
  base = learner.state.frozen
  if base is not None and not run.reference.endswith(manifest.digest_of(base)):
    raise CheckpointError(f"{workdir} adapted another policy than {config.policy.path} holds now")
  return found, spec, learner.policy(run.state), tokenizer


def loss_settings(config: FrozenConfigDict) -> LossSettings:
  """What the config says of the loss."""
  return LossSettings(
    temperature=config.sampler.temperature,
    aggregation=config.objective.aggregation or None,
    micro_batches=config.batch.micro_batches,
    compute=parts.pick(Compute, config.policy),
    proximal_denominator=config.correction.denominator != "behaviour",
    correction=config_lib.make_correction(config),
    kl_coefficient=config.kl.coefficient,
    kl_estimator=config.kl.estimator,
    kl_in_reward=config.kl.placement == "reward",
    entropy_coefficient=config.entropy.coefficient,
    proximal_divergence=config.proximal_step.divergence,
    proximal_step_size=config.proximal_step.step_size,
    balance_coefficient=config.moe.balance_coefficient,
    z_coefficient=config.moe.z_coefficient,
    replay=config.moe.replay,
  )


def model_of(adapters: LoraSettings | None) -> Callable[[TrainState], Params]:
  """A state -> the model's parameters, merged where adapters are trained."""
  if adapters is None:
    return lambda state: state.params
  merge = jax.jit(lora.merge, static_argnums=2)
  return lambda state: merge(state.frozen, state.params, adapters)
