"""The rules of a queue: what each operation means for its records. Each works on an open transaction."""
