"""Tests of damaged, foreign and old queues."""
