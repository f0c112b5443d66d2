"""Other libraries on the reference workload, each in the environment that `make bench-peers` makes.

The scripts of the peers import nothing of this project: what they need is theirs alone.
"""
