use std::task::Poll;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, poll};
use tokio::time::advance;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn queue(running: usize, waiting: usize) -> Queue {
    Queue::new(QueueLimits { running, waiting, wait: 30 * SECOND })
}

/// How many run, wait, and were refused.
fn load(queue: &Queue) -> (usize, usize, u64) {
    let load = queue.load();
    (load.running, load.waiting, load.refused)
}

/// Somebody who wants a place, and has asked.
struct Guest {
    name: &'static str,
    enter: BoxFuture<'static, Result<Place, ProviderError>>,
}

async fn asks(queue: &Queue, name: &'static str) -> Guest {
    let queue = queue.clone();
    let mut enter = async move { queue.enter(name).await }.boxed();
    assert!(poll!(&mut enter).is_pending(), "{name} has to wait");
    Guest { name, enter }
}

/// Everybody who has got an answer since.
async fn answered(guests: &mut Vec<Guest>) -> Vec<(&'static str, Result<Place, ProviderError>)> {
    let mut answered = Vec::new();
    for mut guest in std::mem::take(guests) {
        match poll!(&mut guest.enter) {
            Poll::Ready(result) => answered.push((guest.name, result)),
            Poll::Pending => guests.push(guest),
        }
    }
    answered
}

#[tokio::test(start_paused = true)]
async fn so_many_run_at_once_and_a_place_goes_to_the_next() {
    let queue = queue(2, 10);
    let (first, second) = (queue.enter("a").await.expect("free"), queue.enter("b").await.expect("free"));
    let third = asks(&queue, "c").await;
    assert_eq!(load(&queue), (2, 1, 0));
    drop(first);
    let third = third.enter.await.expect("freed");
    assert_eq!(load(&queue), (2, 0, 0));
    drop((second, third));
    assert_eq!(load(&queue), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn users_take_turns_whatever_each_of_them_asks_for() {
    let queue = queue(1, 10);
    let mut place = queue.enter("x").await.expect("free");
    let mut guests = Vec::new();
    for name in ["a", "a", "a", "b", "c", "b"] {
        guests.push(asks(&queue, name).await);
    }
    let mut order = Vec::new();
    for _ in 0..6 {
        drop(place);
        let mut next = answered(&mut guests).await;
        assert_eq!(next.len(), 1, "one place, one answer");
        let (name, result) = next.remove(0);
        order.push(name);
        place = result.expect("a place");
    }
    assert_eq!(order, ["a", "b", "c", "a", "b", "a"]);
    drop(place);
    assert_eq!(load(&queue), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_told_and_leaves_no_trace() {
    let queue = queue(1, 10);
    let place = queue.enter("a").await.expect("free");
    let begun = Instant::now();
    assert_eq!(queue.enter("b").await.err(), Some(ProviderError::Timeout("queue")));
    assert_eq!((begun.elapsed(), load(&queue)), (30 * SECOND, (1, 0, 0)));
    assert_eq!((queue.load().waits, queue.load().waited), (1, 30 * SECOND));
    drop(place);
    assert!(queue.enter("c").now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_leaves_the_queue_and_a_place_on_its_way_goes_on() {
    let queue = queue(1, 10);
    let place = queue.enter("a").await.expect("free");
    let (gone, late, next) = (asks(&queue, "b").await, asks(&queue, "c").await, asks(&queue, "d").await);
    drop(gone);
    assert_eq!(load(&queue), (1, 2, 0));
    // The place has been sent to `late`, which never looks.
    drop(place);
    drop(late);
    let place = next.enter.await.expect("a place");
    assert_eq!(load(&queue), (1, 0, 0));
    drop(place);
    assert_eq!(load(&queue), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_unless_somebody_has_clearly_more() {
    let queue = queue(1, 3);
    let place = queue.enter("x").await.expect("free");
    let mut guests = Vec::new();
    for _ in 0..3 {
        guests.push(asks(&queue, "greedy").await);
    }
    assert_eq!(queue.enter("greedy").now_or_never().and_then(Result::err), Some(ProviderError::QueueFull));
    guests.push(asks(&queue, "newcomer").await);
    let lost = answered(&mut guests).await;
    assert_eq!(
        lost.iter().map(|(name, result)| (*name, result.as_ref().err())).collect::<Vec<_>>(),
        [("greedy", Some(&ProviderError::QueueFull))]
    );
    // Now it is two against one: that is fair enough.
    assert_eq!(queue.enter("newcomer").now_or_never().and_then(Result::err), Some(ProviderError::QueueFull));
    assert_eq!(load(&queue), (1, 3, 3));
    drop(place);
    assert_eq!(answered(&mut guests).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_any_confusion_all_places_are_there_again() {
    let queue = queue(3, 5);
    let mut guests: Vec<BoxFuture<'static, _>> = Vec::new();
    let mut places = Vec::new();
    for n in 0..500_usize {
        match n % 7 {
            0 | 1 | 4 => {
                let (queue, user) = (queue.clone(), ["a", "b", "c"][n % 3]);
                let mut enter = async move { queue.enter(user).await }.boxed();
                match poll!(&mut enter) {
                    Poll::Ready(result) => places.extend(result),
                    Poll::Pending => guests.push(enter),
                }
            }
            2 if !guests.is_empty() => drop(guests.swap_remove(n % guests.len())),
            3 if !places.is_empty() => drop(places.swap_remove(n % places.len())),
            5 => advance(SECOND).await,
            _ => {
                for mut guest in std::mem::take(&mut guests) {
                    match poll!(&mut guest) {
                        Poll::Ready(result) => places.extend(result),
                        Poll::Pending => guests.push(guest),
                    }
                }
            }
        }
        let (running, waiting, _) = load(&queue);
        assert!(places.len() <= running && running <= 3 && waiting <= 5, "{n}");
    }
    drop((guests, places));
    assert_eq!((load(&queue).0, load(&queue).1), (0, 0));
}
