"""Shrink the file of a queue to the size of its content. It never shrinks by itself: free pages are reused."""

import os
from typing import Tuple, Union

from persipubsub.engine.clusters import local_directory
from persipubsub.lmdb_engine.process import files, opening_check, queue_file, unclean_marker
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.records.layouts import SubDatabases


def compact(path: Union[str, "os.PathLike[str]"]) -> Tuple[int, int]:
    """Write the queue again without free pages, and replace the old file.

    Every page is verified first, so a damaged queue stays as it is. If the call is interrupted, either the old queue or
    the new one is there. The disk must have room for both.

    :param path: the directory of the queue
    :return: the size of the data file before and after, bytes
    :raise ArgumentTypeError: not a str or PathLike
    :raise ArgumentError: empty, or with a NUL
    :raise NotInitializedError: there is no queue
    :raise InUseError: somebody has the queue open
    :raise PathError: one of its files is a link, or this user may not access them
    :raise FormatError: the files are not a queue of this version
    :raise DamagedError: the queue is damaged
    :raise DiskFullError: there is no room; the queue is unchanged
    """
    directory = local_directory(path, "compact", "The servers compact their files by themselves")
    data_file = directory / files.DATA_FILE
    with opening_check.exclusively(directory, "compacted"):
        if unclean_marker.of_other_boot(directory):
            opening_check.require_sound(directory)
        else:
            # The copy replaces the file, and LMDB copies some damaged pages without an error.
            queue_file.require_queue(data_file, SubDatabases._fields)
            opening_check.require_sound_pages(directory)
        before = data_file.stat().st_size
        with files.new_data_file(directory, files.data_file_mode(directory)) as new_file:
            database.compact(data_file, new_file.fd)
        unclean_marker.remove(directory)
        return before, data_file.stat().st_size
