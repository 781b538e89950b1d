"""The bytes of a queue: LMDB, transactions and the layouts of records."""
