import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vespo_jax.tasks import PromptStream, share


@given(st.integers(1, 50), st.integers(0, 2**32 - 1), st.integers(0, 300), st.integers(0, 120))
def test_seeking_equals_reading_from_the_start(size, seed, position, count):
  everything = PromptStream(size, seed).indices(0, position + count)
  np.testing.assert_array_equal(
    PromptStream(size, seed).indices(position, count), everything[position:]
  )


@given(st.integers(1, 50), st.integers(0, 1000))
def test_every_epoch_asks_every_prompt_once(size, seed):
  indices = PromptStream(size, seed).indices(0, 3 * size).reshape(3, size)
  np.testing.assert_array_equal(np.sort(indices), np.tile(np.arange(size), (3, 1)))


def test_epochs_and_seeds_have_orders_of_their_own():
  epochs = PromptStream(100, 0).indices(0, 200).reshape(2, 100)
  assert (epochs[0] != epochs[1]).any()
  assert (PromptStream(100, 1).indices(0, 100) != epochs[0]).any()


def test_no_prompts_are_still_indices():
  assert PromptStream(5, 0).indices(3, 0).dtype == np.int64


def test_nothing_to_stream():
  with pytest.raises(ValueError, match="at least one"):
    PromptStream(0, 0)


@given(st.integers(0, 200), st.integers(1, 16))
def test_hosts_share_every_prompt_once_and_evenly(count, hosts):
  shares = [share(count, host, hosts) for host in range(hosts)]
  assert [index for part in shares for index in part] == list(range(count))
  assert max(map(len, shares)) - min(map(len, shares)) <= 1
