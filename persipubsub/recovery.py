"""Verifying a queue that nobody has open, and making a queue of what can still be read of a damaged one."""

from persipubsub.lmdb_engine.repair.recovery import Report, check, recover

__all__ = ["Report", "check", "recover"]
