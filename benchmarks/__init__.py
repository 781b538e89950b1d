"""How fast persipubsub is, beside its floor and beside its peers: ``python -m benchmarks run``."""
