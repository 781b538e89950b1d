"""The distributions: a rehearsal of a release, which ``python -m tests.distribution`` runs."""
