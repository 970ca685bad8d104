//! What every bus must do: one test per sentence of the trait's text. An implementation passes by giving `bus_conformance!`
//! an expression that makes a [`Fixture`].

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Bus, BusError, Delivery, Subscription};

/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// A bus of one's own, for one test.
#[async_trait]
pub(crate) trait Fixture: Send + Sync {
    /// Another handle of it, connected.
    async fn handle(&self) -> Arc<dyn Bus>;
}

macro_rules! bus_conformance {
    ($fixture:expr) => {
        $crate::bus::conformance::bus_conformance! { @list $fixture;
            what_is_published_reaches_the_other_handles_in_order
            ones_own_subscriptions_are_not_told
            topics_are_apart
            every_subscription_of_a_topic_is_told
            a_dropped_subscription_hears_nothing_and_harms_nobody
            an_overflow_is_marked_in_its_place_and_the_subscription_goes_on
            the_first_answer_counts
            a_question_nobody_answers_ends_at_its_deadline
            a_question_to_nobody_has_no_answer
            what_is_too_large_is_refused_and_what_fits_arrives_whole
            publishing_never_waits_and_what_does_not_fit_is_counted_or_marked
            closing_ends_subscriptions_and_refuses_requests
        }
    };
    (@list $fixture:expr; $($rule:ident)+) => {
        $(
            #[tokio::test]
            async fn $rule() {
                $crate::bus::conformance::$rule(&$fixture).await;
            }
        )+
    };
}
pub(crate) use bus_conformance;

async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long for {what}"),
    }
}

/// The next message; marks may come without need.
async fn message(subscription: &mut Subscription) -> Bytes {
    loop {
        match patiently("a message", subscription.next()).await {
            Some(Delivery::Message(payload)) => return payload,
            Some(Delivery::Lost) => {}
            other => panic!("expected a message, found {other:?}"),
        }
    }
}

fn text(text: impl Into<String>) -> Bytes {
    Bytes::from(text.into())
}

pub(crate) async fn what_is_published_reaches_the_other_handles_in_order(fixture: &dyn Fixture) {
    let (one, two) = (fixture.handle().await, fixture.handle().await);
    let mut heard = two.subscribe("t.1").await;
    for n in 0..100 {
        one.publish("t.1", text(format!("{n}")));
    }
    for n in 0..100 {
        assert_eq!(message(&mut heard).await, text(format!("{n}")));
    }
}

pub(crate) async fn ones_own_subscriptions_are_not_told(fixture: &dyn Fixture) {
    let (one, two) = (fixture.handle().await, fixture.handle().await);
    let mut own = one.subscribe("t").await;
    one.publish("t", text("mine"));
    two.publish("t", text("theirs"));
    assert_eq!(message(&mut own).await, text("theirs"));
}

pub(crate) async fn topics_are_apart(fixture: &dyn Fixture) {
    let (one, two) = (fixture.handle().await, fixture.handle().await);
    let mut heard = two.subscribe("a.b").await;
    for other in ["a", "a.b.c", "a.c", "b"] {
        one.publish(other, text("not this"));
    }
    one.publish("a.b", text("this"));
    assert_eq!(message(&mut heard).await, text("this"));
}

pub(crate) async fn every_subscription_of_a_topic_is_told(fixture: &dyn Fixture) {
    let (one, two, three) = (fixture.handle().await, fixture.handle().await, fixture.handle().await);
    let mut heard = [two.subscribe("t").await, two.subscribe("t").await, three.subscribe("t").await];
    one.publish("t", text("all"));
    for subscription in &mut heard {
        assert_eq!(message(subscription).await, text("all"));
    }
}

pub(crate) async fn a_dropped_subscription_hears_nothing_and_harms_nobody(fixture: &dyn Fixture) {
    let (one, two) = (fixture.handle().await, fixture.handle().await);
    let (dropped, mut kept) = (two.subscribe("t").await, two.subscribe("t").await);
    drop(dropped);
    one.publish("t", text("still"));
    assert_eq!(message(&mut kept).await, text("still"));
}

