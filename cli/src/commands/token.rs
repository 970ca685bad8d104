//! `chatbox token`: a token for development.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use chatbox_proto::{settings::Vars, token::Role};
use serde_json::json;

use crate::{
    args::TokenArgs,
    data_dir::DataDir,
    terminal,
    token::{Minter, Subject},
};

pub(crate) fn run(args: &TokenArgs, vars: &Vars) -> Result<ExitCode> {
    let minter = match (&args.config, &args.secret_env) {
        (Some(file), _) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("--config {}", file.display()))?;
            Minter::for_config(&text, vars)?
        }
        (None, Some(name)) => {
            let secret = vars.get(name).filter(|secret| !secret.is_empty());
            Minter::for_secret(secret.with_context(|| format!("--secret-env {name}: it is not set"))?, vars)?
        }
        (None, None) => Minter::for_data_dir(&DataDir::open(&args.data.data)?, vars)?,
    };
    let subject = Subject {
        user_id: args.sub.clone(),
        display_name: args.name.clone(),
        roles: args.roles.iter().filter_map(|role| Role::from_name(role)).collect(),
        scopes: args.scopes.clone(),
        lifetime: args.expires,
    };
    let token = minter.mint(&subject)?;
    if args.json {
        let line = json!({
            "token": token,
            "sub": args.sub,
            "roles": args.roles,
            "scopes": args.scopes,
            "expiresInSeconds": args.expires.as_secs(),
        });
        terminal::line(&line.to_string())?;
    } else {
        terminal::line(&token)?;
    }
    Ok(ExitCode::SUCCESS)
}
