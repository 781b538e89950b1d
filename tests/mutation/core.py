"""What is mutated, how, and by which tests: all that anybody may want to change of the mutation run.

Modules and tests are named without their folders, so that they may move. Where two modules have the same name, the name
of the folder goes before it: ``rules/replay``.
"""

import pathlib
from typing import List, Sequence

#: A mutant that hangs is killed after this multiple of the time of the unmutated tests, and not before a minimum.
PATIENCE = 5
MUTANT_S_MIN = 20
#: So is a mutant on which a single test takes this long. No test here takes more than a second.
TEST_S_MAX = 15
#: A mutant may compute with numbers as large as it likes, but not fill the memory.
DATA_KIB_MAX = 8 * 1024**2

#: Operators of cosmic-ray that are left out, as regular expressions.
LEFT_OUT = [
    # Of arithmetic the inverse operation is enough: a test that notices it notices the rest. Nobody writes bits or
    # powers instead of a sum by mistake.
    r"core/ReplaceBinaryOperator_(?!Add_Sub|Sub_Add|Mul_FloorDiv|FloorDiv_Mul|Mod_Mul|Pow_Mul|RShift_Mul)",
    # Of comparisons those are enough that the tests for all others follow from (Kaminski, Ammann, Offutt: Improving
    # Logic-Based Testing, 2013): the neighbour on either side, and the negation, which AddNot makes.
    r"core/ReplaceComparisonOperator_(?!Lt_LtE|Lt_NotEq|LtE_Lt$|LtE_Eq|Gt_GtE|Gt_NotEq|GtE_Gt$|GtE_Eq|Eq_LtE|Eq_GtE"
    r"|NotEq_Lt$|NotEq_Gt$|Is_IsNot|IsNot_Is)",
]

#: The tests of each module, those first that kill most mutants.
#: Of the rules of the log, which were one module.
_LOG = [
    "test_survivors.py",
    "test_counters.py",
    "rules/test_refusing.py",
    "test_state_machine.py::test_queue_does_what_the_model_does",
    "test_counts.py::test_commits",
    "test_counts.py::test_calls",
    "test_counts.py::test_a_send_costs_no_more_on_an_old_queue",
    "test_waiting.py::test_what_is_published",
    "test_log.py",
    "test_clock.py",
    "test_high_watermark.py",
    "test_api.py",
    "test_shared.py",
    "test_replay.py",
    "test_delayed.py",
    "test_protobuf.py::test_another_type_is_refused",
    "test_protobuf.py::test_binding_again",
    "test_protobuf.py::test_what_has_expired_does_not_keep_a_queue_bound",
    "test_errors.py::test_no_subscriber_to_name",
]
TESTS = {
    "rules/deduplication": ["test_deduplication_of_batches.py", "test_deduplication.py"],
    "details": ["test_details.py"],
    "retention": ["test_replay.py"],
    "coding": ["test_message_types.py", "test_typed.py", "test_protobuf.py"],
    "json_codecs": ["test_typed.py", "test_message_types.py"],
    "typed/protobuf": ["test_protobuf.py"],
    "appending":
    _LOG,
    "cursors":
    _LOG,
    "message_log":
    _LOG,
    "database": [
        "test_storage.py",
        "test_lmdb_errors.py",
        "test_recovery.py::test_recover_saves_all_of_a_sound_queue",
        "test_recovery.py::test_recover_keeps_gaps_of_ids",
        "test_recovery.py::test_recover_twice_keeps_both_files",
        "test_recovery.py::test_compact_shrinks_and_keeps_everything",
        "test_recovery.py::test_nothing_else_is_left",
        "test_counts.py::test_system_calls_of_a_change[Durability.PROCESS_CRASH]",
        "test_errors.py::test_foreign_files",
        "test_errors.py::test_other_format_versions",
        "test_errors.py::test_modes",
        "test_errors.py::test_no_permission",
        "test_stale_readers.py",
        "test_io_errors.py::test_an_error_at_any_call[EIO-pwrite64-Durability.POWER_LOSS]",
        "test_process_limits.py::test_the_same_pid_in_two_pid_namespaces",
        "test_damage.py",
        "test_api.py::test_backup",
        "test_api.py::test_durability_is_switched_under_open_publishers",
        "test_api.py::test_control_is_durable_under_either_durability",
    ],
    "group_commit": [
        "test_threads.py",
        "test_giving_way.py",
        "test_waiting.py::test_what_is_published",
        "test_counts.py::test_calls",
        "test_interrupts.py::test_interrupt_anywhere_in_a_send",
        "test_interrupts.py::test_interrupt_anywhere_in_a_commit_for_others",
        "test_interrupts.py::test_interrupt_anywhere_in_a_wait_for_another_threads_commit",
        "test_signal_handlers.py::test_a_handler_that_sends_anywhere[send]",
        "test_logging.py::test_what_expires_is_a_warning_once_a_minute",
        "test_aio.py::test_large_group_is_split[asyncio]",
        "test_aio.py::test_operation_that_fails_amid_a_group",
        "test_delayed.py::test_any_access_appends_what_is_due[send]",
    ],
}

