"""Sequences of different lengths, one after another in rows of one width, as a `TrainBatch`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vespo_jax.supervised.demonstrations import Encoded
from vespo_jax.types import TrainBatch


@dataclasses.dataclass(frozen=True)
class Packed:
  """Some sequences in rows.

  Attributes:
    batch: host arrays.
    row_N, start_N, stop_N: where each sequence stands, in the order they were given.
  """

  batch: TrainBatch
  row_N: np.ndarray
  start_N: np.ndarray
  stop_N: np.ndarray

  @property
  def tokens(self) -> int:
    """Real tokens."""
    return int((self.stop_N - self.start_N).sum())

  @property
  def padding_fraction(self) -> float:
    """The share of the rows' tokens that is padding."""
    return 1.0 - self.tokens / self.batch.response_tokens_PRT.size


def pack(sequences: Sequence[Encoded], width: int, unit: int) -> Packed:
  """The sequences, each at most `width` long, in as many rows as `rows_for` says.

  A sequence is trained on where it says so, with reward 1 and behaviour log-probs of 0: the data is
  certain of itself, so that policy against behaviour is the log-likelihood.
  """
  lengths_N = np.array([len(sequence) for sequence in sequences])
  row_N, start_N = first_fit(lengths_N, width)
  P = rows_for(int(row_N.max()) + 1, unit)
  tokens_PT, segments_PT = np.zeros((P, width), np.int32), np.zeros((P, width), np.int32)
  trained_PT = np.zeros((P, width), bool)
  count_P = np.zeros(P, np.int32)
  for sequence, row, start in zip(sequences, row_N, start_N, strict=True):
    count_P[row] += 1
    where = slice(start, start + len(sequence))
    tokens_PT[row, where], trained_PT[row, where] = sequence.ids, sequence.trained
    segments_PT[row, where] = count_P[row]
  batch = TrainBatch(
    prompt_tokens_PS=np.zeros((P, 0), np.int32),
    prompt_mask_PS=np.zeros((P, 0), bool),
    response_tokens_PRT=tokens_PT[:, None],
    response_mask_PRT=trained_PT[:, None],
    behaviour_logprobs_PRT=np.zeros((P, 1, width), np.float32),
    rewards_PR=np.ones((P, 1), np.float32),
    segments_PRT=segments_PT[:, None],
  )
  return Packed(batch, row_N, start_N, start_N + lengths_N)


def rows_for(needed: int, unit: int) -> int:
  """The least number of rows, at least `needed`, that has a program: a multiple of `unit` by one of
  1 to 8, 10, 12, 14, 16, 20, 24, .., four to each doubling."""
  units = -(-needed // unit)
  step = 1 << max(units - 1, 1).bit_length() - 3 if units > 8 else 1
  return unit * -(-units // step) * step


def first_fit(lengths_N: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Row and start of each length: the longest first, each into the first row with room for it.

  Rows are at most 11/9 of the fewest possible, and one (Johnson, 1973). Raises ValueError if one
  is longer than `width`.
  """
  if lengths_N.max(initial=0) > width:
    raise ValueError(f"a sequence of {lengths_N.max()} tokens in rows of {width}")
  row_N, start_N = np.zeros(len(lengths_N), np.int64), np.zeros(len(lengths_N), np.int64)
  used = np.zeros(len(lengths_N), np.int64)  # of each row there may be
  for i in np.argsort(-lengths_N, kind="stable"):
    row = int(np.argmax(used + lengths_N[i] <= width))
    row_N[i], start_N[i] = row, used[row]
    used[row] += lengths_N[i]
  return row_N, start_N
