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
        "test_every_field_of_create_is_kept",
        "test_runs_are_listed_newest_first_within_their_thread",
        "test_times_come_back_equal_to_the_microsecond",
        "test_times_of_updates_come_back_equal_to_the_microsecond",
        "test_times_of_a_run_that_is_going_are_kept",
        "test_what_is_no_time_is_refused_and_nothing_is_written",
        "test_every_time_in_a_row_has_the_one_form",
        "test_update_status_goes_every_way_but_back_to_life",
        "test_an_update_leaves_everything_else",
        "test_set_error_sets_status_and_text",
        "test_status_metadata_is_merged_key_by_key_at_the_top",
        "test_status_metadata_is_merged_whatever_the_keys",
        "test_a_hundred_merges_at_once_lose_no_key",
        "test_a_completion_goes_every_way_but_back_to_life",
        "test_a_completion_stores_every_figure_and_text",
        "test_a_completion_ends_the_run_now_unless_it_has_an_end",
        "test_a_started_run_is_running_since_the_event",
        "test_an_ending_without_figures_sets_status_and_end",
        "test_an_ending_with_figures_stores_them_and_the_end",
        "test_an_ending_with_empty_figures_is_an_ending",
        "test_the_packages_own_event_is_one",
        "test_every_payload_written_comes_back_as_it_went_in",
        "test_all_values_at_once_come_back_as_they_went_in",
        "test_random_payloads_come_back_as_they_went_in",
        "test_a_merge_that_grows_beyond_the_limit_is_stored_or_refused",
        "test_an_error_is_stored_with_the_status",
        "test_pending_runs_are_those_created_at_or_before",
    ),
    "owner filter applied after `limit`": ("test_the_limit_counts_the_users_runs_only",),
    "`aggregate_by_run` and `list_by_thread_grouped` look at the newest 100 rows": (
        "test_totals_count_every_row",
        "test_grouped_gives_the_newest_row_of_every_run_of_the_user",
    ),
    "feedback `upsert` reads, deletes and inserts": ("test_upserts_from_a_hundred_tasks_leave_one_vote",),
    "run `delete` and `ensure_thread` read, check, then write": (
        "test_a_hundred_ensure_threads_at_once_make_one_thread",
    ),
    "event `seq` from `SELECT max(seq)`": (
        "test_a_number_is_never_given_twice_after_a_deletion",
        "test_a_number_is_never_given_twice_by_another_storage",
        "test_a_deleted_event_is_absent_again",
        "test_a_deletion_for_a_user_takes_the_events_kept_for_them",
    ),
    "`run_failed` with `error` inside `completion_data` raises inside the observer and the failure is lost": (
        "test_status_or_error_among_the_figures_breaks_nothing",
        "test_the_payloads_error_wins",
        "test_a_failed_run_has_an_error_text_even_if_none_was_given",
    ),
    "`search_threads` with a blank `user_id` lists everybody's threads": (
        "test_a_blank_user_is_that_user_and_not_everybody",
        "test_the_empty_user_is_a_user_of_its_own",
    ),
    _WIDTH: (
        "test_messages_of_a_thread_come_in_pages",
        "test_messages_of_a_run_come_in_pages",
    ),
    # Not in section 9: what the adapters do.
    "the adapters do not translate database errors": (
        "test_a_second_create_is_an_error_and_leaves_the_first_run_untouched",
        "test_of_fifty_creates_of_one_id_exactly_one_succeeds",
        "test_a_second_create_is_an_error_and_leaves_the_first_thread_untouched",
        "test_of_a_hundred_creates_exactly_one_succeeds",
        "test_ensure_thread_on_anothers_thread_is_refused_and_tells_nothing",
        "test_of_two_users_at_once_one_gets_the_thread",
    ),
    "the adapters do not validate identifiers, limits and other arguments": (
        "test_what_is_no_identifier_is_refused_and_changes_nothing",
        "test_what_is_no_identifier_is_refused_before_any_query",
        "test_the_refusal_names_the_argument",
        "test_lone_surrogates_in_identifiers_are_refused_or_kept",
        "test_the_actors_id_is_an_identifier_too",
        "test_no_operator_reaches_a_query_by_way_of_a_status",
        "test_a_limit_that_is_no_count_is_refused",
        "test_a_limit_is_refused_before_any_query",
        "test_what_is_no_number_to_page_from_is_refused",
        "test_what_is_no_list_of_types_is_refused",
        "test_what_is_no_event_is_refused_and_nothing_is_written",
        "test_what_is_no_list_of_statuses_is_refused",
        "test_what_is_no_error_or_model_is_refused_and_changes_nothing",
        "test_what_is_no_time_is_refused_to_list_pending_runs_by",
        "test_another_order_of_threads_is_refused",
    ),
    "the adapters do not validate payloads: invalid ones fail in Python or in the driver": (
        "test_what_holds_itself_is_refused",
        "test_what_is_very_deep_comes_back_or_is_refused",
        "test_what_is_doubtful_comes_back_equal_or_is_refused",
        "test_a_payload_that_is_no_mapping_is_refused",
        "test_the_refusal_says_where",
        "test_a_lone_surrogate_in_a_text_comes_back_or_is_refused",
        "test_an_unstorable_event_fails_its_own_caller_and_nobody_else",
        "test_what_no_thread_can_hold_is_refused_as_a_filter",
        "test_what_is_no_metadata_is_not_merged",
    ),
    "17 MiB are stored, so the suite's next write of the same new run finds an existing one": (
        "test_a_payload_beyond_the_limit_comes_back_or_is_refused",
    ),
    "only models in a run's payloads are converted to JSON; other objects become their `str` or fail": (
        "test_objects_are_made_json_first",
        "test_objects_are_made_json_wherever_they_are_written",
        "test_sets_become_lists",
        "test_whole_objects_may_be_payloads",
        "test_objects_in_content_are_made_json_first",
        "test_an_enum_of_the_host_is_its_value",
    ),
    "an ended run can be set to any status": (
        "test_an_update_that_would_revive_a_run_changes_no_time_that_is_set",
        "test_a_completion_that_would_revive_a_run_leaves_its_figures",
        "test_a_run_that_is_over_is_not_started_again",
        "test_an_update_that_would_revive_a_run_leaves_its_error",
        "test_a_completion_that_keeps_texts_of_a_run_that_goes_on",
    ),
    "a text that a completion omits is not cleared": (
        "test_what_a_completion_leaves_out_becomes_zero_or_none",
        "test_a_completion_that_keeps_texts_leaves_those_it_has_none_for",
    ),
    "an update without a matching row logs no warning": (
        "test_updating_a_run_that_is_not_there_is_a_warning_and_nothing_else",
        "test_updating_a_thread_that_is_not_there_is_a_warning_and_nothing_else",
        "test_updating_anothers_thread_is_as_if_it_were_not_there",
    ),
    "no column for token counts by model": (
        "test_a_hundred_tasks_at_once_are_counted_exactly",
        "test_a_completion_replaces_totals_and_leaves_figures_by_model",
        "test_totals_are_sums_over_all_runs_of_the_thread",
        "test_totals_are_those_of_the_users_runs",
        "test_model_names_are_data",
        "test_totals_are_those_of_runs_in_the_statuses_named",
    ),
    "`model_name` and `multitask_strategy` accepted and dropped": (
        "test_a_run_without_figures_by_model_counts_under_its_own_model",
        "test_a_run_that_spent_nothing_counts_under_its_own_model",
    ),
    "the adapters' feedback does not support AUTO": (
        "test_auto_without_an_actor_is_an_error_that_names_the_method",
        "test_auto_is_the_current_actor",
        "test_feedback_of_the_actor_may_be_asked_for",
    ),
    "run `delete` and `get_thread` resolve the actor after the read": (
        "test_auto_without_an_actor_makes_no_connection",
    ),
    "a model's name is stripped and truncated to 128 characters": ("test_a_model_name_is_set_alone",),
    "a thread's metadata is merged in Python, between a read and a write": (
        "test_a_hundred_merges_of_thread_metadata_at_once_lose_no_key",
    ),
    "the adapters accept 1.0 and True as a rating of 1": (
        "test_a_rating_that_is_no_vote_is_refused_and_nothing_is_written",
    ),
    "the adapters' vote is the user's newest row on the run, including feedback on messages": (
        "test_feedback_on_a_message_is_not_the_vote",
        "test_of_several_created_rows_one_becomes_the_vote_and_stays_it",
        "test_delete_by_run_removes_the_users_vote_only",
        "test_delete_by_run_removes_the_vote_and_no_other_created_row",
    ),
    "`ensure_thread_running` creates a thread without an owner": (
        "test_ensure_thread_running_makes_a_running_thread",
    ),
    "`search_threads` strips the `assistant_id` filter": ("test_status_and_assistant_are_matched_whole",),
    "`search_threads` compares the `str` of a value with the database's text form": (
        "test_metadata_matches_values_equal_in_type_and_content",
        "test_the_order_of_keys_does_not_count",
        "test_metadata_is_found_however_it_was_written",
        "test_metadata_is_replaced_whole",
        "test_metadata_is_merged_whatever_the_keys",
        "test_a_replaced_value_is_found_and_the_one_before_is_not",
    ),
    "a NUL in a key is stored and breaks the database's JSON functions": (
        "test_metadata_matches_under_any_key",
    ),
    "content None is not replaced by the default": ("test_what_an_event_leaves_out_has_its_default",),
    "`put_batch` returns the time with the given offset": ("test_a_time_of_an_event_is_kept",),
}
"""On both databases."""

