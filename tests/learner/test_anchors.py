"""The policies that a loss is measured against, and what memory they take."""

import jax
import pytest
from example import fresh_state

from vespo_jax.learner.anchors import Anchors

PARAMS = fresh_state().params


@pytest.mark.parametrize("donated", [True, False])
def test_the_proximal_policy_is_held_once_and_copied_only_where_it_may_be_donated(donated):
  anchors = Anchors(None, reference=None, needs_proximal=True, donated=donated)
  held = []

  def policy():
    held.append(anchors.proximal)
    return PARAMS

  for _ in range(2):
    anchors.start_rollout_batch(policy)
  assert held == [None, None]
  pairs = zip(jax.tree.leaves(anchors.proximal), jax.tree.leaves(PARAMS), strict=True)
  own = [mine.unsafe_buffer_pointer() != its.unsafe_buffer_pointer() for mine, its in pairs]
  assert set(own) == {donated}


def test_nothing_is_kept_where_nothing_is_needed():
  anchors = Anchors(None, reference=None, needs_proximal=False)
  anchors.start_rollout_batch(lambda: pytest.fail("nobody needs it"))
  assert anchors.proximal is None
