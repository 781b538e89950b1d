"""Tests of threads, processes, forks and files."""
