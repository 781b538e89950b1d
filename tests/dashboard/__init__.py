"""Tests of the dashboard: over HTTP against a real process, and in a real browser."""
