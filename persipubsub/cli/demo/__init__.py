"""The demo: its processes, and what they count."""
