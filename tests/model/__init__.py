"""The library beside a model of it in plain Python."""
