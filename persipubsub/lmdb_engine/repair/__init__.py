"""What reads and writes files without the rest: recovery, compaction, migration."""
