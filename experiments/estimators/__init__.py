"""The estimator lab: every objective's gradient estimator against the exact policy gradient.

    python -m experiments.estimators --preset=cpu --out=runs/estimators

A policy small enough to enumerate: a real transformer over a few letters, all of whose responses
are summed over. The exact gradient `grad J = sum_y pi(y) R(y) grad log pi(y)` is then known, and so
are the bias, the variance and the signal of every registered objective as an estimator of it from
responses of a behaviour policy: a stale one, a drifted one, a noisy or rounded engine, at any
length. Exactly, by enumeration, where a coefficient depends on its own sequence alone; by Monte
Carlo with standard errors where it does not.

Shape letters beside those of `vespo_jax.types`:

    B  all responses of the tree      Y  edges: prefix x next token, flattened
    X  prefixes                       Z  parameters, flattened
    J  Monte Carlo batches            R  sequences of a Monte Carlo batch
    C  distinct row counts (lengths, where a batch is averaged over its tokens)
"""
