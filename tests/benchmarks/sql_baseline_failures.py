"""Known contract violations of the SQL baseline: reason -> failing tests of the conformance suite.

A reason is quoted from CONTRACT section 9 if it has one; otherwise it describes what the adapters do. A test
that fails for several reasons is listed under the first one that it meets on SQLite.
"""

from __future__ import annotations

from collections.abc import Mapping

Table = Mapping[str, tuple[str, ...]]

# Quoted from CONTRACT section 9.
_DROPPED = "`started_at`, `ended_at`, `created_at` and status `metadata` accepted and dropped"
_WIDTH = "integers beyond a column's width"

FAILURES: Table = {
    _DROPPED: (
        "test_create_stores_every_field",
        "test_runs_of_a_thread_are_listed_newest_first",
        "test_run_times_round_trip_to_the_microsecond",
        "test_updated_times_round_trip_to_the_microsecond",
        "test_status_update_of_an_active_run_stores_given_times",
        "test_invalid_time_raises_and_writes_nothing",
        "test_every_time_in_a_row_is_iso_8601_in_utc",
        "test_update_status_never_reactivates_an_ended_run",
        "test_status_update_changes_nothing_else",
        "test_set_error_sets_status_and_error_text",
        "test_status_metadata_is_merged_by_top_level_key",
        "test_status_metadata_merge_accepts_any_key",
        "test_a_hundred_concurrent_status_merges_lose_no_key",
        "test_completion_never_reactivates_an_ended_run",
        "test_completion_stores_every_count_and_text",
        "test_completion_sets_ended_at_to_now_unless_set",
        "test_completion_sets_ended_at_only_with_an_ending",
        "test_started_event_sets_running_and_started_at",
        "test_ending_event_without_counts_sets_status_and_ended_at",
        "test_ending_event_with_counts_stores_them_and_ended_at",
        "test_ending_event_with_empty_completion_data_ends_the_run",
        "test_observer_accepts_the_packages_lifecycle_event",
        "test_payloads_of_every_write_method_round_trip",
        "test_all_payload_values_round_trip_together",
        "test_random_payloads_round_trip",
        "test_run_merge_is_stored_up_to_the_stated_limit",
        "test_update_status_stores_the_error_with_the_status",
        "test_pending_runs_are_filtered_by_created_at",
        "test_edited_regenerations_are_listed_oldest_first",
        "test_update_from_another_status_stores_nothing_of_it",
        "test_allowed_ended_status_makes_no_run_active_again",
        "test_regenerate_lists_follow_updates",
    ),
    "owner filter applied after `limit`": ("test_run_limit_counts_only_the_users_runs",),
    "the adapters raise built-in errors and `StorageError`, not the contract's own types": (
        "test_argument_errors_are_storage_errors",
        "test_another_users_thread_raises_thread_access_error",
        "test_every_method_of_a_closed_storage_raises_storage_closed_error",
        "test_errors_pickle_and_copy",
    ),
    "the adapters' methods do not have the contract's docstrings": (
        "test_store_methods_have_the_contracts_docstring",
    ),
    "`aggregate_by_run` and `list_by_thread_grouped` look at the newest 100 rows": (
        "test_feedback_totals_count_every_row",
        "test_totals_and_lists_cover_more_than_500_votes",
        "test_grouped_feedback_covers_more_than_500_runs",
        "test_grouped_feedback_has_the_newest_row_of_each_of_the_users_runs",
    ),
    "event `seq` from `SELECT max(seq)`": (
        "test_seq_is_never_reused_after_a_delete",
        "test_seq_is_never_reused_by_another_storage",
        "test_put_if_absent_stores_again_after_a_delete",
        "test_delete_with_a_user_id_removes_only_that_users_events",
    ),
    "`run_failed` with `error` inside `completion_data` raises inside the observer and the failure is lost": (
        "test_completion_data_may_contain_status_or_error",
        "test_payload_error_takes_precedence_over_completion_data",
        "test_failed_run_always_has_an_error_text",
    ),
    "`search_threads` with a blank `user_id` lists everybody's threads": (
        "test_search_treats_a_blank_user_id_as_a_user",
        "test_empty_user_id_is_a_distinct_user",
    ),
    _WIDTH: (
        "test_messages_of_a_thread_are_paged_by_seq",
        "test_messages_of_a_run_are_paged_by_seq",
    ),
    # Not in section 9: what the adapters do.
    "the adapters do not translate database errors": (
        "test_second_create_raises_and_leaves_the_first_run_unchanged",
        "test_exactly_one_of_fifty_concurrent_run_creates_succeeds",
        "test_second_create_raises_and_leaves_the_first_thread_unchanged",
        "test_exactly_one_of_a_hundred_concurrent_thread_creates_succeeds",
        "test_ensure_thread_on_another_users_thread_raises_and_reveals_nothing",
        "test_concurrent_ensure_thread_of_two_users_gives_one_owner",
    ),
    "1 counts as true in JSON": (
        "test_pinned_threads_come_first_then_the_last_updated",
        "test_every_write_of_metadata_pins_and_unpins",
    ),
    "the adapters do not validate identifiers, limits and other arguments": (
        "test_lists_of_ids_are_checked",
        "test_invalid_condition_or_reason_raises_and_changes_nothing",
        "test_events_of_a_task_are_selected_before_the_limit",
        "test_lone_surrogate_in_an_identifier_raises",
        "test_invalid_actor_id_raises",
        "test_operator_document_as_a_status_raises",
        "test_invalid_limit_raises",
        "test_invalid_limit_raises_before_any_query",
        "test_invalid_seq_bound_raises",
        "test_invalid_event_types_raise",
        "test_invalid_event_raises_and_writes_nothing",
        "test_invalid_statuses_raise",
        "test_invalid_error_or_model_name_raises_and_changes_nothing",
        "test_list_pending_rejects_an_invalid_time",
        "test_unknown_thread_order_raises",
    ),
    "the adapters do not validate payloads: invalid ones fail in Python or in the driver": (
        "test_self_referencing_payload_raises",
        "test_very_deep_payload_round_trips_or_raises",
        "test_borderline_payload_round_trips_or_raises",
        "test_payload_that_is_not_a_mapping_raises",
        "test_payload_error_names_the_field_and_path",
        "test_lone_surrogate_in_a_text_round_trips_or_raises",
        "test_invalid_event_content_fails_only_its_own_caller",
        "test_metadata_filter_rejects_an_invalid_payload",
        "test_metadata_merge_rejects_invalid_metadata",
    ),
    "only models in a run's payloads are converted to JSON; other objects become their `str` or fail": (
        "test_objects_are_converted_to_json",
        "test_every_write_method_converts_objects_to_json",
        "test_sets_are_stored_as_lists",
        "test_models_and_dataclasses_can_be_payloads",
        "test_objects_in_event_content_are_converted_to_json",
        "test_enum_event_type_is_stored_as_its_value",
    ),
    "an ended run can be set to any status": (
        "test_active_status_on_an_ended_run_leaves_set_times_unchanged",
        "test_active_completion_of_an_ended_run_leaves_counts_unchanged",
        "test_late_started_event_does_not_reactivate_a_run",
        "test_active_status_on_an_ended_run_leaves_its_error_unchanged",
        "test_completion_with_unset_texts_stores_the_given_texts",
    ),
    "a text that a completion omits is not cleared": (
        "test_completion_resets_absent_counts_and_texts",
        "test_completion_leaves_unset_texts_as_they_are",
    ),
    "an update without a matching row logs no warning": (
        "test_update_of_a_missing_run_only_logs_a_warning",
        "test_of_guarded_updates_only_that_of_a_missing_run_is_logged",
        "test_update_of_a_missing_thread_only_logs_a_warning",
        "test_updating_another_users_thread_only_logs_a_warning",
    ),
    "no column for token counts by model": (
        "test_tokens_from_a_hundred_concurrent_tasks_are_counted_exactly",
        "test_completion_replaces_totals_and_leaves_counts_by_model",
        "test_usage_sums_all_runs_of_the_thread",
        "test_usage_counts_only_the_users_runs",
        "test_any_text_works_as_a_model_name",
        "test_usage_is_filtered_by_status",
        "test_completion_replaces_all_counts_by_model",
        "test_completion_without_counts_by_model_leaves_them",
        "test_empty_counts_by_model_clear_them",
        "test_absent_counts_of_a_model_have_the_documented_defaults",
        "test_counts_by_model_and_totals_of_the_run_are_independent",
        "test_tokens_recorded_after_a_completion_are_added_to_its_counts",
        "test_any_text_works_as_a_model_name_of_a_completion",
        "test_invalid_counts_by_model_raise_and_change_nothing",
        "test_active_completion_of_an_ended_run_leaves_counts_by_model",
        "test_completion_of_a_running_run_replaces_counts_by_model",
        "test_ending_event_with_counts_by_model_stores_them",
        "test_invalid_counts_by_model_are_left_out_and_logged",
        "test_sums_and_lists_cover_more_than_500_runs",
        "test_run_created_again_inherits_no_token_counts",
        "test_tokens_of_no_model_count_by_model_only_where_no_other_tokens_do",
    ),
    "a new event's row shares its payloads with the caller's objects": (
        "test_changing_what_a_write_was_given_changes_nothing_stored",
        "test_events_given_as_one_object_are_rows_of_their_own",
    ),
    "an actor without an id is treated as no actor, so that its new threads are open to all": (
        "test_actor_without_an_id_creates_no_thread",
    ),
    "`model_name` and `multitask_strategy` accepted and dropped": (
        "test_run_without_counts_by_model_counts_under_its_model_name",
        "test_run_without_tokens_counts_under_its_model_name",
    ),
    "the adapters' feedback does not support AUTO": (
        "test_auto_without_an_actor_raises_an_error_that_names_the_method",
        "test_auto_means_the_current_actor",
        "test_auto_selects_the_actors_feedback",
    ),
    "run `delete` and `get_thread` resolve the actor after the read": (
        "test_auto_without_an_actor_opens_no_connection",
        "test_auto_without_an_actor_raises_actor_missing_error",
    ),
    "a model's name is stripped and truncated to 128 characters": (
        "test_update_model_name_changes_only_the_model_name",
    ),
    "a thread's metadata is merged in Python, between a read and a write": (
        "test_a_hundred_concurrent_metadata_merges_lose_no_key",
    ),
    "the adapters accept 1.0 and True as a rating of 1": ("test_invalid_rating_raises_and_writes_nothing",),
    "the adapters' vote is the user's newest row on the run, including feedback on messages": (
        "test_feedback_on_a_message_is_not_the_vote",
        "test_one_of_several_created_rows_becomes_and_remains_the_vote",
        "test_delete_by_run_removes_only_the_users_vote",
        "test_delete_by_run_leaves_other_created_rows",
    ),
    "`ensure_thread_running` creates a thread without an owner": (
        "test_ensure_thread_running_creates_a_running_thread",
    ),
    "`search_threads` strips the `assistant_id` filter": (
        "test_search_matches_status_and_assistant_exactly",
    ),
    "`search_threads` compares the `str` of a value with the database's text form": (
        "test_metadata_filter_matches_equal_type_and_content",
        "test_metadata_filter_ignores_the_order_of_keys",
        "test_metadata_filter_finds_metadata_of_every_write_method",
        "test_thread_update_replaces_metadata_as_a_whole",
        "test_metadata_merge_accepts_any_key",
        "test_search_finds_the_merged_value_and_not_the_previous_one",
    ),
    "a NUL in a key is stored and breaks the database's JSON functions": (
        "test_metadata_filter_accepts_any_key",
    ),
    "content None is not replaced by the default": ("test_event_fields_have_the_documented_defaults",),
    "no column for `event_id`": (
        "test_event_id_is_in_the_rows_of_events_that_have_one",
        "test_invalid_event_id_raises_and_stores_nothing",
        "test_repeated_batch_is_stored_once_and_returns_the_first_rows",
        "test_rest_of_a_batch_that_was_stored_in_part_is_stored",
        "test_rest_of_a_large_batch_that_was_stored_in_part_is_stored",
        "test_event_id_twice_in_a_batch_is_stored_once",
        "test_rows_of_one_event_share_no_value",
        "test_concurrent_calls_with_one_event_id_store_one_event",
        "test_put_if_absent_returns_the_event_with_the_same_event_id",
        "test_concurrent_put_if_absent_calls_with_one_event_id_store_one_event",
        "test_event_id_is_free_again_after_a_deletion",
        "test_event_ids_of_threads_are_independent",
        "test_repeated_event_of_another_users_thread_is_refused",
        "test_event_id_is_recognised_by_another_storage",
    ),
    "`put_batch` returns the time with the given offset": ("test_event_time_is_stored_in_utc",),
}
"""On both databases."""

