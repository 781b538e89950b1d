"""Tests of the engine for clusters, on real servers."""
