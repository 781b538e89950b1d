"""Recovery, compaction and migration: code that reads and writes the files of closed queues."""
