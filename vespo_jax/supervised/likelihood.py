"""How likely a policy finds given data: the held-out loss, and the gap between data and policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from vespo_jax import sharding
from vespo_jax.learner.update import Score
from vespo_jax.supervised.demonstrations import Encoded
from vespo_jax.supervised.packing import first_fit, pack, rows_for
from vespo_jax.types import Params

_TOKENS = 1 << 13  # of one call, about
_SEQUENCES = 2048  # that are packed together


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Of some sequences under a policy, in nats and over the tokens that are trained on.

  Attributes:
    sequences, tokens: how many.
    nll_per_token: negative log-likelihood of the mean token.
    nll_per_sequence: of the mean sequence: minus its log-probability.
    geometric_mean_probability: of a sequence's tokens, the mean over sequences.
    perplexity: exp of a sequence's nll per token, the mean over sequences.

  The last three are what the code of arXiv 2509.15157 reports as the gap of data to a policy.
  """

  sequences: int
  tokens: int
  nll_per_token: float
  nll_per_sequence: float
  geometric_mean_probability: float
  perplexity: float

  def to_dict(self) -> dict[str, float | int]:
    """Plain values, as in `result.json`."""
    return dataclasses.asdict(self)

  def __str__(self) -> str:
    return (
      f"{self.nll_per_token:.4f} nats per token, {self.nll_per_sequence:.2f} per sequence "
      f"({self.sequences} sequences, {self.tokens} tokens)"
    )


def summarise(logprob_N: np.ndarray, tokens_N: np.ndarray) -> Likelihood:
  """The `Likelihood` of sequences with these log-probabilities and numbers of tokens."""
  mean_N = logprob_N / tokens_N
  with np.errstate(over="ignore"):  # of a token that cannot be
    perplexity = float(np.exp(-mean_N).mean())
  return Likelihood(
    sequences=len(logprob_N),
    tokens=int(tokens_N.sum()),
    nll_per_token=float(-logprob_N.sum() / tokens_N.sum()),
    nll_per_sequence=float(-logprob_N.mean()),
    geometric_mean_probability=float(np.exp(mean_N).mean()),
    perplexity=perplexity,
  )


@dataclasses.dataclass(frozen=True)
class Scorer:
  """Log-probabilities of any number of sequences, a few thousand tokens at a time.

  Attributes:
    score: compiled, from `learner.update.compile_score`.
    mesh: of its devices.
    width: tokens of a row.
    unit: the rows of a call are a multiple of it.
  """

  score: Score
  mesh: Mesh
  width: int
  unit: int

  def logprobs(self, params: Params, sequences: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N], the log-probability of what is trained on of each sequence; int64 [N], its
    tokens."""
    pieces = [sequences[i : i + _SEQUENCES] for i in range(0, len(sequences), _SEQUENCES)]
    sums, counts = zip(*(self._piece(params, piece) for piece in pieces), strict=True)
    return np.concatenate(sums), np.concatenate(counts)

  def likelihood(self, params: Params, sequences: Sequence[Encoded]) -> Likelihood:
    """The `Likelihood` of the sequences, of which there is at least one."""
    return summarise(*self.logprobs(params, sequences))

  def _piece(self, params: Params, sequences: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
    most = rows_for(max(_TOKENS // self.width, 1), self.unit)
    needed = int(first_fit(np.array([len(one) for one in sequences]), self.width)[0].max()) + 1
    rows = min(most, rows_for(needed, self.unit))
    packed = pack(sequences, self.width, rows)
    parts = []
    for first in range(0, int(packed.row_N.max()) + 1, rows):
      part = jax.tree.map(lambda x: x[first : first + rows], packed.batch)  # noqa: B023
      placed = jax.device_put(part, sharding.batch_sharding(self.mesh))
      parts.append(jax.device_get(self.score(params, placed)[0]))
    logprobs_PT = np.concatenate(parts)[:, 0].astype(np.float64)
    where = zip(sequences, packed.row_N, packed.start_N, packed.stop_N, strict=True)
    sums = [logprobs_PT[row, start:stop][one.trained].sum() for one, row, start, stop in where]
    return np.array(sums), np.array([one.trained.sum() for one in sequences])
