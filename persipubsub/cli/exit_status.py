"""The exit statuses of the command, as ``docs/commands.rst`` lists them."""

#: The request succeeded.
DONE = 0
#: The request failed, or a check found something wrong; one line on standard error says what.
FAILED = 1
#: A usage error: click's status for an option that does not exist.
MISUSED = 2
#: Ended by Ctrl-C: a shell's status for death by SIGINT.
INTERRUPTED = 130
#: The reader of the output has ended: a shell's status for death by SIGPIPE.
PIPE_CLOSED = 141
#: Ended by another signal: its number is added.
SIGNALLED = 128
