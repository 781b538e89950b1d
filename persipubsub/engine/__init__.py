"""The seam between the endpoints and an engine: commands, values, limits and protocols."""
