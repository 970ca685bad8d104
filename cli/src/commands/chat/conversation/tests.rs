use chatbox_proto::{
    error_code::close,
    v1::{
        Entry, ErrorCode as WireCode, Reply, Session,
        chat_response::{GoingAway, Heartbeat},
        entry::{ReplyStarted, TakenOver},
    },
};
use proptest::prelude::*;

use super::*;

fn opened(head: u64, verdict: ResumeVerdict) -> Event {
    let session = Session { session_id: "s".to_owned(), model: "demo".to_owned(), ..Session::default() };
    Event::Opened(Opened { session: Some(session), head, verdict: verdict.into(), ..Opened::default() })
}

fn entry(seq: u64, kind: Kind) -> Event {
    Event::Entry(Entry { seq, kind: Some(kind), ..Entry::default() })
}

fn written(seq: u64, message_id: &str, client_message_id: &str) -> Event {
    entry(
        seq,
        Kind::Message(Message {
            message_id: message_id.to_owned(),
            seq,
            client_message_id: client_message_id.to_owned(),
            text: "from elsewhere".to_owned(),
            ..Message::default()
        }),
    )
}

fn started(seq: u64, reply: &str, answers: &[&str]) -> Event {
    let answers = answers.iter().map(|id| (*id).to_owned()).collect();
    let (message_id, model) = (reply.to_owned(), "demo".to_owned());
    entry(seq, Kind::ReplyStarted(ReplyStarted { message_id, model, answers, ..ReplyStarted::default() }))
}

fn finished(seq: u64, reply: &str, text: &str, finish: FinishReason) -> Event {
    entry(
        seq,
        Kind::ReplyFinished(ReplyFinished {
            message_id: reply.to_owned(),
            started_seq: 2,
            text: text.to_owned(),
            finish_reason: finish.into(),
            model: "demo".to_owned(),
            ..ReplyFinished::default()
        }),
    )
}

fn delta(reply: &str, offset: u32, text: &str) -> Event {
    let (message_id, text) = (reply.to_owned(), text.to_owned());
    Event::ReplyDelta(ReplyDelta { message_id, started_seq: 2, offset, text, ..ReplyDelta::default() })
}

fn snapshot(reply: &str, offset: u32, text: &str) -> Event {
    let (message_id, text, model) = (reply.to_owned(), text.to_owned(), "demo".to_owned());
    Event::ReplySnapshot(ReplySnapshot { message_id, started_seq: 2, offset, text, model, ..ReplySnapshot::default() })
}

fn error(request_id: &str, code: WireCode) -> Event {
    let (request_id, message) = (request_id.to_owned(), "a sentence".to_owned());
    Event::Error(Error { request_id, code: code.into(), message, ..Error::default() })
}

/// What a terminal would show of replies, with marks for their beginning and end.
fn replies(shown: &[Shown]) -> String {
    let text = |shown: &Shown| match shown {
        Shown::ReplyStarted { .. } => "<".to_owned(),
        Shown::ReplyText(text) => text.clone(),
        Shown::ReplyRestarted => "|".to_owned(),
        Shown::ReplyEnded { finish: FinishReason::Stop, .. } => ">".to_owned(),
        Shown::ReplyEnded { .. } => "!".to_owned(),
        Shown::Message(message) => format!("[{}]", message.message_id),
        Shown::Refused(_) => "[refused]".to_owned(),
        Shown::Notice(_) => "[notice]".to_owned(),
    };
    shown.iter().map(text).collect()
}

/// A conversation whose stream is attached to an empty session.
fn attached() -> Conversation {
    let mut conversation = Conversation::new("", "");
    conversation.apply(&opened(0, ResumeVerdict::Fresh));
    conversation
}

fn apply(conversation: &mut Conversation, events: &[Event]) -> String {
    replies(&events.iter().flat_map(|event| conversation.apply(event)).collect::<Vec<_>>())
}

/// Sends a message and returns its id.
fn say(conversation: &mut Conversation) -> String {
    conversation.send("hello".to_owned()).request_id
}

fn open_frame(conversation: &mut Conversation) -> (chat_request::Open, Vec<ChatRequest>) {
    let mut frames = conversation.opening();
    let Some(Frame::Open(open)) = frames.remove(0).frame else { panic!("the first frame is open") };
    (open, frames)
}

