"""Making the file of a queue as small as what is in it. It never shrinks by itself: free pages are used again."""

import os
import pathlib
from typing import Tuple, Union

from persipubsub.engine import checks
from persipubsub.lmdb_engine.process import files, opening_check, queue_file, unclean_marker
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.records.transaction import SubDatabases


def compact(path: Union[str, "os.PathLike[str]"]) -> Tuple[int, int]:
    """Write the queue anew without free pages, and put it in the place of the old one.

    Every page is verified first, so a damaged queue stays as it is. Whatever ends the call early, the old queue is
    there or the new one. Room for both is needed meanwhile.

    :param path: the directory of the queue
    :return: the size of the data file before and after, bytes
    :raise ArgumentTypeError: not a str or PathLike
    :raise ArgumentError: empty, or with a NUL
    :raise NotInitializedError: there is no queue
    :raise InUseError: somebody has the queue open
    :raise PathError: one of its files is a link, or this user may not
    :raise FormatError: the files are not a queue of this version
    :raise DamagedError: the queue is damaged
    :raise DiskFullError: there is no room; the queue is as before
    """
    directory = pathlib.Path(os.path.abspath(checks.directory(path)))
    data_file = directory / files.DATA_FILE
    with opening_check.exclusively(directory, "compacted"):
        if unclean_marker.of_other_boot(directory):
            opening_check.require_sound(directory)
        else:
            # The copy takes the place of the file. LMDB copies some damaged pages without an error.
            queue_file.require_queue(data_file, SubDatabases._fields)
            opening_check.require_sound_pages(directory)
        before = data_file.stat().st_size
        with files.new_data_file(directory, files.data_file_mode(directory)) as new_file:
            database.compact(data_file, new_file.fd)
        unclean_marker.remove(directory)
        return before, data_file.stat().st_size
