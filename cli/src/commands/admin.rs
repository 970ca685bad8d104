//! `chatbox admin`: operating a running instance.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use chatbox_proto::{
    json,
    settings::Vars,
    v1::{
        ChatAdminEndSessionRequest, ChatAdminGetSessionRequest, ChatAdminGetSessionResponse, HelpState,
        ListAuditRequest, ReassignRequest, ReleaseRequest, RotateKeysResponse, Session, TakeOverRequest,
        WatchSessionsRequest, watch_sessions_response::Event,
    },
};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    chat::{self, Conversation, view},
    sessions::{status, time},
};
use crate::{
    args::{AdminAction, AdminArgs},
    client::{Client, request},
    terminal::{self, Table},
};

/// Messages that are shown of a session.
const HISTORY: i32 = 20;
/// The largest page of the audit trail.
const PAGE: u32 = 1_000;

pub(crate) async fn run(args: AdminArgs, vars: Vars) -> Result<ExitCode> {
    let client = Client::admin(&args.server, &vars)?;
    let as_json = args.json;
    match args.action {
        AdminAction::Queue { reason, watch } => queue(&client, reason, watch, as_json).await,
        AdminAction::Show { id, reason } => {
            show(&client.explained(inspect(&client, &id, &reason).await)?, as_json)?;
            Ok(ExitCode::SUCCESS)
        }
        AdminAction::Takeover { id, reason, no_chat } => take_over(client, &id, &reason, (no_chat, as_json)).await,
        AdminAction::Release { id, reason } => {
            let request_id = name_of_call();
            let message = ReleaseRequest { session_id: id, request_id, reason };
            let answer = client.explained(client.team()?.release(request(message)).await)?;
            done("released", answer.session, as_json)
        }
        AdminAction::Reassign { id, to, reason } => {
            let request_id = name_of_call();
            let message = ReassignRequest { session_id: id, admin_id: to, request_id, reason };
            let answer = client.explained(client.team()?.reassign(request(message)).await)?;
            done("passed on", answer.session, as_json)
        }
        AdminAction::End { id, reason } => {
            let request_id = name_of_call();
            let message = ChatAdminEndSessionRequest { session_id: id, request_id, reason };
            let answer = client.explained(client.team()?.end_session(request(message)).await)?;
            done("ended", answer.session, as_json)
        }
        AdminAction::Audit { reason, filter, limit } => audit(&client, reason, filter, (limit, as_json)).await,
        AdminAction::RotateKeys { reason } => rotate_keys(&client, &reason, args.json).await,
    }
}

/// A call that is made once by a person and may be repeated by what is in between.
fn name_of_call() -> String {
    chatbox_proto::ids::MessageId::generate().to_string()
}

fn done(what: &str, session: Option<Session>, as_json: bool) -> Result<ExitCode> {
    let session = session.context("the server named no session")?;
    let text = format!("{what} {}", session.session_id);
    terminal::line(&if as_json { json::to_string(&session) } else { text })?;
    Ok(ExitCode::SUCCESS)
}

async fn inspect(
    client: &Client,
    id: &str,
    reason: &str,
) -> Result<tonic::Response<ChatAdminGetSessionResponse>, tonic::Status> {
    let message = ChatAdminGetSessionRequest {
        session_id: id.to_owned(),
        page_size: HISTORY,
        reason: reason.to_owned(),
        ..ChatAdminGetSessionRequest::default()
    };
    let mut team = client.team().map_err(|error| tonic::Status::unauthenticated(error.to_string()))?;
    team.get_session(request(message)).await
}

fn show(found: &ChatAdminGetSessionResponse, as_json: bool) -> Result<()> {
    if as_json {
        return Ok(terminal::line(&json::to_string(found))?);
    }
    let session = found.session.as_ref().context("the server named no session")?;
    terminal::line(&table(std::slice::from_ref(session)))?;
    // The admin is the other side: nobody here is `you`.
    found.messages.iter().try_for_each(|message| terminal::line(&view::message(message, "")))?;
    Ok(())
}

fn table(sessions: &[Session]) -> String {
    let mut table = Table::new(["SESSION", "PLACE", "HELP", "HELD BY", "SINCE", "OWNER", "STATUS", "NAME"]);
    for session in sessions {
        let help = session.help.unwrap_or_default();
        let place = if help.position == 0 { String::new() } else { help.position.to_string() };
        let state = match help.state() {
            HelpState::Requested => "waiting",
            HelpState::Assigned => "held",
            HelpState::Released => "released",
            HelpState::Unspecified => "",
        };
        let holder = session.held_by.as_ref().map_or("", |admin| admin.user_id.as_str());
        let since = time(help.request_time.as_ref());
        let row = [&session.session_id, &place, state, holder, &since, &session.owner, status(session), &session.name];
        table.row(row);
    }
    table.text()
}

