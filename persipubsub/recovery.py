"""Verify a queue that no process has open, and rebuild a damaged queue from what can still be read."""

from persipubsub.lmdb_engine.repair.recovery import Report, check, recover

__all__ = ["Report", "check", "recover"]
