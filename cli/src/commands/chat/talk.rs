//! Holds a conversation: events, lines and Ctrl-C on one side, frames and the screen on the other. When the stream breaks it
//! comes back to where it was.

use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use chatbox_proto::{
    error_code::{ErrorCode, close},
    json,
    status::Failure,
    v1::{
        ChatResponse,
        chat_request::{self, Frame},
        chat_response::{Event, Opened},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;

use super::{
    conversation::{Conversation, Resume},
    input::{Command, HELP, Input},
    link::Link,
    outbox::{Outcome, request},
    view::{Style, View},
};
use crate::{client::Client, plain_text::plain_line};

/// Left by Ctrl-C, as shells put it.
pub(super) const INTERRUPTED: u8 = 130;
/// A message got no complete reply.
pub(super) const FAILED: u8 = 1;
pub(super) const DONE: u8 = 0;

/// Messages of the session that a person sees on arrival.
const HISTORY: i32 = 20;

/// A second Ctrl-C within this time leaves.
const TWICE: Duration = Duration::from_secs(3);

/// Three heartbeats of a server with default settings: what is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(45);

/// Ways back that are tried in a row: about two minutes.
const MAX_TRIES: u32 = 30;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A stream that lived this long was a good one: the next break begins to count anew.
const GOOD: Duration = Duration::from_secs(10);

/// Who is on our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Types whenever they like, and gives commands.
    Person,
    /// Writes messages, one a line; each is sent when the one before has its reply.
    Program,
}

/// Why a stream was left.
#[derive(Debug)]
enum End {
    /// For good, with this exit code.
    Left(u8),
    /// It broke, or the server asked for it.
    Lost(Resume),
    /// Another session was chosen.
    Switched,
}

/// A conversation.
#[derive(Debug)]
pub(super) struct Talk {
    client: Client,
    conversation: Conversation,
    view: View,
    manner: Manner,
    failed: bool,
    last_interrupt: Option<Instant>,
    tries: u32,
    refreshes: u32,
}

impl Talk {
    pub(super) fn new(client: Client, conversation: Conversation, view: View, manner: Manner) -> Self {
        Self { client, conversation, view, manner, failed: false, last_interrupt: None, tries: 0, refreshes: 0 }
    }

    /// Talks until one side is done, and returns the exit code.
    pub(super) async fn run(mut self, input: mpsc::Receiver<Input>, mut interrupts: mpsc::Receiver<()>) -> Result<u8> {
        let mut input = Some(input);
        let mut link = self.attach().await?;
        loop {
            let since = Instant::now();
            let end = Box::pin(self.converse(&mut link, &mut input, &mut interrupts)).await?;
            drop(link);
            if since.elapsed() >= GOOD {
                self.tries = 0;
            }
            link = match end {
                End::Left(code) => return Ok(code),
                End::Switched => self.attach().await?,
                End::Lost(resume) => {
                    tokio::select! {
                        link = self.come_back(resume) => link?,
                        Some(()) = interrupts.recv() => return Ok(INTERRUPTED),
                    }
                }
            };
        }
    }

    async fn attach(&mut self) -> Result<Link> {
        let opening = self.conversation.opening();
        Link::open(self.client.core()?, opening).await.map_err(|status| self.client.explain(&status))
    }

    /// Tries until the stream is back, with pauses that grow and differ, so that not all clients come at once.
    async fn come_back(&mut self, resume: Resume) -> Result<Link> {
        let mut least = resume.after;
        let mut told = false;
        loop {
            ensure!(self.tries < MAX_TRIES, "the connection broke and did not come back");
            self.tries += 1;
            let ceiling = (FIRST_PAUSE * 2_u32.saturating_pow(self.tries - 1).min(1_000)).min(LONGEST_PAUSE);
            let pause = Duration::from_millis(rand::random_range(0..=u64::try_from(ceiling.as_millis())?));
            sleep(least.min(LONGEST_PAUSE) + pause).await;
            least = Duration::ZERO;
            let opening = self.conversation.opening();
            match Link::open(self.client.core()?, opening).await {
                Ok(link) => {
                    if told {
                        self.view.notice("the connection is back")?;
                    }
                    return Ok(link);
                }
                Err(status) if !self.may_resume(&status) => return Err(self.client.explain(&status)),
                Err(_) if told || self.manner == Manner::Program => {}
                // Most breaks are over before anybody could read this.
                Err(_) => {
                    told = true;
                    self.view.notice("the connection broke; coming back…")?;
                }
            }
        }
    }

    /// Whether the end of a stream is one to come back from.
    fn may_resume(&mut self, status: &Status) -> bool {
        let announced = self.conversation.take_close_code();
        let code = Failure::from(status).code;
        if announced == close::TOKEN_EXPIRED || code == ErrorCode::Unauthenticated {
            // Only once in a row: a server that refuses a fresh token refuses the next one, too.
            return self.client.renews_tokens() && self.tries == 0;
        }
        if announced == 0 { code.retryable() } else { close::may_resume(announced) }
    }

    /// One stream, until it ends.
    async fn converse(
        &mut self,
        link: &mut Link,
        input: &mut Option<mpsc::Receiver<Input>>,
        interrupts: &mut mpsc::Receiver<()>,
    ) -> Result<End> {
        let mut silent = Instant::now() + SILENCE;
        loop {
            if let Some(resume) = self.conversation.take_resume() {
                return Ok(End::Lost(resume));
            }
            self.failed |= self.conversation.take_outcomes().contains(&Outcome::Failed);
            let takes_input = self.takes_input();
            if takes_input && input.is_none() {
                let _ = link.send(&request("detach", Frame::Detach(chat_request::Detach {})));
                return Ok(End::Left(if self.failed { FAILED } else { DONE }));
            }
            if takes_input && self.conversation.is_idle() && !self.conversation.reply_runs() {
                self.view.prompt()?;
            }
            tokio::select! {
                event = link.next() => match event {
                    Ok(Some(response)) => {
                        silent = Instant::now() + SILENCE;
                        self.event(link, &response).await?;
                    }
                    Ok(None) => return Ok(End::Lost(Resume { after: Duration::ZERO })),
                    Err(status) if self.may_resume(&status) => {
                        let after = Failure::from(&status).retry_after.unwrap_or_default();
                        return Ok(End::Lost(Resume { after }));
                    }
                    Err(status) => return Err(self.client.explain(&status)),
                },
                line = next(input), if takes_input => match line {
                    Some(line) => if let Some(end) = self.line(link, line).await? { return Ok(end) },
                    None => *input = None,
                },
                Some(()) = interrupts.recv() => if let Some(end) = self.interrupt(link)? { return Ok(end) },
                () = sleep_until(silent) => return Ok(End::Lost(Resume { after: Duration::ZERO })),
            }
        }
    }

    /// A person may write ahead; a program's messages wait for each other. Nothing is sent before the session is there.
    fn takes_input(&self) -> bool {
        let open = self.conversation.is_open();
        open && (self.manner == Manner::Person || self.conversation.is_idle())
    }

    async fn event(&mut self, link: &Link, response: &ChatResponse) -> Result<()> {
        if self.view.style() == Style::Events {
            self.view.raw(&json::to_string(response))?;
        }
        let Some(event) = &response.event else { return Ok(()) };
        let arrived = !self.conversation.is_open();
        for shown in self.conversation.apply(event) {
            self.view.show(&shown)?;
        }
        if let Some(refusal) = self.conversation.take_refusal() {
            bail!("{}", plain_line(&refusal));
        }
        if let Event::Opened(opened) = event {
            self.opened(opened, arrived).await?;
        }
        if let Event::TokenExpiring(_) = event {
            self.token_expires(link)?;
        }
        Ok(())
    }

    fn token_expires(&mut self, link: &Link) -> Result<()> {
        if !self.client.renews_tokens() {
            return Ok(self.view.notice("the token expires soon, and the conversation ends with it")?);
        }
        self.refreshes += 1;
        let frame = Frame::RefreshToken(chat_request::RefreshToken { token: self.client.token()? });
        // Without it the stream ends, and the next one begins with a fresh token.
        let _ = link.send(&request(&format!("refresh-{}", self.refreshes), frame));
        Ok(())
    }

    /// What the stream does not bring: the messages from before, for a person, and those of a gap.
    async fn opened(&mut self, opened: &Opened, arrived: bool) -> Result<()> {
        self.view.set_you(opened.you.as_ref().map_or("", |you| &you.user_id));
        let session_id = self.conversation.session_id().to_owned();
        if let Some(gap) = self.conversation.take_gap() {
            let messages = self.client.messages_after(&session_id, gap.after_seq).await?;
            self.fill(&messages, gap.head)?;
        } else if arrived && self.view.style() == Style::Terminal {
            let hint = format!("session {session_id} · {} · /help", self.conversation.model());
            self.view.notice(&hint)?;
            if opened.head > 0 {
                let page = self.client.last_messages(&session_id, HISTORY).await?;
                if !page.next_page_token.is_empty() {
                    self.view.notice(&format!("… earlier messages: chatbox sessions show {session_id}"))?;
                }
                self.fill(&page.messages, opened.head)?;
            }
        }
        Ok(())
    }

    fn fill(&mut self, messages: &[chatbox_proto::v1::Message], head: u64) -> Result<()> {
        for shown in self.conversation.fill(messages, head) {
            self.view.show(&shown)?;
        }
        Ok(())
    }

    async fn line(&mut self, link: &Link, line: Input) -> Result<Option<End>> {
        self.view.entered();
        let text = match line {
            Input::Line(text) => text,
            Input::Unusable(why) => {
                self.failed = true;
                self.view.notice(why)?;
                return Ok(None);
            }
        };
        let command = match self.manner {
            Manner::Person => Command::parse(&text),
            Manner::Program if text.trim().is_empty() => Command::Nothing,
            Manner::Program => Command::Say(text),
        };
        match command {
            Command::Say(_) if self.conversation.is_ended() && self.manner == Manner::Person => {
                self.view.notice("the session has ended: /new begins another")?;
            }
            Command::Say(text) => {
                let frame = self.conversation.send(text);
                // A stream that takes nothing ends soon; the message is sent again on the next one.
                let _ = link.send(&frame);
            }
            Command::Nothing => {}
            Command::Quit => return Ok(Some(End::Left(DONE))),
            Command::End => {
                let _ = link.send(&request("end", Frame::EndSession(chat_request::EndSession {})));
            }
            Command::New(model) => match self.new_session(&model).await {
                Ok(()) => return Ok(Some(End::Switched)),
                Err(error) => self.view.notice(&format!("{error:#}"))?,
            },
            Command::Models => match self.client.models().await {
                Ok(models) => {
                    for model in &models.models {
                        let mark = if model.id == self.conversation.model() { "*" } else { " " };
                        self.view.notice(&format!("{mark} {}", model.id))?;
                    }
                }
                Err(error) => self.view.notice(&format!("{error:#}"))?,
            },
            Command::Help => self.view.notice(HELP)?,
            Command::Unknown(line) => self.view.notice(&format!("no such command: {line}; /help lists them"))?,
        }
        Ok(None)
    }

    /// Makes a session and continues there. Where only one may be active, the present one ends.
    async fn new_session(&mut self, model: &str) -> Result<()> {
        let session = match self.client.create_session(model).await? {
            Some(session) => session,
            None => {
                self.client.end_session(self.conversation.session_id()).await?;
                let made = self.client.create_session(model).await?;
                made.ok_or_else(|| {
                    anyhow!("you have as many active sessions as allowed: end one with `chatbox sessions end`")
                })?
            }
        };
        self.conversation = Conversation::new(&session.session_id, "");
        Ok(())
    }

    fn interrupt(&mut self, link: &Link) -> Result<Option<End>> {
        let now = Instant::now();
        let again = self.last_interrupt.replace(now).is_some_and(|last| now - last < TWICE);
        let stop = self.conversation.stop();
        if again || (stop.is_none() && self.manner == Manner::Program) {
            return Ok(Some(End::Left(INTERRUPTED)));
        }
        match stop {
            Some(stop) => {
                let _ = link.send(&stop);
                self.view.notice("stopping the reply; Ctrl-C again leaves")?;
            }
            None => self.view.notice("Ctrl-C again leaves")?,
        }
        Ok(None)
    }
}

async fn next(input: &mut Option<mpsc::Receiver<Input>>) -> Option<Input> {
    match input {
        Some(input) => input.recv().await,
        None => None,
    }
}
