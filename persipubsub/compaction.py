"""Shrink the file of a queue to its contents. It never shrinks by itself, since free pages are reused."""

from persipubsub.lmdb_engine.repair.compaction import compact

__all__ = ["compact"]
