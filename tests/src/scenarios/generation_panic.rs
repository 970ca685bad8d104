//! A panic in a provider ends one reply and harms nobody else.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use chatbox_core::{
    domain::entry::FinishReason as Finish,
    llm::{Chunk, ChunkStream, Model, ModelInfo, Models, Prompt, Provider, ProviderError},
};
use chatbox_proto::v1::{FinishReason, chat_request::Open, chat_response::Event};
use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;

use super::transcript::{Transcript, all_answered};
use crate::harness::{
    client::{Client, Transport},
    history,
    stack::{Setup, Stack},
};

/// How often; the same code is meant to run for days.
const ROUNDS: usize = 100;

/// In every question; a panic message that quotes it must not reach the log.
const MARKER: &str = "MARKER-of-a-question";

/// Says as many words as it is allowed to, then ends.
#[derive(Debug)]
struct Steady {
    words: watch::Sender<usize>,
}

#[async_trait]
impl Provider for Steady {
    async fn generate(&self, _: Prompt) -> Result<ChunkStream, ProviderError> {
        let words = self.words.subscribe();
        let next = |(mut words, said): (watch::Receiver<usize>, usize)| async move {
            if said > ROUNDS {
                return None;
            }
            let _ = words.wait_for(|allowed| *allowed > said).await;
            let chunk =
                if said == ROUNDS { Chunk::Finished(Finish::Stop) } else { Chunk::Text(format!("word{said} ")) };
            Some((Ok(chunk), (words, said + 1)))
        };
        Ok(stream::unfold((words, 0), next).boxed())
    }
}

/// Panics: before it has accepted a turn, or after some text.
#[derive(Debug)]
struct Panics {
    at_once: bool,
}

#[async_trait]
impl Provider for Panics {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        let text = prompt.messages.last().map(|message| message.text.clone()).unwrap_or_default();
        assert!(!self.at_once, "cannot handle {text}");
        let pieces = ["pärt ".to_owned(), String::new()];
        let piece = move |piece: String| {
            assert!(!piece.is_empty(), "cannot handle {text}");
            Ok(Chunk::Text(piece))
        };
        Ok(stream::iter(pieces).map(piece).boxed())
    }
}

fn model(id: &str, provider: Arc<dyn Provider>) -> Model {
    let info = ModelInfo {
        id: id.to_owned(),
        name: id.to_owned(),
        provider: "test".to_owned(),
        upstream_model: id.to_owned(),
        context_tokens: 8_192,
        max_output_tokens: 1_024,
        system_prompt: None,
        ..ModelInfo::default()
    };
    Model { info, provider }
}

/// The log of this process.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Keeps everything that is logged from now on. The tests of this crate have a process each.
    fn keep() -> Self {
        let log = Self::default();
        let lines = log.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || lines.clone()).finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        log
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

async fn open(stack: &Stack, transport: Transport, user: &str, model: &str) -> (Client, String) {
    let mut client = stack.connect(transport, user).await.unwrap();
    let open = Open { model: model.to_owned(), ..Open::default() };
    let session = client.open(open).await.unwrap().session.unwrap();
    (client, session.session_id)
}

/// Everything a user has seen is what is stored.
async fn settled(stack: &Stack, client: &mut Client, user: &str, session_id: &str) {
    let mut transcript = Transcript::of(session_id);
    transcript.keep(client);
    assert!(!transcript.events().iter().any(|event| matches!(event, Event::Error(_))));
    let stored = history::agreed(&mut stack.core(user).unwrap(), &stack.http(user).unwrap(), session_id).await.unwrap();
    transcript.check(&stored).unwrap();
    all_answered(&stored).unwrap();
}

#[tokio::test]
async fn a_panic_in_a_provider_is_one_outcome_one_count_and_one_backtrace_and_harms_nobody_else() {
    let log = Log::keep();
    let words = watch::Sender::new(0);
    let list = vec![
        model("steady", Arc::new(Steady { words: words.clone() })),
        model("at-once", Arc::new(Panics { at_once: true })),
        model("in-text", Arc::new(Panics { at_once: false })),
    ];
    let models = Models::new(list, "steady").unwrap();
    let stack = Stack::start(Setup::new().unwrap().with(|setup| setup.models = Some(models))).await.unwrap();
    let started = stack.core_metric("process_start_time_seconds").await.unwrap();
    let before = stack.core_metric("chatbox_core_panics_total").await.unwrap();

    let (mut steady, steady_session) = open(&stack, Transport::ALL[0], "steady", "steady").await;
    steady.say("only", "go on").await.unwrap();
    let mut victims = Vec::new();
    for (index, transport) in Transport::ALL.into_iter().enumerate() {
        for model in ["at-once", "in-text"] {
            let user = format!("{model}-{index}");
            let (client, session_id) = open(&stack, transport, &user, model).await;
            victims.push((client, user, session_id, model));
        }
    }
    for round in 0..ROUNDS {
        let count = victims.len();
        let (client, _, _, model) = &mut victims[round % count];
        client.say(&format!("m{round}"), &format!("{MARKER} {round}")).await.unwrap();
        let reply = client.reply().await.unwrap();
        let text = if *model == "at-once" { "" } else { "pärt " };
        assert_eq!(reply.finished.finish_reason(), FinishReason::ProviderError, "round {round}");
        assert_eq!((reply.finished.text.as_str(), reply.streamed.as_str()), (text, text), "round {round}");
        let panics = stack.core_metric("chatbox_core_panics_total").await.unwrap() - before;
        assert_eq!(panics, (round + 1) as f64);
        // The stream beside it goes on.
        words.send_modify(|allowed| *allowed += 1);
        let word = format!("word{round} ");
        let said = |event: &Event| matches!(event, Event::ReplyDelta(delta) if delta.text == word).then_some(());
        steady.until(&word, said).await.unwrap();
    }
    words.send_modify(|allowed| *allowed += 1);
    let reply = steady.reply().await.unwrap();
    let whole: String = (0..ROUNDS).map(|n| format!("word{n} ")).collect();
    assert_eq!((reply.streamed, reply.finished.text.as_str()), (whole.clone(), whole.as_str()));
    assert_eq!(reply.finished.finish_reason(), FinishReason::Stop);
    settled(&stack, &mut steady, "steady", &steady_session).await;
    for (client, user, session_id, _) in &mut victims {
        settled(&stack, client, user, session_id).await;
    }
    assert_eq!(stack.core_metric("process_start_time_seconds").await.unwrap(), started);
    stack.shutdown_after_panics(ROUNDS as u64).await.unwrap();

    let log = log.text();
    let panicked: Vec<&str> = log.lines().filter(|line| line.contains("\"panicked\"")).collect();
    assert_eq!(panicked.len(), ROUNDS);
    assert!(panicked.iter().all(|line| line.contains("panic.backtrace") && line.contains("generation_panic")));
    assert!(!log.contains(MARKER), "the text of a question is in the log");
}