/// The queue as it is; with `watch`, every change of it from then on.
async fn queue(client: &Client, reason: String, watch: bool, as_json: bool) -> Result<ExitCode> {
    let message = WatchSessionsRequest { reason, ..WatchSessionsRequest::default() };
    // Without a time limit: it may be watched for hours.
    let mut events = client.explained(client.team()?.watch_sessions(message).await)?;
    let (mut sessions, mut caught_up) = (Vec::new(), false);
    while let Some(event) = events.message().await.map_err(|status| client.explain(&status))? {
        match event.event {
            Some(Event::Session(session)) if as_json => terminal::line(&json::to_string(&session))?,
            Some(Event::Session(session)) if caught_up => terminal::line(&table(&[session]))?,
            Some(Event::Session(session)) => sessions.push(session),
            Some(Event::CaughtUp(_)) => {
                caught_up = true;
                sessions.sort_by_key(|session: &Session| {
                    let place = session.help.as_ref().map_or(0, |help| help.position);
                    if place == 0 { u32::MAX } else { place }
                });
                if !as_json {
                    let nobody = "nobody waits, and nobody is held".to_owned();
                    terminal::line(&if sessions.is_empty() { nobody } else { table(&sessions) })?;
                }
                if !watch {
                    break;
                }
            }
            Some(Event::Heartbeat(_)) | None => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn take_over(client: Client, id: &str, reason: &str, (no_chat, as_json): (bool, bool)) -> Result<ExitCode> {
    let message = TakeOverRequest { session_id: id.to_owned(), request_id: name_of_call(), reason: reason.to_owned() };
    let taken = client.explained(client.team()?.take_over(request(message)).await)?;
    if no_chat {
        return done("taken over", taken.session, as_json);
    }
    let found = client.explained(inspect(&client, id, reason).await)?;
    show(&found, as_json)?;
    let head = found.session.as_ref().map_or(0, |session| session.head);
    let code = chat::converse(client, Conversation::held(id, head, reason), as_json).await;
    if !as_json {
        terminal::line(&format!("you may still hold it: chatbox admin release {id} --reason …"))?;
    }
    code
}

async fn audit(client: &Client, reason: String, filter: String, (limit, as_json): (u32, bool)) -> Result<ExitCode> {
    let mut table = Table::new(["NUMBER", "TIME", "ACTOR", "ACTION", "SESSION", "REASON"]);
    let (mut left, mut page_token) = (limit, String::new());
    loop {
        let page_size = i32::try_from(left.min(PAGE)).unwrap_or(i32::MAX);
        let (filter, reason) = (filter.clone(), reason.clone());
        let message = ListAuditRequest { page_size, page_token, filter, reason };
        let page = client.explained(client.team()?.list_audit(request(message)).await)?;
        left = left.saturating_sub(u32::try_from(page.records.len()).unwrap_or(u32::MAX));
        for record in &page.records {
            if as_json {
                terminal::line(&json::to_string(record))?;
                continue;
            }
            let (seq, at) = (record.seq.to_string(), time(record.create_time.as_ref()));
            table.row([&seq, &at, &record.actor, &record.action, &record.session_id, &record.reason]);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() || left == 0 {
            break;
        }
    }
    if !as_json {
        terminal::line(&table.text())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn rotate_keys(client: &Client, reason: &str, as_json: bool) -> Result<ExitCode> {
    let mut answers = client.rotate_keys(reason).await?;
    // Draws on standard error, and only on a terminal.
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("{bar:30} {pos} of {len} keys  {eta}")?);
    let mut last = RotateKeysResponse::default();
    while let Some(now) = answers.message().await.map_err(|status| client.explain(&status))? {
        if as_json {
            terminal::line(&json::to_string(&now))?;
        }
        bar.set_length(now.total);
        bar.set_position(now.rewrapped);
        last = now;
    }
    bar.finish_and_clear();
    if !as_json {
        terminal::line(&format!("{} of {} data keys wrapped anew", last.rewrapped, last.total))?;
    }
    if !last.complete {
        bail!(
            "not complete: a live core still writes under another key; make the new key the primary one everywhere, then run this again"
        );
    }
    if !as_json {
        terminal::line("complete: the old key can be taken out of the ring")?;
    }
    Ok(ExitCode::SUCCESS)
}