#[test]
fn a_reply_is_shown_as_it_comes_and_its_end_settles_the_message() {
    let mut conversation = attached();
    let id = say(&mut conversation);
    assert!(!conversation.is_idle());
    let shown = apply(
        &mut conversation,
        &[
            written(1, "m1", &id),
            started(2, "r1", &["m1"]),
            delta("r1", 0, "one "),
            delta("r1", 4, "two"),
            finished(3, "r1", "one two three", FinishReason::Stop),
        ],
    );
    assert_eq!(shown, "<one two three>");
    assert!(conversation.is_idle() && !conversation.reply_runs());
    assert_eq!(conversation.take_outcomes(), [Outcome::Answered]);
}

#[test]
fn only_a_complete_reply_is_an_answer() {
    for (finish, outcome) in [
        (FinishReason::Stop, Outcome::Answered),
        (FinishReason::Length, Outcome::Answered),
        (FinishReason::Cancelled, Outcome::Failed),
        (FinishReason::Interrupted, Outcome::Failed),
        (FinishReason::ProviderError, Outcome::Failed),
        (FinishReason::Filtered, Outcome::Failed),
        (FinishReason::Timeout, Outcome::Failed),
        (FinishReason::Superseded, Outcome::Failed),
    ] {
        let mut conversation = attached();
        let id = say(&mut conversation);
        apply(&mut conversation, &[written(1, "m1", &id), started(2, "r1", &["m1"]), finished(3, "r1", "", finish)]);
        assert_eq!(conversation.take_outcomes(), [outcome], "{finish:?}");
    }
}

#[test]
fn a_reply_to_somebody_else_settles_nothing_of_ours() {
    let mut conversation = attached();
    let id = say(&mut conversation);
    let shown = apply(
        &mut conversation,
        &[
            written(1, "theirs", "x"),
            started(2, "r1", &["theirs"]),
            written(3, "ours", &id),
            finished(4, "r1", "to them", FinishReason::Stop),
            started(5, "r2", &["ours"]),
        ],
    );
    assert_eq!(shown, "[theirs]<to them><");
    assert!(!conversation.is_idle());
}

#[test]
fn the_first_stream_asks_for_no_replay_and_the_next_one_continues() {
    let mut conversation = Conversation::new("", "small");
    let (open, _) = open_frame(&mut conversation);
    assert_eq!((open.session_id.as_str(), open.after_seq, open.model.as_str()), ("", None, "small"));
    conversation.apply(&opened(0, ResumeVerdict::Fresh));
    let known = say(&mut conversation);
    let unknown = say(&mut conversation);
    apply(&mut conversation, &[written(1, "m1", &known), started(2, "r1", &["m1"]), delta("r1", 0, "hé")]);
    let (open, again) = open_frame(&mut conversation);
    assert_eq!((open.session_id.as_str(), open.after_seq, open.model.as_str()), ("s", Some(2), ""));
    let position = open.reply.expect("a reply runs");
    assert_eq!((position.message_id.as_str(), position.next_offset), ("r1", 3));
    assert_eq!(again.iter().map(|frame| frame.request_id.as_str()).collect::<Vec<_>>(), [unknown]);
}

#[test]
fn nothing_is_shown_twice_after_a_resume() {
    let mut conversation = attached();
    let id = say(&mut conversation);
    let events = [written(1, "m1", &id), started(2, "r1", &["m1"]), delta("r1", 0, "one ")];
    let before = apply(&mut conversation, &events);
    let _ = conversation.opening();
    let after = apply(
        &mut conversation,
        &[
            opened(2, ResumeVerdict::Replayed),
            written(1, "m1", &id),
            started(2, "r1", &["m1"]),
            snapshot("r1", 0, "one two "),
            delta("r1", 8, "three"),
            finished(3, "r1", "one two three", FinishReason::Stop),
            finished(3, "r1", "one two three", FinishReason::Stop),
        ],
    );
    assert_eq!(before + &after, "<one two three>");
    assert_eq!(conversation.take_outcomes(), [Outcome::Answered]);
}

