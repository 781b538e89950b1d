"""Tests of what a message's life means."""
