"""Every response there is: the tree of prefixes, the responses as paths of its edges, the task.

The vocabulary is the end token (id 0, which also begins the row) and V - 1 letters. A response is a
string of letters closed by the end token, or as many letters as the maximum length allows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

END = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
  """All responses of at most T tokens.

  Attributes:
    vocab_size: V.
    prefixes_XT: int32, what the model reads before each next token: the begin token and up to T - 1
      letters, padded on the right.
    last_X: int32, the position of the last real token of each prefix.
    tokens_BT: int32, the responses, padded with the end token.
    edges_BT: int32 in [0, X V), the edge `prefix * V + token` of each token; 0 where masked.
    mask_BT: bool, True at the tokens of a response.
  """

  vocab_size: int
  prefixes_XT: np.ndarray
  last_X: np.ndarray
  tokens_BT: np.ndarray
  edges_BT: np.ndarray
  mask_BT: np.ndarray

  @property
  def lengths_B(self) -> np.ndarray:
    """Tokens of each response, its end token included."""
    return self.mask_BT.sum(axis=1)

  def along(self, edge_values: np.ndarray) -> np.ndarray:
    """[B, T]: what each token of each response finds at its edge; 0 where masked."""
    return np.where(self.mask_BT, edge_values.reshape(-1)[self.edges_BT], 0.0)


def enumerate_responses(vocab_size: int, max_length: int) -> Tree:
  """The tree of V tokens and at most T of them in a response; both at least 2 and 1.

  X is the number of strings of fewer than T letters, and there are as many responses that end as
  prefixes, and (V - 1)^T that do not.
  """
  V, T = vocab_size, max_length
  prefixes = [((), -1)]  # (letters, the index of the parent)
  level = [0]
  for _ in range(T - 1):
    children = [(prefixes[x][0] + (v,), x) for x in level for v in range(1, V)]
    level = list(range(len(prefixes), len(prefixes) + len(children)))
    prefixes += children
  ended = [(letters + (END,), x) for x, (letters, _) in enumerate(prefixes)]
  cut = [(prefixes[x][0] + (v,), x) for x in level for v in range(1, V)]

  prefixes_XT = np.full((len(prefixes), T), END, np.int32)
  paths = []  # the edges to each prefix
  for x, (letters, parent) in enumerate(prefixes):
    prefixes_XT[x, 1 : 1 + len(letters)] = letters
    paths.append(paths[parent] + [parent * V + letters[-1]] if letters else [])
  tokens_BT, edges_BT = np.full((2, len(ended) + len(cut), T), 0, np.int32)
  for row, (tokens, x) in enumerate(ended + cut):
    tokens_BT[row, : len(tokens)] = tokens
    edges_BT[row, : len(tokens)] = paths[x] + [x * V + tokens[-1]]
  lengths_B = np.array([len(tokens) for tokens, _ in ended + cut])
  return Tree(
    vocab_size=V,
    prefixes_XT=prefixes_XT,
    last_X=np.array([len(letters) for letters, _ in prefixes], np.int32),
    tokens_BT=tokens_BT,
    edges_BT=edges_BT,
    mask_BT=np.arange(T) < lengths_B[:, None],
  )


def rewards(tree: Tree) -> np.ndarray:
  """[B]: 1 for a response of at least four fifths of the maximum length that never has the same
  letter three times in a row, else 0."""
  long_B = 5 * tree.lengths_B >= 4 * tree.mask_BT.shape[1]
  first, second, third = (tree.tokens_BT[:, i : i - 2 or None] for i in range(3))
  triple_B = ((first == second) & (second == third) & (first != END)).any(axis=1)
  return (long_B & ~triple_B).astype(np.float64)
