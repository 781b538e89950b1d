"""Limits and defaults of arguments, the same for every engine."""

import datetime

BATCH_BYTES_MAX = 1024**3
#: Message ids are below this number.
MESSAGE_ID_END = 2**63
#: A larger maximum number of messages is clamped, so that arithmetic stays in range: there are no more.
MESSAGES_MAX = MESSAGE_ID_END - 1
#: For the identifier of a subscriber, and for a deduplication id.
IDENTIFIER_BYTES_MAX = 255
MESSAGE_TYPE_BYTES_MAX = 1000
#: A longer timeout is clamped, so that arithmetic stays in range: 30 years.
TIMEOUT_S_MAX = 1e9
#: Retries are clamped for the same reason.
RETRIES_MAX = 10**9

#: The default maximum size of a received batch, so that a backlog of large messages does not fill the memory.
RECEIVE_BYTES_MAX = 64 * 1024**2

#: The longest sleep between two looks, so that a wait always notices what happens to the queue.
SLEEP_S_MAX = 1.0

RETENTION_S_MAX = 1e11
DEDUPLICATION_WINDOW_S_MIN = 1e-6
DEDUPLICATION_WINDOW_S_MAX = 1e11
DEDUPLICATION_MAX_MAX = 10_000_000
DELAY_S_MAX = 10**9
#: Due times are before this one.
AT_END = datetime.datetime(4000, 1, 1, tzinfo=datetime.timezone.utc)

#: For the files of a queue: only their owner may use them.
MODE_DEFAULT = 0o600

# For subscribers that are shared or limit their deliveries.
LEASE_S_DEFAULT = 30.0
LEASE_S_MIN = 0.01
#: For the lease and the delays before a retry: 31 years.
SECONDS_MAX = 1e9
MAX_DELIVERIES_DEFAULT = 5
MAX_DELIVERIES_MAX = 10**9
RETRY_DELAY_S_DEFAULT = 1.0
RETRY_DELAY_MAX_S_DEFAULT = 60.0
DEAD_LETTERS_MAX_DEFAULT = 10_000
DEAD_LETTERS_MAX_MAX = 1_000_000

#: How much is kept of an exception that a block raised.
ERROR_TYPE_CHARACTERS_MAX = 200
ERROR_TEXT_CHARACTERS_MAX = 1000
ERROR_TRACEBACK_CHARACTERS_MAX = 1000
