"""What was given out for which update, and how long the longest prompt was by then."""

import json
import types

from vespo_jax.learner.ledger import Ledger, Portion

LENGTHS = [3, 9, 4, 12, 5, 1, 20, 2, 7, 6]
STREAM = types.SimpleNamespace(indices=lambda start, count: range(start, start + count))


def give(ledger, update, count):
  indices = ledger.next(count)
  return ledger.give(update, indices, max(LENGTHS[i] for i in indices))


def test_portions_know_the_longest_prompt_until_then_and_that_is_saved():
  whole = Ledger(STREAM, 8)
  given = [give(whole, update, 2) for update in (0, 1, 0, 2, 1)]  # with rounds for refills
  assert [portion.longest_prompt for portion in given] == [9, 12, 12, 20, 20]
  first = Ledger(STREAM, 8)
  for update in (0, 1, 0):
    give(first, update, 2)
  first.close(0)
  second = Ledger(STREAM, 0, json.loads(json.dumps(first.to_dict())))
  assert second.open() == [1] and second.rounds(1) == [given[1]]
  assert [give(second, update, 2) for update in (2, 1)] == given[3:]
  assert given[3][1:] == Portion(7, (7,), 20)


def test_what_was_saved_before_lengths_were_is_read():
  old = Ledger(STREAM, 0, {"position": 4, "rounds": {"1": [[2, [2, 3]]]}})
  assert old.rounds(1) == [Portion(2, (2, 3), 0)]
  assert give(old, 2, 2) == Portion(4, (4, 5), 5)
