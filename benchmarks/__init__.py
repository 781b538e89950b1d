"""Measure persipubsub against its floor and its peers: ``python -m benchmarks run``."""
