//! `chatbox chat`: a conversation in the terminal, over gRPC.
//!
//! [`conversation`] knows what the events mean, [`view`] how they look, [`link`] is one stream, and [`talk`] holds a
//! conversation over as many streams as it takes.

mod conversation;
mod input;
mod link;
mod outbox;
mod running_reply;
mod talk;
pub(crate) mod view;

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use anyhow::Result;
use chatbox_proto::settings::Vars;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};

pub(crate) use self::conversation::Conversation;
use self::{
    talk::{Manner, Talk},
    view::{Style, View},
};
use crate::{args::ChatArgs, client::Client};

pub(crate) async fn run(args: ChatArgs, vars: Vars) -> Result<ExitCode> {
    let client = Client::new(&args.server, &vars)?;
    let conversation = Conversation::new(args.session.as_deref().unwrap_or_default(), &args.model);
    converse(client, conversation, args.json).await
}

/// Holds a conversation between standard input and standard output.
pub(crate) async fn converse(client: Client, conversation: Conversation, as_json: bool) -> Result<ExitCode> {
    let person = io::stdin().is_terminal();
    let style = match (as_json, person) {
        (true, _) => Style::Events,
        (false, true) => Style::Terminal,
        (false, false) => Style::Replies,
    };
    let view = View::new(style, Box::new(anstream::stdout()), Box::new(anstream::stderr()));
    let manner = if person { Manner::Person } else { Manner::Program };

    // Ends with this function.
    let mut signals = JoinSet::new();
    let (interrupt, interrupts) = mpsc::channel(2);
    let mut interrupted = signal(SignalKind::interrupt())?;
    signals.spawn(async move {
        // More of them than anybody has taken mean nothing more.
        while interrupted.recv().await.is_some() {
            let _ = interrupt.try_send(());
        }
    });
    let code = Talk::new(client, conversation, view, manner).run(input::standard_input()?, interrupts).await?;
    Ok(ExitCode::from(code))
}

/// A conversation without a terminal.
#[cfg(test)]
pub(crate) mod testing {
    use std::io::Write;

    use anyhow::Result;
    use tokio::sync::mpsc;

    use super::{Conversation, Manner, Talk, View};
    pub(crate) use super::{input::Input, view::Style};
    use crate::client::Client;

    /// Runs a conversation between these ends, with the active session or a new one.
    pub(crate) async fn chat(
        client: Client,
        style: Style,
        (out, err): (Box<dyn Write>, Box<dyn Write>),
        (input, interrupts): (mpsc::Receiver<Input>, mpsc::Receiver<()>),
    ) -> Result<u8> {
        let manner = if style == Style::Terminal { Manner::Person } else { Manner::Program };
        Talk::new(client, Conversation::new("", ""), View::new(style, out, err), manner).run(input, interrupts).await
    }
}

#[cfg(test)]
mod tests;
