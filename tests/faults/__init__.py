"""Faults on real Kafka: processes killed and frozen, a broker that goes, a network that delays, cuts and hangs.

    python -m tests.faults --schedules 1000 --seed 1        random schedules during a stream of payments

`broker` runs a Kafka of the tests' own with listeners behind a `proxy`; `nursery` starts workers in a moment; `run` is
one application on them; `schedule` draws faults from a seed and compares the outcome with an undisturbed run.

Whatever a test is about, at its end both topics of decisions are read, repeats included: two different decisions of a
payment fail it (tests/answers.py, called by the fixtures `application` and `one_decision_each`). Where the outcome is
equal in the end, `Application.check` has compared what a reader of decisions-fast takes with topic decisions as well.
Rows of FAULTS.md that a worker meets, and their tests with such a reader:

    row   tests
    1     faults/test_rows.py::test_row_1_killed_at_each_named_step_and_terminated_in_the_middle
          faults/test_snapshot_rows.py::test_rows_1_and_12_killed_at_each_step_of_a_snapshot
          faults/test_order_rows.py::test_an_owner_that_wakes_between_order_and_publication_repeats_the_same_bytes
    2     faults/test_rows.py::test_row_2_a_commit_that_times_out_rebuilds_and_tears_nothing
    3     faults/test_rows.py::test_rows_3_and_8_a_frozen_owner_with_an_open_transaction_is_replaced_and_fenced
          faults/test_group_protocols.py::test_a_frozen_owner_is_fenced
          integration/test_hand_over.py::test_a_frozen_worker_that_wakes_is_fenced
    4     faults/test_rows.py::test_rows_4_and_22_workers_join_and_leave_whatever_their_clocks_say
          faults/test_membership_rows.py::test_row_4_a_member_with_another_assignor_is_refused
          faults/test_membership_rows.py::test_row_4_a_worker_that_finds_another_assignor_in_its_group_says_so
          faults/test_group_protocols.py::test_a_standby_takes_over_warm
          integration/test_hand_over.py::test_two_shards_move_between_workers_under_the_broker_assigned_protocol
    5     faults/test_membership_rows.py::test_row_5_a_worker_that_does_not_poll_in_time_loses_its_shard_and_joins_again
    6     faults/test_rows.py::test_row_6_two_workers_with_one_static_member_id
          faults/test_group_protocols.py::test_the_same_static_member_id_twice_ends_one_loudly
    7     faults/test_rows.py::test_row_7_handed_over_while_still_recovering
    8     faults/test_rows.py::test_rows_3_and_8_a_frozen_owner_with_an_open_transaction_is_replaced_and_fenced
    9     faults/test_rows.py::test_row_9_the_journals_start_is_gone
    10    faults/test_rows.py::test_row_10_a_call_that_never_comes_back_is_given_up
          faults/test_rows.py::test_row_10_a_hanging_transaction_stops_recovery_loudly
    11    faults/test_rows.py::test_row_11_payments_that_are_gone_before_they_were_decided
    12    faults/test_snapshot_rows.py::test_rows_1_and_12_killed_at_each_step_of_a_snapshot
          faults/test_snapshot_rows.py::test_row_12_a_store_that_hangs_holds_up_neither_a_rebuild_nor_the_end
          integration/test_snapshots.py
    13    faults/test_rows.py::test_row_13_the_broker_is_killed_and_comes_back
          faults/test_rows.py::test_row_13_the_network_hangs_and_is_cut
          faults/test_cluster.py::test_row_13_all_three_nodes_of_a_cluster_are_rolled
          faults/test_denied.py::test_row_13_rights_that_are_taken_away_are_waited_for
          faults/test_denied.py::test_row_13_a_right_that_stays_away_ends_the_worker
          faults/test_denied.py::test_row_13_credentials_that_expire_and_are_renewed
    18    faults/test_rows.py::test_row_18_a_repeated_payment_has_the_same_decision_and_counts_once
    21    faults/test_bursts.py::test_row_21_a_burst_with_a_hot_key_stays_in_memory
          faults/test_bursts.py::test_row_21_a_burst_of_new_keys_stays_in_memory
    22    faults/test_rows.py::test_rows_4_and_22_workers_join_and_leave_whatever_their_clocks_say
    23    integration/test_catch_up.py
    24    faults/test_cluster.py::test_row_24_a_log_that_an_unclean_election_has_cut
          integration/test_broker_changes.py
          integration/test_order_cut.py
    25    integration/test_broker_changes.py
    26    integration/test_broker_changes.py
          faults/test_shared_topics.py::test_row_26_what_shards_lack_of_a_topic_that_all_read_is_accepted_range_by_range
    27    integration/test_fencing.py
          integration/test_broker_limits.py
          faults/test_group_protocols.py::test_another_application_is_refused
          faults/test_foreign_journal_records.py
    28    faults/test_cluster.py::test_row_28_too_few_replicas_in_sync_are_named_and_waited_for
          integration/test_broker_limits.py
    29    integration/test_broker_limits.py
    30    integration/test_fairness.py
"""
