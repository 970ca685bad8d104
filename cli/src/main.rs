//! `chatbox`: the person's tool. It runs the product on a laptop, talks to it in the terminal, and makes tokens for
//! development.

mod args;
mod client;
mod commands;
mod data_dir;
mod local_models;
mod plain_text;
mod terminal;
mod token;

use std::process::ExitCode;

use chatbox_proto::settings::{Mistakes, Vars};
use clap::Parser as _;

use crate::args::{Args, Command};

/// What `sysexits.h` calls a usage error: starting again does not help.
const BAD_SETTING: u8 = 64;

fn main() -> ExitCode {
    let args = Args::parse();
    // One provider for the whole process; it fails only when there is one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let vars = environment();
    let result = match args.command {
        Command::Dev(args) => commands::dev::run(&args, vars),
        Command::Token(args) => commands::token::run(&args, &vars),
        Command::Chat(args) => wait(commands::chat::run(args, vars)),
        Command::Models(args) => wait(commands::models::run(args, vars)),
        Command::Sessions(args) => wait(commands::sessions::run(args, vars)),
        Command::Admin(args) => wait(commands::admin::run(args, vars)),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::complain(&error);
            if error.is::<Mistakes>() { ExitCode::from(BAD_SETTING) } else { ExitCode::FAILURE }
        }
    }
}

/// Runs a client's work to its end. What it left behind is not waited for.
fn wait(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(Box::pin(work));
    runtime.shutdown_background();
    result
}

/// The one place where the environment is read.
fn environment() -> Vars {
    let readable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(readable).collect()
}

/// Whoever reads our output has seen enough, `head` for instance.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
