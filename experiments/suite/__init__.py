"""Runs the grids of experiments, keeps their results, and says what they show.

An experiment is one file of `experiments/` that lists its runs and its claims; everything else is
here. A result is one line of `experiments/results/NAME.jsonl`; what is there is never run again.
"""
