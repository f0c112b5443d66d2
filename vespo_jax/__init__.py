"""vespo_jax: off-policy reinforcement learning of language models in JAX.

The rooms, from the ground up: `types`, `registry`, `processes`, `sandbox` < `objectives`,
`advantages`, `diagnostics` < `models`, `sharding`, `tokenizers` < `weights`, `tasks`, `sampler` <
`runtime` < `learner` < `evaluation`, `report` < the entry points. Imports run one way; a test holds
this.
"""

__version__ = "0.1.0"