FAILURES_ON_SQLITE: Table = {
    _DROPPED: ("test_what_is_no_number_comes_back_or_is_refused",),
    "no column for token counts by model": ("test_sums_are_not_limited_to_32_bits",),
    "the messages of a completion are truncated to 2,000 characters": (
        "test_texts_of_a_run_come_back_as_they_went_in",
    ),
}

FAILURES_BEFORE_SQLALCHEMY_2_1: Table = {
    "`search_threads` compares a number's `str` with a number": (
        "test_the_limit_counts_the_users_threads_only",
        "test_all_filters_hold_together",
        "test_metadata_with_very_many_keys_is_found",
        "test_threads_may_be_found_last_updated_first",
        "test_merged_metadata_can_be_replaced_whole",
        "test_of_fifty_merges_of_one_key_at_once_one_value_is_found",
    ),
}
"""On SQLite; newer versions of SQLAlchemy convert the number to text, too."""

FAILURES_ON_POSTGRESQL: Table = {
    _WIDTH: (
        "test_figures_are_not_limited_to_32_bits",
        "test_sums_are_not_limited_to_32_bits",
        "test_rows_hold_only_plain_json_types",
    ),
    "ids of more than 64 characters and titles of more than 255 are rejected": (
        "test_identifiers_of_1024_bytes_work_in_every_method",
        "test_identifiers_of_1024_bytes_come_back",
        "test_a_completed_run_titles_its_thread",
        "test_a_text_beyond_the_limit_comes_back_or_is_refused",
        "test_threads_are_found_newest_first",
        "test_threads_may_be_found_last_updated_first",
    ),
    "text with NUL is rejected": (
        "test_ids_are_compared_letter_by_letter",
        "test_texts_in_a_comment_are_data",
        "test_texts_in_a_title_are_data",
        "test_texts_of_a_run_come_back_as_they_went_in",
        "test_content_comes_back_as_it_went_in",
    ),
    "PostgreSQL's JSON has no NaN": ("test_what_is_no_number_comes_back_or_is_refused",),
}

