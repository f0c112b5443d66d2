"""The settings of a run: one world per seed, and the sweeps over behaviour policies in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from experiments.estimators import engines, policy
from experiments.estimators.estimates import Setting, Target, make_target
from experiments.estimators.presets import Preset
from experiments.estimators.tree import Tree, enumerate_responses, rewards
from vespo_jax.types import Params

_MAX_UPDATES = 2000  # to reach the start


def settings(preset: Preset, seed: int) -> Iterator[Setting]:
  """All settings of one seed, sweep after sweep; each is made when it is asked for."""
  world = _world(preset, seed, preset.max_length)
  yield from _staleness(preset, world)
  yield from _drift(preset, seed, world)
  yield from _engines(preset, seed, world)
  yield from _lengths(preset, seed)


def count(preset: Preset) -> int:
  """The number of settings of one seed."""
  sweeps = (preset.staleness, preset.drift, preset.noise, preset.rounding, preset.lengths)
  return sum(len(values) for values in sweeps)


@dataclasses.dataclass(frozen=True)
class World:
  """The task at one maximum length, and the behaviour policy's parameters.

  Attributes:
    behaviour_BT: its log-probs of the tokens of every response.
    path: the parameters after 1, 2, .. further updates.
  """

  tree: Tree
  rewards_B: np.ndarray
  params: Params
  behaviour_BT: np.ndarray
  path: Iterator[tuple[Params, float]]


def _world(preset: Preset, seed: int, max_length: int) -> World:
  tree = enumerate_responses(preset.vocab_size, max_length)
  rewards_B = rewards(tree)
  start = policy.initial(preset.spec, seed)
  path = engines.ascent(start, preset.spec, tree, rewards_B, preset.learning_rate)
  for _ in range(_MAX_UPDATES):
    params, reward = next(path)
    if reward >= preset.start_reward:
      behaviour_BT = tree.along(policy.log_probs(params, preset.spec, tree))
      return World(tree, rewards_B, params, behaviour_BT, path)
  raise RuntimeError(f"seed {seed}, length {max_length}: no reward of {preset.start_reward}")


def _target(preset: Preset, world: World, params: Params) -> Target:
  return make_target(params, preset.spec, world.tree, world.rewards_B)


def _staleness(preset: Preset, world: World) -> Iterator[Setting]:
  """The behaviour policy of k updates ago."""
  params = world.params
  for k in range(preset.staleness[-1] + 1):
    if k in preset.staleness:
      yield Setting("staleness", k, _target(preset, world, params), world.behaviour_BT)
    params, _ = next(world.path)


def _drift(preset: Preset, seed: int, world: World) -> Iterator[Setting]:
  """A policy that left the behaviour policy in a random direction."""
  direction = engines.direction(world.params, seed)
  for size in preset.drift:
    params = engines.moved(world.params, direction, size)
    yield Setting("drift", size, _target(preset, world, params), world.behaviour_BT)


def _engines(preset: Preset, seed: int, world: World) -> Iterator[Setting]:
  """The same policy through a noisy or a rounded engine."""
  target = _target(preset, world, world.params)
  log_probs_XV = policy.log_probs(world.params, preset.spec, world.tree)
  for noise in preset.noise:
    noisy_XV = engines.noisy(log_probs_XV, noise, seed)
    yield Setting("noise", noise, target, world.tree.along(noisy_XV))
  for name in preset.rounding:
    rounded = engines.ROUNDINGS[name](world.params)
    rounded_XV = policy.log_probs(rounded, preset.spec, world.tree)
    yield Setting("rounding", name, target, world.tree.along(rounded_XV))


def _lengths(preset: Preset, seed: int) -> Iterator[Setting]:
  """A world for each maximum length, drifted at random to the same divergence per token."""
  for max_length in preset.lengths:
    world = _world(preset, seed, max_length)
    target = _target(preset, world, _drifted(preset, seed, world))
    yield Setting("length", max_length, target, world.behaviour_BT)


def _drifted(preset: Preset, seed: int, world: World) -> Params:
  """The parameters moved at random until KL(behaviour || policy) is the preset's per token."""
  tree, probs_B = world.tree, np.exp(world.behaviour_BT.sum(axis=1))
  direction = engines.direction(world.params, seed)

  def drift(size: float) -> float:
    moved = engines.moved(world.params, direction, size)
    log_ratio_BT = tree.along(policy.log_probs(moved, preset.spec, tree)) - world.behaviour_BT
    return float(probs_B @ -log_ratio_BT.sum(axis=1) / (probs_B @ tree.lengths_B))

  size = engines.size_for_drift(drift, preset.drift_per_token)
  return engines.moved(world.params, direction, size)