#: Of those files, tests that take long, and whose work others do, or that look at other modules.
TESTS_LEFT_OUT = [
    "test_high_watermark.py::test_the_byte_mark_with_single_sends[small-",
    "test_high_watermark.py::test_the_byte_mark_with_batches[7-small-",
    "test_high_watermark.py::test_a_batch_overflows_like_single_sends[1-",
    "test_high_watermark.py::test_a_batch_overflows_like_single_sends[7-",
    "test_threads.py::test_sixteen_threads_send_and_sixteen_receive",
    "test_threads.py::test_eight_processes_of_eight_threads",
    "test_api.py::test_sizes[100MiB]",
    "test_api.py::test_receive_many_stops_at_64_mib",
    "test_api.py::test_backup",
    "test_api.py::test_check_finds",
    "test_api.py::test_messages_wait_for_ever_by_default",
    "test_damage.py::test_a_large_value_that_is_cut_off_is_refused",
    "test_deduplication.py::test_killed_at_any_call",
    "test_deduplication.py::test_retrying_after_an_unknown_commit",
    "test_delayed.py::test_few_of_many_waiting_processes_append",
    "test_delayed.py::test_a_type_does_not_delay_a_delayed_message",
    "test_delayed.py::test_a_waiting_subscriber_wakes_when_a_message_is_due",
    "test_delayed.py::test_a_claim_of_a_dead_process_delays_the_others_briefly",
    "test_delayed.py::test_a_delayed_message_survives_its_sender",
    "test_replay.py::test_replay_equals_what_was_sent",
    "test_shared.py::test_a_waiting_worker_is_woken_when_a_lease_ends",
    "test_stale_readers.py::test_dead_readers_do_not_make_the_file_grow",
    "test_stale_readers.py::test_dead_readers_are_cleared_at_open",
]


def find(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Return the path of a module or of a file of tests, named without ``.py``.

    :raise ValueError: there is none, or more than one
    """
    parts = tuple(name.split("/"))
    # The conformance suite runs on every engine, and names its tests as the engine's own are named.
    found = [
        path for path in folder.rglob(f"{parts[-1]}.py")
        if path.with_suffix("").parts[-len(parts):] == parts and "conformance" not in path.parts
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} files in {folder} are named {name}")
    return found[0]


def test_paths(tests: Sequence[str], root: pathlib.Path) -> List[str]:
    """Return the tests as pytest wants them: with their folders, from the root of the tree."""
    paths = []
    for test in tests:
        file, separator, function = test.partition("::")
        path = find(file.removesuffix(".py"), root / "tests").relative_to(root)
        paths.append(f"{path}{separator}{function}")
    return paths


def pytest_arguments(tests: Sequence[str], root: pathlib.Path) -> List[str]:
    """Return the arguments for pytest that run the tests of a module until the first one fails."""
    files = {test.partition("::")[0] for test in tests}
    left_out = [test for test in TESTS_LEFT_OUT if test.partition("::")[0] in files and test not in tests]
    deselected = [f"--deselect={test}" for test in test_paths(left_out, root)]
    hangs = ["-o", f"faulthandler_timeout={TEST_S_MAX}"]  # pyproject.toml says that it ends the run
    return ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *hangs, *deselected, *test_paths(tests, root)]