_SOMETIMES = "passes or fails by chance; test_sql_baseline.py reproduces this race deterministically"
_TAKES_LONG = "takes up to a minute with four processes and fails like its single-process counterpart"

SKIPPED: Table = {
    _SOMETIMES: (
        "test_of_a_hundred_deletes_of_a_run_exactly_one_succeeds",
        "test_of_a_hundred_deletes_of_feedback_exactly_one_succeeds",
        "test_of_a_hundred_delete_by_runs_exactly_one_succeeds",
        "test_upserts_from_a_hundred_tasks_of_a_hundred_users_leave_a_hundred",
        "test_upserts_from_a_hundred_tasks_make_one_created_row_the_vote",
        "test_upserts_from_four_processes_make_one_created_row_the_vote",
        "test_creates_and_upserts_at_once_leave_one_vote",
        "test_a_hundred_ensure_thread_runnings_at_once_make_one_thread",
        "test_an_ending_among_a_hundred_updates_at_once_stays",
        "test_setup_raced_by_many_storages_works",
        "test_setup_raced_by_six_processes_works",
    ),
    _TAKES_LONG: (
        "test_a_thousand_upserts_from_four_processes_leave_one_vote",
        "test_ten_thousand_token_records_from_four_processes_are_counted_exactly",
        "test_a_thousand_ensure_threads_from_four_processes_make_one_thread",
        "test_of_creates_from_four_processes_each_run_has_one_winner",
        "test_updates_from_four_processes_lose_no_key_and_no_ending",
    ),
}
"""On both databases."""

SKIPPED_ON_SQLITE: Table = {
    _SOMETIMES: (
        "test_events_of_two_storages_share_the_numbers",
        "test_events_from_four_processes_are_numbered_without_gap_and_no_reader_misses_one",
        "test_of_put_if_absents_from_four_processes_each_run_has_one_event",
    ),
}
"""They pass on PostgreSQL because of the advisory lock."""


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