#[test]
fn a_reply_that_ended_while_we_were_gone_is_completed() {
    let mut conversation = attached();
    apply(&mut conversation, &[started(1, "r1", &[]), delta("r1", 0, "one ")]);
    let _ = conversation.opening();
    let shown = apply(
        &mut conversation,
        &[opened(2, ResumeVerdict::Replayed), finished(2, "r1", "one two", FinishReason::Stop)],
    );
    assert_eq!(shown, "two>");
}

#[test]
fn a_text_that_is_not_what_was_streamed_is_shown_whole() {
    let mut conversation = attached();
    let events = [started(1, "r1", &[]), delta("r1", 0, "abc"), snapshot("r1", 1, "xyz"), delta("r1", 4, "!")];
    assert_eq!(apply(&mut conversation, &events), "<abc");
    assert!(open_frame(&mut conversation).0.reply.is_none());
    let end = [finished(2, "r1", "axyz!", FinishReason::Stop)];
    assert_eq!(apply(&mut conversation, &end), "|axyz!>");
}

fn read_reply(seq: u64, id: &str, text: &str, answers: &[&str], finished_seq: u64) -> Message {
    let reply = Reply {
        finish_reason: FinishReason::Stop.into(),
        answers: answers.iter().map(|id| (*id).to_owned()).collect(),
        finished_seq,
        ..Reply::default()
    };
    let (message_id, text) = (id.to_owned(), text.to_owned());
    Message { message_id, seq, text, reply: Some(reply), ..Message::default() }
}

#[test]
fn what_a_gap_left_out_is_read_and_settles_as_if_it_had_come() {
    let mut conversation = attached();
    let (first, second) = (say(&mut conversation), say(&mut conversation));
    apply(&mut conversation, &[written(1, "m1", &first), started(2, "r1", &["m1"]), delta("r1", 0, "one ")]);
    let _ = conversation.opening();
    conversation.apply(&opened(5000, ResumeVerdict::Gap));
    // From before the reply that ran, so that its end is among what is read.
    let gap = conversation.take_gap().expect("a gap");
    assert_eq!((gap.after_seq, gap.head), (1, 5000));
    let ours = Message { message_id: "m2".to_owned(), seq: 4, client_message_id: second, ..Message::default() };
    let theirs = Message { message_id: "m3".to_owned(), seq: 6, ..Message::default() };
    let page = [
        read_reply(2, "r1", "one two", &["m1"], 3),
        ours,
        read_reply(5, "r2", "second", &["m2"], 7),
        theirs,
        read_reply(4999, "running", "", &["m3"], 0),
        read_reply(5001, "later", "later", &[], 5002),
    ];
    let shown = conversation.fill(&page, gap.head);
    assert_eq!(replies(&shown), "two><second>[m3]");
    assert_eq!(conversation.take_outcomes(), [Outcome::Answered, Outcome::Answered]);
    let live = [snapshot("running", 0, "now"), started(5001, "later", &[])];
    assert_eq!(apply(&mut conversation, &live), "<now<");
}

#[test]
fn a_missing_entry_is_asked_for_again() {
    let mut conversation = attached();
    let shown = apply(&mut conversation, &[written(2, "m2", "x")]);
    assert_eq!((shown.as_str(), conversation.take_resume()), ("", Some(Resume { after: Duration::ZERO })));
    assert_eq!(open_frame(&mut conversation).0.after_seq, Some(0));
}

#[test]
fn a_feed_that_is_behind_at_two_heartbeats_is_dead() {
    let beat = |head| Event::Heartbeat(Heartbeat { head, server_time: None });
    let mut conversation = attached();
    apply(&mut conversation, &[beat(1), written(1, "m", "x"), beat(2)]);
    assert_eq!(conversation.take_resume(), None);
    apply(&mut conversation, &[beat(2)]);
    assert!(conversation.take_resume().is_some());
}

#[test]
fn a_message_that_could_not_be_written_is_sent_again_a_few_times_under_its_id() {
    let mut conversation = attached();
    let id = say(&mut conversation);
    for _ in 1..MAX_TRIES {
        assert_eq!(apply(&mut conversation, &[error(&id, WireCode::Unavailable)]), "");
        assert!(conversation.take_resume().is_some());
        let (_, again) = open_frame(&mut conversation);
        assert_eq!((again.len(), &again[0].request_id), (1, &id));
    }
    assert_eq!(apply(&mut conversation, &[error(&id, WireCode::Unavailable)]), "[refused]");
    assert_eq!((conversation.take_resume(), conversation.take_outcomes()), (None, vec![Outcome::Failed]));
}

