"""Integrating the update field: one optimizer step as one step of an ODE solver.

Policy iteration follows the field -grad L(theta). Euler's method takes its value at the start of
the step; where the field rotates, as between two players, that spirals outwards. Heun's method and
Runge and Kutta's also evaluate it where the step leads.
Source: "Training GANs by Solving ODEs" (arXiv 2010.15040).
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from vespo_jax.types import Params

INTEGRATORS = ("euler", "heun", "rk4")


def combine(
  integrator: str,
  first: Params,
  gradient: Callable[[Params], Params],
  advance: Callable[[Params, float], Params],
) -> Params:
  """The gradient that one optimizer step takes: a mean of gradients at intermediate parameters.

  Args:
    integrator: `euler`, `heun` (second order, one more evaluation) or `rk4` (fourth order, three
      more).
    first: the gradient at the start.
    gradient: the gradient at other parameters, on the same minibatch, with coefficients of their
      own.
    advance: `(gradient, fraction) -> parameters` that fraction of an optimizer step from the start
      along. With plain gradient descent the result is the classical method with the learning rate
      as step; with Adam every stage starts from the same moments, which change once.

  Raises ValueError for an unknown integrator.
  """
  if integrator == "euler":
    return first
  if integrator == "heun":
    second = gradient(advance(first, 1.0))
    return jax.tree.map(lambda a, b: (a + b) / 2, first, second)
  if integrator == "rk4":
    second = gradient(advance(first, 0.5))
    third = gradient(advance(second, 0.5))
    fourth = gradient(advance(third, 1.0))
    return jax.tree.map(lambda a, b, c, d: (a + 2 * (b + c) + d) / 6, first, second, third, fourth)
  raise ValueError(f"unknown integrator {integrator!r}; known: {', '.join(INTEGRATORS)}")