FAILURES_ON_SQLITE: Table = {
    "no column for token counts by model": ("test_usage_sums_are_not_limited_to_32_bits",),
    "the messages of a completion are truncated to 2,000 characters": ("test_run_texts_round_trip",),
    "a search is one expression, of at most 1,000 levels on SQLite": (
        "test_search_by_many_keys_finds_the_thread",
    ),
}

FAILURES_BEFORE_SQLALCHEMY_2_1: Table = {
    "`search_threads` compares a number's `str` with a number": (
        "test_search_limit_counts_only_the_users_threads",
        "test_search_combines_all_filters",
        "test_metadata_filter_works_with_thousands_of_keys",
        "test_search_can_list_threads_last_updated_first",
        "test_merged_metadata_can_be_replaced_as_a_whole",
        "test_search_finds_one_value_after_fifty_concurrent_merges_of_one_key",
    ),
}
"""On SQLite; newer versions of SQLAlchemy convert the number to text, too."""

FAILURES_ON_POSTGRESQL: Table = {
    "the adapters do not translate the driver's errors": (
        "test_unreachable_server_raises_storage_unavailable_error",
    ),
    _WIDTH: (
        "test_counts_are_not_limited_to_32_bits",
        "test_usage_sums_are_not_limited_to_32_bits",
        "test_run_rows_contain_only_plain_json_types",
    ),
    "ids of more than 64 characters and titles of more than 255 are rejected": (
        "test_every_method_accepts_identifiers_of_1024_bytes",
        "test_identifiers_of_1024_bytes_round_trip",
        "test_completed_event_sets_the_thread_title",
        "test_search_lists_threads_newest_first",
        "test_search_can_list_threads_last_updated_first",
    ),
    "text with NUL is rejected": (
        "test_ids_are_compared_exactly",
        "test_any_comment_text_round_trips",
        "test_any_title_text_round_trips",
        "test_run_texts_round_trip",
        "test_event_content_round_trips",
    ),
    "PostgreSQL's JSON has no NaN": ("test_non_finite_number_round_trips_or_raises",),
}

