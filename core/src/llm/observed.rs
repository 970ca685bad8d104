//! Every turn of a model is measured, and is a span of its trace, whatever it is for and however it ends: also one that
//! nobody waits for any more. By the semantic conventions of OpenTelemetry for generative AI.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chatbox_proto::spans::{Kind, Span, Tracer};
use futures_util::{Stream, StreamExt};

use super::{Chunk, ChunkStream, Load, ModelInfo, Prompt, Provider, ProviderError};
use crate::domain::entry::{FinishReason, Usage};

/// How a turn went.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// The model that was asked.
    pub model: &'a ModelInfo,
    /// How it ended.
    pub finish: FinishReason,
    /// From the request to the end.
    pub took: Duration,
    /// From the request to the first text; `None`: there was none.
    pub first_text: Option<Duration>,
    /// What it used, if that is known.
    pub usage: Option<Usage>,
}

impl Turn<'_> {
    /// The time of one token after the first one. `None` for what did not end well, or is too short to say.
    #[must_use]
    pub fn per_token(&self) -> Option<Duration> {
        let tokens = u32::try_from(self.usage?.completion_tokens).ok()?.checked_sub(1).filter(|tokens| *tokens > 0)?;
        let well = matches!(self.finish, FinishReason::Stop | FinishReason::Length);
        let rest = self.took.checked_sub(self.first_text?)?;
        well.then(|| rest / tokens)
    }
}

/// Who is told how turns went.
pub trait Observer: Send + Sync + std::fmt::Debug + 'static {
    /// A turn has ended. Called once for each, from wherever it ends; must not block.
    fn turn(&self, turn: Turn<'_>);
}

/// A model whose turns are observed.
#[derive(Debug)]
pub struct Observed {
    inner: Arc<dyn Provider>,
    info: Arc<ModelInfo>,
    observer: Arc<dyn Observer>,
    tracer: Tracer,
}

impl Observed {
    /// Wraps what runs a model.
    #[must_use]
    pub fn new(inner: Arc<dyn Provider>, info: ModelInfo, observer: Arc<dyn Observer>, tracer: Tracer) -> Self {
        Self { inner, info: Arc::new(info), observer, tracer }
    }

    fn span(&self, prompt: &Prompt) -> Span {
        // The name is only made for a span that somebody keeps.
        let name = if self.tracer.is_on() { format!("chat {}", self.info.id) } else { String::new() };
        let mut span = self.tracer.start(name, Kind::Client, prompt.trace);
        if span.is_recorded() {
            span.set("gen_ai.operation.name", "chat");
            span.set("gen_ai.provider.name", self.info.provider.clone());
            span.set("gen_ai.request.model", self.info.id.clone());
            span.set("gen_ai.request.max_tokens", u64::from(prompt.max_output_tokens));
        }
        span
    }
}

#[async_trait]
impl Provider for Observed {
    async fn generate(&self, mut prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        let span = self.span(&prompt);
        prompt.trace = span.context();
        let mut watch = Watch {
            info: self.info.clone(),
            observer: self.observer.clone(),
            span,
            started: Instant::now(),
            first_text: None,
            usage: None,
            finish: None,
        };
        match self.inner.generate(prompt).await {
            Ok(stream) => Ok(Watched { stream, watch }.boxed()),
            Err(error) => {
                watch.finish = Some(error.finish_reason());
                Err(error)
            }
        }
    }

    fn is_demo(&self) -> bool {
        self.inner.is_demo()
    }

    fn load(&self) -> Option<Load> {
        self.inner.load()
    }

    async fn settled(&self) {
        self.inner.settled().await;
    }
}

/// One turn. Told of when it is dropped, which is the end of every one.
struct Watch {
    info: Arc<ModelInfo>,
    observer: Arc<dyn Observer>,
    span: Span,
    started: Instant,
    first_text: Option<Duration>,
    usage: Option<Usage>,
    /// `None` until the end: who drops it before has cancelled it.
    finish: Option<FinishReason>,
}

