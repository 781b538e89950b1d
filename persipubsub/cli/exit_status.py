"""The exit statuses of the command, as ``docs/commands.rst`` lists them."""

#: What was asked for is done.
DONE = 0
#: It could not be done, or something was found wrong; one line on standard error says what.
FAILED = 1
#: The command was called wrongly: what click makes of an option that does not exist.
MISUSED = 2
#: Ended by Ctrl-C: what a shell makes of a death by SIGINT.
INTERRUPTED = 130
#: The reader of the output is gone: what a shell makes of a death by SIGPIPE.
PIPE_CLOSED = 141
#: Ended by another signal: its number is added.
SIGNALLED = 128
