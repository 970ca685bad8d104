//! What every store must do: one test per sentence of the traits' text. A backend passes by giving `store_conformance!` an
//! expression that makes a [`Fixture`]; a new rule enters the text, this suite and every backend together.

pub(super) mod append;
pub(super) mod audit;
pub(super) mod budgets;
pub(super) mod create;
pub(super) mod erase;
pub(super) mod handoff;
pub(super) mod keys;
pub(super) mod list;
pub(super) mod model;
pub(super) mod outbox;
pub(super) mod reading;
pub(super) mod replies;
pub(super) mod shares;
pub(super) mod values;

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use chatbox_proto::ids::{MessageId, SessionId};
use futures_util::future::join_all;

use super::{
    Append, Appended, Created, Derived, Header, KeyedHash, LogDocument, MessageKey, NewSession, ReplyLease, ReplyRow,
    RequestKey, SessionStore, ShareStore, SlotRule, Stores, budgets::BudgetStore,
};
use crate::domain::{entry::Seq, time::Timestamp};

/// An empty store of one backend, for one test.
#[async_trait]
pub(crate) trait Fixture: Send {
    /// The store, all its parts.
    fn stores(&self) -> Stores;
    /// Its sessions.
    fn store(&self) -> Arc<dyn SessionStore> {
        self.stores().sessions
    }
    /// Its budgets.
    fn budgets(&self) -> Arc<dyn BudgetStore> {
        self.stores().budgets
    }
    /// Its share links.
    fn shares(&self) -> Arc<dyn ShareStore> {
        self.stores().shares
    }
    /// Closes it and opens it again on the same data.
    async fn reopen(&mut self);
}

/// Stamps one `#[tokio::test]` per rule. `$fixture` is an expression that makes a fixture.
macro_rules! store_conformance {
    ($fixture:expr) => {
        $crate::store::conformance::store_conformance! { @list $fixture;
            create {
                a_new_session_is_read_back_as_it_was_made
                of_fifty_racing_first_opens_one_makes_the_session
                no_more_sessions_than_slots_are_made_in_a_race
                the_lowest_free_slot_is_taken
                without_a_limit_every_call_makes_a_session
                owners_do_not_share_slots
                a_repeated_call_finds_the_session_it_made
                a_repeated_call_is_recognised_before_slots_are_looked_at
                of_fifty_racing_equal_calls_one_makes_the_session
                a_request_id_with_other_content_is_reused
                request_ids_belong_to_their_owner
                an_id_that_exists_is_an_internal_error
                ending_frees_the_slot
                a_session_comes_back_into_a_free_slot_or_not_at_all
                a_return_that_loses_its_place_leaves_no_slot_taken
                of_racing_returns_and_new_sessions_no_more_than_slots_are_active
            }
            append {
                an_empty_log_has_head_zero
                entries_are_numbered_without_gaps
                a_wrong_head_conflicts_in_both_directions
                a_message_key_that_exists_conflicts_and_nothing_is_written
                a_message_key_twice_in_one_append_conflicts
                message_keys_belong_to_their_session
                an_unknown_session_conflicts
                of_fifty_racing_appends_one_wins_per_head
                appends_of_many_sessions_have_their_own_verdicts
                an_append_is_found_by_its_id_and_only_there
                after_none_the_attempt_is_never_written
                a_large_payload_is_stored_whole
            }
            reading {
                reading_after_starts_in_the_document_that_holds_the_next_entry
                reading_after_stops_at_the_limit
                reading_before_is_newest_first
                reading_before_stops_at_the_limit
                bounds_beyond_the_log_are_not_an_error
                an_unknown_session_reads_as_nothing
                heads_of_many_sessions_leave_unknown_ones_out
                a_read_sees_what_was_acknowledged_before_it
                a_message_is_found_by_its_key
            }
            list {
                the_order_is_by_activity_with_larger_ids_first
                pages_neither_overlap_nor_skip
                a_session_that_does_not_change_is_on_exactly_one_page
                the_ended_filter_splits_the_list
                the_active_session_is_the_latest_that_has_not_ended
                unfinished_sessions_come_page_by_page_in_the_order_of_ids
                unfinished_sessions_tell_how_far_they_are
                active_sessions_come_page_by_page_and_tell_how_long_they_stand_still
            }
            replies {
                a_reply_row_lives_from_start_to_finish
                renewing_is_compare_and_set
                the_latest_reply_row_is_given
                finishing_and_starting_in_one_append_swaps_the_rows
                a_conflicting_append_leaves_the_rows_alone
                all_running_replies_come_page_by_page_in_the_order_of_ids
                the_folded_state_only_moves_forward
                replacing_the_folded_state_is_compare_and_set
                racing_replacements_have_one_winner
            }
            keys {
                a_wrapped_key_is_replaced_by_compare_and_set
                a_destroyed_key_stays_destroyed
                racing_replacements_of_a_key_have_one_winner
                all_wrapped_keys_come_page_by_page_in_the_order_of_ids
            }
            shares {
                a_share_is_read_back_as_it_was_made
                shares_of_a_session_come_newest_first_page_by_page
                a_share_is_revoked_once_and_only_through_its_session
                a_repeated_call_finds_the_share_it_made
                a_session_has_no_more_working_shares_than_the_limit
                the_shares_of_a_session_are_removed_together
            }
            erase {
                of_an_erased_session_nothing_is_left_that_could_be_read
                erasing_is_done_twice_and_for_nobody_without_harm
                an_erased_session_is_in_no_list_and_frees_its_slot
                nothing_that_goes_with_earlier_appends_changes_an_erased_session
                a_row_of_a_reply_is_removed_alone
            }
            values {
                read_marks_only_rise
                read_marks_are_kept_for_a_hundred_participants
                read_marks_of_an_unknown_session_are_nothing
                an_installation_value_is_set_once
                racing_initial_values_agree
                an_installation_value_is_replaced_by_compare_and_set
                ping_answers
                everything_is_there_after_reopening
                close_is_idempotent_and_ends_service
                work_accepted_before_close_is_finished
            }
            outbox {
                an_alert_is_read_back_as_it_was_made
                of_fifty_racing_equal_alerts_one_is_made
                alerts_are_claimed_when_they_are_due
                of_those_who_claim_at_once_one_gets_a_row
                a_try_settles_what_it_claimed_and_nothing_later
                alerts_are_listed_page_by_page_oldest_first
                only_old_delivered_alerts_are_removed
            }
            handoff {
                a_row_is_written_replaced_and_removed_by_its_mark
                those_who_wait_come_longest_first
                all_rows_come_page_by_page_in_the_order_of_ids
                of_many_writers_of_one_row_the_last_one_is_left_whole
            }
            audit {
                records_are_numbered_without_gaps
                of_fifty_racing_records_with_one_number_one_is_written
                records_are_listed_newest_first_by_every_filter
                the_trail_is_read_in_order_and_survives_reopening
            }
            model {
                random_histories_agree_with_the_model
            }
            budgets {
                what_is_reserved_and_settled_is_in_the_row
                nothing_is_reserved_above_the_limit
                a_reservation_is_settled_once_and_only_where_it_is
                what_goes_beyond_a_reservation_is_counted_apart
                what_is_released_was_no_settlement
                a_repeated_reservation_is_one
                racing_reservations_stay_below_the_limit
                a_row_holds_a_bounded_number_of_reservations
                rows_with_reservations_come_page_by_page_in_the_order_of_keys
                old_rows_go_once_nothing_is_reserved_in_them
                random_interleavings_keep_the_invariants
            }
        }
    };
    (@list $fixture:expr; $($family:ident { $($rule:ident)* })*) => {
        $(mod $family {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    $crate::store::conformance::$family::$rule(&mut $fixture).await;
                }
            )*
        })*
    };
}
pub(crate) use store_conformance;