_SOMETIMES = "passes or fails by chance; test_sql_baseline.py reproduces this race deterministically"
_MANY_CASES = "hundreds of cases, up to half a minute, for a failure that other tests show as well"
_LARGE = "rows of up to 16 MiB take up to half a minute"
_TAKES_LONG = "takes up to a minute with four processes and fails like its single-process counterpart"
_HUNDRED_TASKS = "a hundred tasks take up to a minute; test_sql_baseline.py reproduces this race with few"

SKIPPED: Table = {
    _SOMETIMES: (
        "test_exactly_one_of_a_hundred_concurrent_run_deletes_succeeds",
        "test_exactly_one_of_a_hundred_concurrent_feedback_deletes_succeeds",
        "test_exactly_one_of_a_hundred_concurrent_vote_deletes_succeeds",
        "test_concurrent_upserts_of_a_hundred_users_leave_a_hundred_votes",
        "test_upserts_from_a_hundred_tasks_reuse_one_created_row",
        "test_upserts_from_four_processes_reuse_one_created_row",
        "test_concurrent_creates_and_upserts_leave_one_vote",
        "test_a_hundred_concurrent_ensure_thread_running_calls_create_one_thread",
        "test_completion_survives_a_hundred_concurrent_status_updates",
        "test_concurrent_setup_of_many_storages_works",
        "test_concurrent_setup_from_six_processes_works",
    ),
    _MANY_CASES: (
        "test_invalid_identifier_raises_and_changes_nothing",
        "test_invalid_identifier_raises_before_any_query",
        "test_identifier_errors_are_storage_errors",
        "test_identifier_error_names_the_argument",
    ),
    _LARGE: (
        "test_payloads_are_stored_up_to_the_stated_limit",
        "test_texts_are_stored_up_to_the_stated_limit",
    ),
    _HUNDRED_TASKS: (
        "test_upserts_from_a_hundred_tasks_leave_one_vote",
        "test_a_hundred_concurrent_ensure_thread_calls_create_one_thread",
    ),
    _TAKES_LONG: (
        "test_a_thousand_upserts_from_four_processes_leave_one_vote",
        "test_ten_thousand_token_records_from_four_processes_are_counted_exactly",
        "test_a_thousand_ensure_thread_calls_from_four_processes_create_one_thread",
        "test_creates_from_four_processes_create_each_run_once",
        "test_updates_from_four_processes_lose_no_key_and_no_completion",
        "test_put_if_absent_from_four_processes_stores_one_event_per_run",
        "test_events_from_four_processes_have_no_gaps_and_no_reader_misses_one",
        "test_events_from_four_processes_are_stored_once_by_event_id",
    ),
}
"""On both databases."""

SKIPPED_ON_SQLITE: Table = {_SOMETIMES: ("test_two_storages_share_one_seq_per_thread",)}
"""It passes on PostgreSQL because of the advisory lock."""


def by_test(*tables: Table) -> dict[str, str]:
    """Test -> reason; raises `ValueError` if a test is listed twice."""
    reasons: dict[str, str] = {}
    for table in tables:
        for reason, tests in table.items():
            for test in tests:
                if test in reasons:
                    raise ValueError(f"{test} is listed under two reasons: {reasons[test]}; {reason}")
                reasons[test] = reason
    return reasons