pub(crate) async fn an_overflow_is_marked_in_its_place_and_the_subscription_goes_on(fixture: &dyn Fixture) {
    let (one, two) = (fixture.handle().await, fixture.handle().await);
    let (mut slow, mut probe) = (two.subscribe("t").await, two.subscribe("probe").await);
    let total = 20_000_u32;
    for n in 0..total {
        one.publish("t", text(format!("{n}")));
        if n % 64 == 0 {
            // Lets a bus with tasks of its own do its work, and shows that all of it has come.
            one.publish("probe", text(format!("{n}")));
            while message(&mut probe).await != text(format!("{n}")) {}
        }
    }
    one.publish("probe", text("end"));
    while message(&mut probe).await != text("end") {}
    let (mut expected, mut marks) = (0, 0);
    // All that fits has come already.
    while let Ok(delivery) = tokio::time::timeout(Duration::from_millis(100), slow.next()).await {
        match delivery {
            Some(Delivery::Message(payload)) => {
                let n: u32 = std::str::from_utf8(&payload).unwrap().parse().unwrap();
                assert!(n == expected || marks > 0, "{n} instead of {expected}, without a mark");
                expected = n + 1;
            }
            Some(Delivery::Lost) => marks += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(expected < total && marks > 0, "so much does not fit, and nobody said so");
    one.publish("t", text("after"));
    assert_eq!(message(&mut slow).await, text("after"));
}

pub(crate) async fn the_first_answer_counts(fixture: &dyn Fixture) {
    let (one, two, three) = (fixture.handle().await, fixture.handle().await, fixture.handle().await);
    let (mut silent, mut answering) = (two.subscribe("t").await, three.subscribe("t").await);
    let asked = one.request("t", text("?"), PATIENCE);
    let answered = async {
        for (subscription, answers) in [(&mut silent, false), (&mut answering, true)] {
            loop {
                match patiently("the question", subscription.next()).await {
                    Some(Delivery::Request(payload, answer)) => {
                        assert_eq!(payload, text("?"));
                        if answers {
                            answer.give(text("!"));
                        }
                        break;
                    }
                    Some(Delivery::Lost) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    };
    let (asked, ()) = futures_util::join!(asked, answered);
    assert_eq!(asked, Ok(text("!")));
}

pub(crate) async fn a_question_nobody_answers_ends_at_its_deadline(fixture: &dyn Fixture) {
    let (one, two) = (fixture.handle().await, fixture.handle().await);
    let _kept = two.subscribe("t").await;
    let asked = patiently("the deadline", one.request("t", text("?"), Duration::from_millis(100))).await;
    assert_eq!(asked, Err(BusError::NoAnswer));
}

pub(crate) async fn a_question_to_nobody_has_no_answer(fixture: &dyn Fixture) {
    let one = fixture.handle().await;
    let _own = one.subscribe("t").await;
    let asked = patiently("no answer", one.request("t", text("?"), Duration::from_millis(500))).await;
    assert_eq!(asked, Err(BusError::NoAnswer));
}

pub(crate) async fn what_is_too_large_is_refused_and_what_fits_arrives_whole(fixture: &dyn Fixture) {
    let (one, two) = (fixture.handle().await, fixture.handle().await);
    let mut heard = two.subscribe("t").await;
    let most = one.max_payload();
    let before = one.liveness().dropped;
    one.publish("t", Bytes::from(vec![1; most + 1]));
    assert_eq!(one.liveness().dropped, before + 1);
    assert_eq!(one.request("t", Bytes::from(vec![1; most + 1]), PATIENCE).await, Err(BusError::TooLarge));
    one.publish("t", Bytes::from(vec![2; most]));
    assert_eq!(message(&mut heard).await, Bytes::from(vec![2; most]));
}

pub(crate) async fn publishing_never_waits_and_what_does_not_fit_is_counted_or_marked(fixture: &dyn Fixture) {
    let (one, two) = (fixture.handle().await, fixture.handle().await);
    let mut heard = two.subscribe("t").await;
    let total = 100_000_u64;
    // No await in between: nothing is taken off the way out meanwhile.
    for n in 0..total {
        one.publish("t", text(format!("{n}")));
    }
    let dropped = one.liveness().dropped;
    one.publish("t", text("end"));
    let (mut arrived, mut marked) = (0, false);
    while let Ok(delivery) = tokio::time::timeout(Duration::from_secs(1), heard.next()).await {
        match delivery {
            Some(Delivery::Message(payload)) if payload == "end" => break,
            Some(Delivery::Message(_)) => arrived += 1,
            Some(Delivery::Lost) => marked = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(arrived + dropped == total || marked, "{arrived} arrived, {dropped} were dropped");
    assert!(arrived < total, "a bound holds somewhere");
}

pub(crate) async fn closing_ends_subscriptions_and_refuses_requests(fixture: &dyn Fixture) {
    let (one, two) = (fixture.handle().await, fixture.handle().await);
    let (mut heard, mut closing) = (two.subscribe("t").await, one.subscribe("t").await);
    one.publish("t", text("last"));
    patiently("close", one.close()).await;
    patiently("close again", one.close()).await;
    assert_eq!(message(&mut heard).await, text("last"), "what was accepted is sent");
    loop {
        match patiently("the end", closing.next()).await {
            None => break,
            Some(Delivery::Lost) => {}
            Some(other) => panic!("{other:?}"),
        }
    }
    one.publish("t", text("nobody hears this"));
    assert_eq!(one.request("t", text("?"), PATIENCE).await, Err(BusError::Unavailable));
    assert!(!one.liveness().connected);
}
