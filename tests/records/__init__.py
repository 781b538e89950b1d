"""Tests of the bytes in the files."""
