"""Threads, processes, forks and files: who may use the database when."""
