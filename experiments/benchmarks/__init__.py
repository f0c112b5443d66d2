"""How fast it is, as ratios on one machine: `python -m experiments.benchmarks`."""
