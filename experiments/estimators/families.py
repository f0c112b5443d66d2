"""What kind of weight an objective puts on a sequence, found by probing it.

There is no list of names here: a new objective finds its family by how its coefficients answer to
small and to large log ratios.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax import objectives
from vespo_jax.objectives import Objective

NONE = "no weight"
SEQUENCE = "weight of the whole sequence"
NORMALISED = "length-normalised ratio"
TOKEN = "weight of each token"
CLIP = "clip or mask of each token"
DIVERGENCE = "mask by divergence"
BATCH = "bounds from the whole batch"

_SMALL, _LARGE = 1e-6, 2.0  # log ratios: inside and outside every trust region
_LIKELY, _UNLIKELY = 0.1, 1e-4  # behaviour probabilities of the probes' tokens


def family(objective: Objective) -> str:
  """The family of an objective:

  a weight that answers to a later token's ratio is the sequence's, and length-normalised if the
  answer shrinks with the length; one that answers to no ratio is none; any other is the token's,
  which is clipped or masked where a large ratio makes it exactly 0, by a divergence if that depends
  on how likely the token was. `batch_wide` says the rest.
  """
  if objective.batch_wide:
    return BATCH
  later, longer = _answer_to_last(objective, 2), _answer_to_last(objective, 4)
  if later > 0:
    return NORMALISED if longer < 0.75 * later else SEQUENCE
  zeros = [_coefficients(objective, signs, _LARGE, _LIKELY) == 0 for signs in _signs(1)]
  if np.any(zeros):
    rare = [_coefficients(objective, signs, _LARGE, _UNLIKELY) == 0 for signs in _signs(1)]
    return CLIP if np.array_equal(zeros, rare) else DIVERGENCE
  answers = [_coefficients(objective, signs, _SMALL, _LIKELY) != 1 for signs in _signs(1)]
  return TOKEN if np.any(answers) else NONE


def _signs(length: int) -> list[tuple[float, np.ndarray]]:
  """Both signs of the advantage, with a ratio off 1, either way, at the last token only."""
  last = np.eye(length)[-1]
  return [(a, way * last) for a, way in itertools.product((1.0, -1.0), repeat=2)]


def _answer_to_last(objective: Objective, length: int) -> float:
  """The largest |d c_1 / d log r_T| about the on-policy point."""
  answers = [
    abs(_coefficients(objective, signs, _SMALL, _LIKELY)[0] - 1) / _SMALL
    for signs in _signs(length)
  ]
  return float(max(answers))


def _coefficients(
  objective: Objective, signs: tuple[float, np.ndarray], size: float, probability: float
) -> np.ndarray:
  """[T]: the coefficients of one sequence with log ratios `size` times the given directions."""
  advantage, direction_T = signs
  with jax.enable_x64(True):
    behaviour = jnp.full((1, len(direction_T)), np.log(probability))
    weights, _ = objectives.token_weights(
      objective,
      policy_logprobs=behaviour + size * direction_T,
      behaviour_logprobs=behaviour,
      advantages=jnp.asarray([advantage]),
      mask=jnp.ones(behaviour.shape, bool),
    )
    return np.asarray(weights.coefficients[0])
