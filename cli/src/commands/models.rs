//! `chatbox models`: what can answer.

use std::process::ExitCode;

use anyhow::Result;
use chatbox_proto::{json, settings::Vars};

use crate::{
    args::ModelsArgs,
    client::Client,
    terminal::{self, Table},
};

pub(crate) async fn run(args: ModelsArgs, vars: Vars) -> Result<ExitCode> {
    let answer = Client::new(&args.server, &vars)?.models().await?;
    if args.json {
        terminal::line(&json::to_string(&answer))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["MODEL", "NAME", "CONTEXT", "OUTPUT", ""]);
    for model in &answer.models {
        let remark = if model.id == answer.default_model { "default" } else { "" };
        let (context, output) = (model.context_tokens.to_string(), model.max_output_tokens.to_string());
        table.row([&model.id, &model.name, &context, &output, remark]);
    }
    terminal::line(&table.text())?;
    Ok(ExitCode::SUCCESS)
}
