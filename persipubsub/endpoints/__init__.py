"""What the endpoints for threads and those for tasks share."""
