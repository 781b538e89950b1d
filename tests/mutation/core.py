"""What is mutated, how, and by which tests: all that anybody may want to change of the mutation run."""

from typing import List

#: A mutant that hangs is killed after so many times what the tests take without a mutation, and not before so long.
PATIENCE = 5
MUTANT_S_MIN = 20
#: So is a mutant on which a single test takes so long. No test here takes more than a second.
TEST_S_MAX = 15
#: A mutant may reckon with numbers as large as it likes, but not fill the memory.
DATA_KIB_MAX = 8 * 1024**2

#: Operators of cosmic-ray that are left out, as regular expressions.
LEFT_OUT = [
    # Of arithmetic the inverse operation is enough: who notices it notices the rest, and bits or powers instead of a
    # sum are no slip that anybody makes.
    r"core/ReplaceBinaryOperator_(?!Add_Sub|Sub_Add|Mul_FloorDiv|FloorDiv_Mul|Mod_Mul|Pow_Mul|RShift_Mul)",
    # Of comparisons those are enough that the tests for all others follow from (Kaminski, Ammann, Offutt: Improving
    # Logic-Based Testing, 2013): the neighbour on either side, and the negation, which AddNot makes.
    r"core/ReplaceComparisonOperator_(?!Lt_LtE|Lt_NotEq|LtE_Lt$|LtE_Eq|Gt_GtE|Gt_NotEq|GtE_Gt$|GtE_Eq|Eq_LtE|Eq_GtE"
    r"|NotEq_Lt$|NotEq_Gt$|Is_IsNot|IsNot_Is)",
]

#: The tests that have to notice, by module, those first that notice most.
TESTS = {
    "persipubsub/queue.py": [
        "tests/test_survivors.py",
        "tests/test_counters.py",
        "tests/test_state_machine.py::test_queue_does_what_the_model_does",
        "tests/test_counts.py::test_commits",
        "tests/test_counts.py::test_calls",
        "tests/test_counts.py::test_a_send_costs_no_more_on_an_old_queue",
        "tests/test_waiting.py::test_what_is_published",
        "tests/test_log.py",
        "tests/test_clock.py",
        "tests/test_high_watermark.py",
        "tests/test_api.py",
        "tests/test_shared.py",
        "tests/test_replay.py",
        "tests/test_delayed.py",
        "tests/test_protobuf.py::test_another_type_is_refused",
        "tests/test_protobuf.py::test_binding_again",
        "tests/test_protobuf.py::test_what_has_expired_does_not_keep_a_queue_bound",
        "tests/test_errors.py::test_no_subscriber_to_name",
    ],
    "persipubsub/database.py": [
        "tests/test_storage.py",
        "tests/test_lmdb_errors.py",
        "tests/test_recovery.py::test_recover_saves_all_of_a_sound_queue",
        "tests/test_recovery.py::test_recover_keeps_gaps_of_ids",
        "tests/test_recovery.py::test_recover_twice_keeps_both_files",
        "tests/test_recovery.py::test_compact_shrinks_and_keeps_everything",
        "tests/test_recovery.py::test_nothing_else_is_left",
        "tests/test_counts.py::test_system_calls_of_a_change[Durability.PROCESS_CRASH]",
        "tests/test_errors.py::test_foreign_files",
        "tests/test_errors.py::test_other_format_versions",
        "tests/test_errors.py::test_modes",
        "tests/test_errors.py::test_no_permission",
        "tests/test_stale_readers.py",
        "tests/test_io_errors.py::test_an_error_at_any_call[EIO-pwrite64-Durability.POWER_LOSS]",
        "tests/test_process_limits.py::test_the_same_pid_in_two_pid_namespaces",
        "tests/test_damage.py",
        "tests/test_api.py::test_backup",
        "tests/test_api.py::test_durability_is_switched_under_open_publishers",
        "tests/test_api.py::test_control_is_durable_under_either_durability",
    ],
    "persipubsub/writer.py": [
        "tests/test_threads.py",
        "tests/test_giving_way.py",
        "tests/test_waiting.py::test_what_is_published",
        "tests/test_counts.py::test_calls",
        "tests/test_interrupts.py::test_interrupt_anywhere_in_a_send",
        "tests/test_interrupts.py::test_interrupt_anywhere_in_a_commit_for_others",
        "tests/test_interrupts.py::test_interrupt_anywhere_in_a_wait_for_another_ones_commit",
        "tests/test_signal_handlers.py::test_a_handler_that_sends_anywhere[send]",
        "tests/test_logging.py::test_what_expires_is_a_warning_once_a_minute",
        "tests/test_aio.py::test_large_group_is_split[asyncio]",
        "tests/test_aio.py::test_operation_that_fails_amid_a_group",
        "tests/test_delayed.py::test_whoever_comes_appends_what_is_due[send]",
    ],
}

#: Of those files, tests that take long, and whose work others do, or that look at other modules.
TESTS_LEFT_OUT = [
    "tests/test_high_watermark.py::test_the_byte_mark_with_single_sends[small-",
    "tests/test_high_watermark.py::test_the_byte_mark_with_batches[7-small-",
    "tests/test_high_watermark.py::test_a_batch_overflows_like_single_sends[1-",
    "tests/test_high_watermark.py::test_a_batch_overflows_like_single_sends[7-",
    "tests/test_threads.py::test_sixteen_threads_send_and_sixteen_receive",
    "tests/test_threads.py::test_eight_processes_of_eight_threads",
    "tests/test_api.py::test_sizes[100MiB]",
    "tests/test_api.py::test_receive_many_stops_at_64_mib",
    "tests/test_api.py::test_import_is_lean",
    "tests/test_api.py::test_modules_are_reachable_after_a_plain_import",
    "tests/test_api.py::test_backup",
    "tests/test_api.py::test_check_finds",
    "tests/test_api.py::test_messages_wait_for_ever_by_default",
    "tests/test_damage.py::test_a_large_value_that_is_cut_off_is_refused",
    "tests/test_delayed.py::test_of_many_who_wait_few_append",
    "tests/test_delayed.py::test_a_type_does_not_delay_a_delayed_message",
    "tests/test_delayed.py::test_who_waits_is_woken_when_a_message_is_due",
    "tests/test_delayed.py::test_a_claim_of_one_that_died_delays_the_others_shortly",
    "tests/test_delayed.py::test_a_delayed_message_survives_its_sender",
    "tests/test_replay.py::test_replay_equals_what_was_sent",
    "tests/test_shared.py::test_a_waiting_worker_is_woken_when_a_lease_ends",
    "tests/test_stale_readers.py::test_dead_readers_do_not_make_the_file_grow",
    "tests/test_stale_readers.py::test_dead_readers_are_cleared_at_open",
]


def pytest_arguments(module: str) -> List[str]:
    """Give the arguments for pytest that run the tests of a module until the first one fails."""
    left_out = [f"--deselect={test}" for test in TESTS_LEFT_OUT if test not in TESTS[module]]
    hangs = ["-o", f"faulthandler_timeout={TEST_S_MAX}"]  # pyproject.toml says that it ends the run
    return ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *hangs, *left_out, *TESTS[module]]
