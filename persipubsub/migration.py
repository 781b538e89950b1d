"""Convert a queue of persipubsub 1.0.0."""

from persipubsub.lmdb_engine.repair.migration import Report, migrate

__all__ = ["Report", "migrate"]
