"""Threads, processes, forks and files: which of them may use the database when."""