impl Watch {
    fn chunk(&mut self, chunk: &Result<Chunk, ProviderError>) {
        match chunk {
            Ok(Chunk::Text(_)) => {
                if self.first_text.is_none() {
                    self.first_text = Some(self.started.elapsed());
                }
            }
            Ok(Chunk::Usage(usage)) => self.usage = Some(*usage),
            Ok(Chunk::Model(id)) => self.span.set("gen_ai.response.model", id.clone()),
            Ok(Chunk::Finished(finish)) => self.finish = Some(*finish),
            Ok(Chunk::RequestId(_) | Chunk::Conversation(_) | Chunk::Reasoning) => {}
            Err(error) => self.finish = Some(error.finish_reason()),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A panic unwinds through here, too.
        let dropped = if std::thread::panicking() { FinishReason::ProviderError } else { FinishReason::Cancelled };
        let finish = self.finish.unwrap_or(dropped);
        let turn = Turn {
            model: &self.info,
            finish,
            took: self.started.elapsed(),
            first_text: self.first_text,
            usage: self.usage,
        };
        self.observer.turn(turn);
        if !self.span.is_recorded() {
            return;
        }
        self.span.set("gen_ai.response.finish_reasons", finish.name());
        if let Some(first) = self.first_text {
            self.span.set("gen_ai.response.time_to_first_chunk", first.as_secs_f64());
        }
        if let Some(usage) = self.usage {
            self.span.set("gen_ai.usage.input_tokens", usage.prompt_tokens);
            self.span.set("gen_ai.usage.output_tokens", usage.completion_tokens);
        }
        if finish.is_failure() {
            self.span.fail(finish.name());
        }
    }
}

struct Watched {
    stream: ChunkStream,
    watch: Watch,
}

impl Stream for Watched {
    type Item = Result<Chunk, ProviderError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.stream.poll_next_unpin(cx));
        match &next {
            Some(chunk) => self.watch.chunk(chunk),
            None => {
                self.watch.finish.get_or_insert(FinishReason::ProviderError);
            }
        }
        Poll::Ready(next)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::stream;

    use super::*;

    /// Model, end, time to the first text, tokens.
    type Told = (String, FinishReason, bool, Option<u64>);

    #[derive(Debug, Default)]
    struct Notes(Mutex<Vec<Told>>);

    impl Observer for Notes {
        fn turn(&self, turn: Turn<'_>) {
            let tokens = turn.usage.map(|usage| usage.completion_tokens);
            self.0.lock().unwrap().push((turn.model.id.clone(), turn.finish, turn.first_text.is_some(), tokens));
        }
    }

    #[derive(Debug)]
    struct Says(Result<Vec<Result<Chunk, ProviderError>>, ProviderError>);

    #[async_trait]
    impl Provider for Says {
        async fn generate(&self, _: Prompt) -> Result<ChunkStream, ProviderError> {
            Ok(stream::iter(self.0.clone()?).boxed())
        }
    }

    async fn told(says: Result<Vec<Result<Chunk, ProviderError>>, ProviderError>, read: usize) -> Vec<Told> {
        let notes = Arc::new(Notes::default());
        let info = ModelInfo { id: "m".to_owned(), ..ModelInfo::default() };
        let observed = Observed::new(Arc::new(Says(says)), info, notes.clone(), Tracer::off());
        if let Ok(stream) = observed.generate(Prompt::default()).await {
            let _ = stream.take(read).collect::<Vec<_>>().await;
        }
        let told = notes.0.lock().unwrap();
        told.clone()
    }

    #[tokio::test]
    async fn every_turn_is_told_once_with_its_end() {
        let text = || Ok(Chunk::Text("x".to_owned()));
        let usage = Usage { completion_tokens: 7, ..Usage::default() };
        let all = vec![text(), Ok(Chunk::Usage(usage)), Ok(Chunk::Finished(FinishReason::Length))];
        let one = |finish, first, tokens| vec![("m".to_owned(), finish, first, tokens)];
        assert_eq!(told(Ok(all.clone()), 9).await, one(FinishReason::Length, true, Some(7)));
        assert_eq!(told(Ok(all), 1).await, one(FinishReason::Cancelled, true, None), "dropped in the middle");
        let broken = vec![text(), Err(ProviderError::Timeout("total"))];
        assert_eq!(told(Ok(broken), 9).await, one(FinishReason::Timeout, true, None));
        assert_eq!(told(Ok(vec![text()]), 9).await, one(FinishReason::ProviderError, true, None), "no end mark");
        assert_eq!(told(Err(ProviderError::QueueFull), 9).await, one(FinishReason::ProviderError, false, None));
    }

    #[test]
    fn the_time_of_a_token_is_that_after_the_first() {
        let info = ModelInfo::default();
        let turn = |finish, tokens, first| Turn {
            model: &info,
            finish,
            took: Duration::from_secs(11),
            first_text: first,
            usage: Some(Usage { completion_tokens: tokens, ..Usage::default() }),
        };
        let first = Some(Duration::from_secs(1));
        assert_eq!(turn(FinishReason::Stop, 11, first).per_token(), Some(Duration::from_secs(1)));
        for none in [
            turn(FinishReason::Cancelled, 11, first),
            turn(FinishReason::Stop, 1, first),
            turn(FinishReason::Stop, 0, first),
            turn(FinishReason::Stop, 11, None),
        ] {
            assert_eq!(none.per_token(), None, "{none:?}");
        }
    }
}
