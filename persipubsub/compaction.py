"""Making the file of a queue as small as what is in it. It never shrinks by itself: free pages are used again."""

from persipubsub.lmdb_engine.repair.compaction import compact

__all__ = ["compact"]