#[test]
fn a_refused_message_is_told_and_given_up() {
    for code in [WireCode::ResourceExhausted, WireCode::InvalidArgument, WireCode::FailedPrecondition] {
        let mut conversation = attached();
        let id = say(&mut conversation);
        assert_eq!(apply(&mut conversation, &[error(&id, code)]), "[refused]");
        assert_eq!((conversation.take_resume(), conversation.take_outcomes()), (None, vec![Outcome::Failed]));
    }
}

#[test]
fn an_open_that_is_refused_ends_it_unless_we_were_there_before() {
    let mut conversation = Conversation::new("s", "");
    apply(&mut conversation, &[error(OPEN, WireCode::Unavailable)]);
    assert!(conversation.take_refusal().is_some());
    let mut conversation = attached();
    apply(&mut conversation, &[error(OPEN, WireCode::Unavailable)]);
    assert!(conversation.take_refusal().is_none() && conversation.take_resume().is_some());
    apply(&mut conversation, &[error(OPEN, WireCode::NotFound)]);
    assert!(conversation.take_refusal().is_some());
}

#[test]
fn a_server_that_leaves_says_when_to_come_back_and_a_closing_error_says_why() {
    let mut conversation = attached();
    let retry_after = Some(Duration::from_millis(500).into());
    apply(&mut conversation, &[Event::GoingAway(GoingAway { retry_after, ..GoingAway::default() })]);
    assert_eq!(conversation.take_resume(), Some(Resume { after: Duration::from_millis(500) }));
    let Event::Error(mut closing) = error("", WireCode::Unauthenticated) else { panic!() };
    closing.close_code = close::TOKEN_EXPIRED.into();
    assert_eq!(apply(&mut conversation, &[Event::Error(closing)]), "");
    assert_eq!((conversation.take_close_code(), conversation.take_close_code()), (close::TOKEN_EXPIRED, 0));
}

#[test]
fn while_a_person_holds_the_session_a_message_needs_no_reply() {
    let mut conversation = attached();
    let before = say(&mut conversation);
    let taken = entry(2, Kind::TakenOver(TakenOver::default()));
    assert_eq!(apply(&mut conversation, &[written(1, "m1", &before), taken]), "[notice]");
    let during = say(&mut conversation);
    let ack = Ack { request_id: during.clone(), message_id: "m2".to_owned(), seq: 3, duplicate: false };
    apply(&mut conversation, &[Event::Ack(ack), written(3, "m2", &during)]);
    assert_eq!(conversation.take_outcomes(), [Outcome::Answered, Outcome::Answered]);
}

#[test]
fn stop_names_the_running_reply() {
    let mut conversation = attached();
    assert_eq!(conversation.stop(), None);
    apply(&mut conversation, &[started(1, "r1", &[])]);
    let Some(Frame::Stop(stop)) = conversation.stop().and_then(|request| request.frame) else { panic!("no stop") };
    assert_eq!(stop.message_id, "r1");
}

proptest! {
    /// However a reply is cut, and whatever is delivered again, it is shown once and whole.
    #[test]
    fn every_reply_is_shown_once_and_whole(
        text in "(\\PC){1,40}",
        pieces in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<bool>()), 0..20),
    ) {
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut conversation = attached();
        let mut shown = apply(&mut conversation, &[started(1, "r1", &[])]);
        for (from, to, whole) in pieces {
            let (from, to) = (*from.get(&ends), *to.get(&ends));
            let (from, to) = (from.min(to), from.max(to));
            let offset = u32::try_from(from).unwrap();
            let piece = if whole { snapshot("r1", offset, &text[from..to]) } else { delta("r1", offset, &text[from..to]) };
            shown += &apply(&mut conversation, &[piece]);
        }
        shown += &apply(&mut conversation, &[finished(2, "r1", &text, FinishReason::Stop)]);
        prop_assert_eq!(shown, format!("<{text}>"));
    }
}