fn time(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn hash(n: u32) -> KeyedHash {
    let mut out = [0; 16];
    out[..4].copy_from_slice(&n.to_be_bytes());
    out
}

fn derived(applied_seq: Seq, activity: i64) -> Derived {
    let state = format!("state at {applied_seq}").into_bytes();
    Derived { applied_seq, state, last_activity: time(activity), ended: false, unfinished: false }
}

fn new_session(owner: &str, slot: SlotRule) -> NewSession {
    NewSession {
        id: SessionId::generate(),
        owner: owner.to_owned(),
        slot,
        wrapped_key: b"wrapped".to_vec(),
        created_at: time(1000),
        request: None,
        derived: derived(0, 1000),
    }
}

/// The append of `count` entries at `expected_head`, without anything else.
fn entries(session_id: SessionId, expected_head: Seq, count: u32) -> Append {
    let head = expected_head.saturating_add(u64::from(count));
    Append {
        session_id,
        append_id: *MessageId::generate().as_bytes(),
        expected_head,
        count,
        sealed: format!("{count} after {expected_head}").into_bytes(),
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        derived: derived(head, 1000 + i64::try_from(head).unwrap_or(0)),
        reply_started: None,
        reply_finished: None,
    }
}

fn message(key: u32, seq: Seq) -> MessageKey {
    MessageKey { key: hash(key), content: hash(key + 1_000_000), message_id: MessageId::generate(), seq }
}

fn document(append: &Append) -> LogDocument {
    LogDocument { first_seq: append.expected_head + 1, count: append.count, sealed: append.sealed.clone() }
}

/// A session without limits, made.
async fn made(store: &Arc<dyn SessionStore>, owner: &str) -> Header {
    match store.create_session(new_session(owner, SlotRule::Unlimited)).await.unwrap() {
        Created::New(header) => header,
        other @ (Created::SlotTaken(_) | Created::Repeated(_) | Created::RequestReused) => panic!("{other:?}"),
    }
}

/// Appends what must fit.
async fn done(store: &Arc<dyn SessionStore>, append: Append) -> Seq {
    match store.append(append).await.unwrap() {
        Appended::Done(head) => head,
        other @ (Appended::Conflict | Appended::NoSlot) => panic!("{other:?}"),
    }
}

/// A session whose log consists of documents of these sizes.
async fn logged(store: &Arc<dyn SessionStore>, counts: &[u32]) -> (SessionId, Vec<LogDocument>) {
    let id = made(store, "alice").await.id;
    let mut documents = Vec::new();
    let mut head = 0;
    for count in counts {
        let append = entries(id, head, *count);
        documents.push(document(&append));
        head = done(store, append).await;
    }
    (id, documents)
}

/// All at once, on as many tasks as there are futures.
async fn race<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut tasks = tokio::task::JoinSet::new();
    for future in futures {
        tasks.spawn(future);
    }
    tasks.join_all().await
}
