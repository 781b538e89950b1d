"""What the life of a message means: each step on an open transaction."""
