//! One reply: history to prompt, provider to events. Runs as a task of its own, so that whatever a provider does, a panic
//! included, ends one reply and nothing else; the room sees a channel that closed without an end.

use chatbox_proto::{ids::MessageId, trace::TraceContext};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{context::ContextBuilder, error::SessionError, history::HistoryReader, log::SessionLog};
use crate::{
    budget::{BudgetError, Budgets, Work},
    domain::entry::{Charge, FinishReason, Seq, Usage},
    llm::{Chunk, Prompt, registry::Model, tokens::estimate_message_tokens},
};

/// Messages per read while the context is collected; the first read is short, since a few long ones may fill it.
const FIRST_PAGE: usize = 6;
const PAGE: usize = 30;

/// Events between a reply and its room. The provider waits when the room does not keep up.
pub(super) const EVENT_QUEUE: usize = 64;

/// What a reply tells its room.
#[derive(Debug)]
pub(super) enum ReplyEvent {
    /// The prompt is ready; its estimated size in tokens.
    Prompted(u64),
    /// The provider's own id of the request.
    RequestId(String),
    /// Id of the model that answers instead of the chosen one.
    Model(String),
    /// The provider keeps the conversation under this name.
    Conversation(String),
    /// Text; never empty.
    Text(String),
    /// The last event.
    Ended(FinishReason, Option<Usage>),
}

/// What a reply needs to run.
pub(super) struct ReplyJob {
    pub(super) log: SessionLog,
    pub(super) id: MessageId,
    pub(super) started_seq: Seq,
    /// The reply it replaces.
    pub(super) supersedes: Option<MessageId>,
    pub(super) model: Model,
    pub(super) user_hash: String,
    /// Where the message that it answers belongs in a trace.
    pub(super) trace: Option<TraceContext>,
    /// What the provider of this model keeps of the conversation, if that is all of it.
    pub(super) conversation: Option<String>,
    pub(super) budgets: Option<Budgets>,
    pub(super) charge: Option<Charge>,
}

impl ReplyJob {
    /// Generates until the end, or until `cancel`; then the request upstream is dropped and nothing more is sent.
    pub(super) async fn run(self: Box<Self>, cancel: CancellationToken, events: mpsc::Sender<ReplyEvent>) {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = self.generate(&events) => {}
        }
    }

    async fn generate(&self, events: &mpsc::Sender<ReplyEvent>) {
        let (finish, usage) = match self.prompt().await {
            Ok((prompt, tokens)) => match self.reserve(tokens).await {
                Ok(()) => {
                    // From here on it may cost something.
                    let _ = events.send(ReplyEvent::Prompted(tokens)).await;
                    self.stream(prompt, events).await
                }
                Err(finish) => (finish, Some(Usage::default())),
            },
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, session.id = %self.log.id, "no context for a reply");
                (FinishReason::Interrupted, None)
            }
        };
        // A room that is gone has no use for it.
        let _ = events.send(ReplyEvent::Ended(finish, usage)).await;
    }

    /// Room in the budgets, or how the reply ends without it. What becomes of it follows from the reply's end.
    async fn reserve(&self, prompt_tokens: u64) -> Result<(), FinishReason> {
        let (Some(budgets), Some(charge)) = (&self.budgets, &self.charge) else { return Ok(()) };
        let work = Work { id: self.id, session_id: Some(self.log.id) };
        match budgets.reserve(charge, work, &self.model.info, prompt_tokens).await {
            Ok(_settled_with_the_end) => Ok(()),
            Err(BudgetError::Exhausted { .. }) => Err(FinishReason::BudgetExhausted),
            // Whether there is room cannot be told: nothing is given away.
            Err(BudgetError::Store(_) | BudgetError::StoreTimeout) => Err(FinishReason::Interrupted),
        }
    }

    async fn prompt(&self) -> Result<(Prompt, u64), SessionError> {
        let info = &self.model.info;
        let system = info.system_prompt.as_deref();
        let budget = u64::from(info.context_tokens.saturating_sub(info.max_output_tokens));
        let budget = budget.saturating_sub(system.map_or(0, estimate_message_tokens));
        let mut context = ContextBuilder::new(budget).without(self.supersedes);
        let mut history = HistoryReader::new(&self.log);
        let (mut before, mut page_size) = (self.started_seq, FIRST_PAGE);
        'collect: loop {
            let page = history.before(before, 0, page_size).await?;
            page_size = PAGE;
            let Some(oldest) = page.last().map(|message| message.seq) else { break };
            before = oldest;
            for message in page {
                if !context.offer(message) {
                    break 'collect;
                }
            }
        }
        let (messages, tokens) = context.finish(system);
        let prompt = Prompt {
            upstream_model: info.upstream_model.clone(),
            messages,
            max_output_tokens: info.max_output_tokens,
            user_hash: self.user_hash.clone(),
            conversation: self.conversation.clone(),
            trace: self.trace,
            ..Prompt::default()
        };
        Ok((prompt, tokens))
    }

    async fn stream(&self, prompt: Prompt, events: &mpsc::Sender<ReplyEvent>) -> (FinishReason, Option<Usage>) {
        let mut usage = None;
        let failed = |error: crate::llm::ProviderError, usage| {
            tracing::warn!(%error, session.id = %self.log.id, reply.id = %self.id, model = self.model.info.id, "provider failed");
            (error.finish_reason(), usage)
        };
        let mut chunks = match self.model.provider.generate(prompt).await {
            Ok(chunks) => chunks,
            Err(error) => {
                // What was never sent has used nothing.
                let unsent = error.was_not_sent().then(Usage::default);
                return failed(error, unsent);
            }
        };
        while let Some(chunk) = chunks.next().await {
            let event = match chunk {
                Ok(Chunk::Text(text)) => ReplyEvent::Text(text),
                Ok(Chunk::RequestId(id)) => ReplyEvent::RequestId(id),
                Ok(Chunk::Model(id)) => ReplyEvent::Model(id),
                Ok(Chunk::Conversation(id)) => ReplyEvent::Conversation(id),
                Ok(Chunk::Reasoning) => continue,
                Ok(Chunk::Usage(reported)) => {
                    usage = Some(reported);
                    continue;
                }
                Ok(Chunk::Finished(finish)) => return (finish, usage),
                Err(error) => return failed(error, usage),
            };
            if events.send(event).await.is_err() {
                break;
            }
        }
        failed(crate::llm::ProviderError::Truncated, usage)
    }
}
