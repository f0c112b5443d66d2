"""Tasks: prompts and verifiers, their problems on disk, their order, and the grader process.

task = tasks.make("reasoning_gym/chain_sum", max_terms=3)
splits = tasks.open_splits(task, data_dir="runs/data", seed=0, train_size=1000, test_size=100)
with tasks.Grader(task) as grader:
  scores = grader.grade([splits.test[0]], ["<answer>42</answer>"])
"""

from vespo_jax.tasks import custom, verifiers
from vespo_jax.tasks import reasoning_gym as _reasoning_gym  # noqa: F401  (registers the family)
from vespo_jax.tasks import stored as _stored  # noqa: F401  (registers two families)
from vespo_jax.tasks.base import Example, Score, StoredTask, Task, Votable, families, make
from vespo_jax.tasks.curriculum import Curricula, Curriculum
from vespo_jax.tasks.dataset import Split, Splits, open_splits
from vespo_jax.tasks.grader import Grader
from vespo_jax.tasks.mixture import Ingredient, MixtureStream, interleave, pattern, read_mixture
from vespo_jax.tasks.stream import PromptStream, Stream, share

__all__ = [
  "Curricula",
  "Curriculum",
  "Example",
  "Grader",
  "Ingredient",
  "MixtureStream",
  "PromptStream",
  "Score",
  "Split",
  "Splits",
  "StoredTask",
  "Stream",
  "Task",
  "Votable",
  "custom",
  "families",
  "interleave",
  "make",
  "open_splits",
  "pattern",
  "read_mixture",
  "share",
  "verifiers",
]
