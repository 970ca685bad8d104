//! `chatbox admin`: operating a running instance.

use std::process::ExitCode;

use anyhow::{Result, bail};
use chatbox_proto::{json, settings::Vars, v1::RotateKeysResponse};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    args::{AdminAction, AdminArgs},
    client::Client,
    terminal,
};

pub(crate) async fn run(args: AdminArgs, vars: Vars) -> Result<ExitCode> {
    let client = Client::admin(&args.server, &vars)?;
    match args.action {
        AdminAction::RotateKeys { reason } => rotate_keys(&client, &reason, args.json).await,
    }
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
