"""Queues of each format version, as the version that wrote them left them on the disk."""
