"""The engine for the processes of one machine, on LMDB."""
