"""Times since the epoch as datetimes."""

import datetime

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_LAST = datetime.datetime.max.replace(tzinfo=datetime.timezone.utc)


def utc(time_us: int) -> datetime.datetime:
    """Return a time since the epoch as a datetime, or the latest datetime where the time is later."""
    try:
        return EPOCH + datetime.timedelta(microseconds=time_us)
    except OverflowError:
        return _LAST
