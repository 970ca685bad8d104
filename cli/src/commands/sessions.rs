//! `chatbox sessions`: the caller's sessions.

use std::process::ExitCode;

use anyhow::Result;
use chatbox_proto::{
    json,
    settings::Vars,
    v1::{Session, SessionStatus},
};

use super::chat::view;
use crate::{
    args::{SessionsAction, SessionsArgs},
    client::Client,
    terminal::{self, Table},
};

const DEFAULT_LIMIT: u32 = 50;

pub(crate) async fn run(args: SessionsArgs, vars: Vars) -> Result<ExitCode> {
    let client = Client::new(&args.server, &vars)?;
    match args.action.unwrap_or(SessionsAction::List { limit: DEFAULT_LIMIT }) {
        SessionsAction::List { limit } => list(&client.sessions(limit as usize).await?, args.json)?,
        SessionsAction::Show { id } => show(&client, &id, args.json).await?,
        SessionsAction::End { id } => {
            let session = client.end_session(&id).await?;
            let ended = format!("ended {}", session.session_id);
            terminal::line(&if args.json { json::to_string(&session) } else { ended })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(sessions: &[Session], as_json: bool) -> Result<()> {
    if as_json {
        return Ok(sessions.iter().try_for_each(|session| terminal::line(&json::to_string(session)))?);
    }
    if sessions.is_empty() {
        return Ok(terminal::line("no sessions yet: `chatbox chat` begins one")?);
    }
    let mut table = Table::new(["SESSION", "STATUS", "MESSAGES", "MODEL", "LAST ACTIVITY", "NAME"]);
    for session in sessions {
        let messages = session.message_count.to_string();
        let last = time(session.last_activity_time.as_ref());
        table.row([&session.session_id, status(session), &messages, &session.model, &last, &session.name]);
    }
    Ok(terminal::line(&table.text())?)
}

async fn show(client: &Client, session_id: &str, as_json: bool) -> Result<()> {
    let session = client.session(session_id).await?;
    let messages = client.messages_after(session_id, 0).await?;
    if as_json {
        return Ok(messages.iter().try_for_each(|message| terminal::line(&json::to_string(message)))?);
    }
    let mut table = Table::new(["SESSION", "STATUS", "MODEL", "CREATED"]);
    table.row([&session.session_id, status(&session), &session.model, &time(session.create_time.as_ref())]);
    terminal::line(&table.text())?;
    for message in &messages {
        terminal::line(&view::message(message, &session.owner))?;
    }
    Ok(())
}

pub(super) fn status(session: &Session) -> &'static str {
    match session.status() {
        SessionStatus::Active => "active",
        SessionStatus::Ended => "ended",
        SessionStatus::Unspecified => "",
    }
}

/// To the second, in UTC.
pub(super) fn time(time: Option<&chatbox_proto::time::Timestamp>) -> String {
    let text = time.map(json::to_string).unwrap_or_default();
    text.trim_matches('"').get(..19).map(|seconds| seconds.replace('T', " ")).unwrap_or_default()
}
