//! The command line.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, time::Duration};

use chatbox_proto::{
    settings,
    token::{Role, Secret},
};
use clap::{ArgAction, Parser, Subcommand, builder::PossibleValuesParser};

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  it failed, and one line says why
    2  the command line is wrong
   64  a setting is wrong
  130  a conversation was left by Ctrl-C";

/// Chatbox on this machine: run it, talk to it, make tokens for it.
#[derive(Debug, Parser)]
#[command(name = "chatbox", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Dev(DevArgs),
    Token(TokenArgs),
    Chat(ChatArgs),
    Models(ModelsArgs),
    Sessions(SessionsArgs),
    Admin(AdminArgs),
}

/// Run the whole product in one process, and print a link to open.
///
/// Core and edge run on an embedded database in the data folder. Models of an Ollama or llama.cpp server on this machine
/// are offered beside the built-in demo model. Every setting of the two binaries is also a variable here: those of core
/// begin with `CHATBOX_CORE_`, those of the edge with `CHATBOX_EDGE_`, and both read `CHATBOX_`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  chatbox dev
  chatbox dev --http 127.0.0.1:3000 --grpc 127.0.0.1:3001 --data /tmp/try
  chatbox dev --json | jq -r .url
  CHATBOX_PROVIDERS_OPENAI_API_KEY=sk-… CHATBOX_MODELS='[{id = \"gpt-4.1-mini\"}]' chatbox dev

Ctrl-C or SIGTERM drains and stops; a second one stops at once.")]
pub(crate) struct DevArgs {
    /// Where browsers connect to [default: 127.0.0.1:8080]; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<SocketAddr>,
    /// Where gRPC clients connect to [default: 127.0.0.1:50051]; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    pub(crate) grpc: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Do not look for model servers on this machine.
    #[arg(long)]
    pub(crate) no_local_models: bool,
    /// Log more: -v what happens, -vv everything of ours. `CHATBOX_LOG_FILTER` says it exactly.
    #[arg(short, long, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print one line of JSON with addresses, link and token instead of the banner.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where an instance keeps its things.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DataArgs {
    /// Folder of the instance: database, keys, token secret. `chatbox dev` and `chatbox token` make it.
    #[arg(long, global = true, value_name = "DIR", default_value = ".chatbox")]
    pub(crate) data: PathBuf,
}

/// Print a token that an instance accepts.
///
/// For the instance of `chatbox dev` in a data folder, or for a core that is configured with HS256. Issuer and audience
/// are taken from the settings. Whoever has the token is the user it names.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  chatbox token --sub alice
  chatbox token --data /tmp/try --sub root --role admin --expires 15m
  chatbox token --sub indexer --role service --scope generate
  chatbox token --config core.toml --sub alice
  grpcurl -plaintext -H \"authorization: Bearer $(chatbox token --sub alice)\" \\
    127.0.0.1:50051 chatbox.v1.ChatCore/ListModels")]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Take secret, issuer and audience from core's TOML file instead.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "secret_env"])]
    pub(crate) config: Option<PathBuf>,
    /// Take the secret from this variable instead.
    #[arg(long, value_name = "NAME", conflicts_with = "data")]
    pub(crate) secret_env: Option<String>,
    /// The user: 1 to 255 bytes.
    #[arg(long, value_name = "USER")]
    pub(crate) sub: String,
    /// What the user may be; may be given several times.
    #[arg(long = "role", value_name = "ROLE", default_value = "user", value_parser = roles())]
    pub(crate) roles: Vec<String>,
    /// Name to show to others.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) name: String,
    /// What a service may do; may be given several times.
    #[arg(long = "scope", value_name = "SCOPE")]
    pub(crate) scopes: Vec<String>,
    /// How long it is valid, like 15m or 12h.
    #[arg(long, value_name = "TIME", default_value = "12h", value_parser = lifetime)]
    pub(crate) expires: Duration,
    /// Print one line of JSON instead of the bare token.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which server, and as whom.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServerArgs {
    /// Where core's gRPC is; https:// for TLS.
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:50051")]
    pub(crate) grpc: String,
    /// PEM file of the authority that signed the server's certificate, instead of those of the system.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// A bearer token, instead of one made with the secret in the data folder. Others on this machine see command lines:
    /// the variable is the better place.
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "CHATBOX_TOKEN",
        hide_env_values = true,
        value_parser = secret
    )]
    pub(crate) token: Option<Secret>,
    /// The user to be, with a data folder. The printed link of `chatbox dev` is for `you`.
    #[arg(long, global = true, value_name = "USER", default_value = "you")]
    pub(crate) user: String,
}

/// Talk to a running instance in the terminal.
///
/// Replies stream as they are generated. When the connection breaks the conversation is resumed where it stopped. With a
/// terminal, Ctrl-C stops the running reply, and twice leaves; /help lists the commands. Without one, every line of
/// standard input is a message, sent when the reply before it is complete; the replies alone go to standard output.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  chatbox chat
  chatbox chat --data /tmp/try --grpc http://127.0.0.1:3001
  echo 'What is a monad?' | chatbox chat
  printf 'one\\ntwo\\n' | chatbox chat --json | jq -c .replyDelta.text

Exit codes:
    0  left, or all messages were answered
    1  it failed, or a message got no complete reply
  130  left by Ctrl-C")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Continue this session [default: the active one, or a new one].
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<String>,
    /// Model of the session, if a new one is made.
    #[arg(long, value_name = "MODEL", default_value = "", hide_default_value = true)]
    pub(crate) model: String,
    /// Print every event as one line of canonical protobuf JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// List the models that can answer.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelsArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print the answer as one line of canonical protobuf JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// List, show and end your sessions.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  chatbox sessions
  chatbox sessions show 0190f3c2-7b1e-7c3a-9d52-5b8e2f6a1c04
  chatbox sessions end 0190f3c2-7b1e-7c3a-9d52-5b8e2f6a1c04
  chatbox sessions list --json | jq -r .sessionId")]
pub(crate) struct SessionsArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print every session or message as one line of canonical protobuf JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) action: Option<SessionsAction>,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum SessionsAction {
    /// List them, last activity first. The default.
    List {
        /// At most this many.
        #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Show a session with its messages.
    Show {
        /// Its id.
        id: String,
    },
    /// End a session; its history stays readable.
    End {
        /// Its id.
        id: String,
    },
}

/// Operate a running instance. Needs a token with the role `chat_admin` or `admin`; with a data folder one is made.
///
/// Everything is written into the audit trail before it is done, with the reason that you give.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  chatbox admin --user ann queue --reason 'my shift'
  chatbox admin --user ann takeover 0190f3c2-7b1e-7c3a-9d52-5b8e2f6a1c04 --reason 'asked for a person'
  chatbox admin --user ann release 0190f3c2-7b1e-7c3a-9d52-5b8e2f6a1c04 --reason 'all is clear'
  chatbox admin audit --reason 'monthly review' --filter 'actor = \"ann\"' --json | jq .reason
  chatbox admin rotate-keys --reason 'yearly rotation'
  CHATBOX_TOKEN=… chatbox admin --grpc https://core.example.com:50051 rotate-keys --reason 'k1 may have leaked'")]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print every answer as one line of canonical protobuf JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) action: AdminAction,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum AdminAction {
    /// Who waits for a person and who is held by one, those that wait the longest first.
    Queue {
        /// Why; kept in the audit trail, 1 to 500 bytes.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Go on and print every change, until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Show any session with its newest messages.
    Show {
        /// The session.
        id: String,
        /// Why; kept in the audit trail, 1 to 500 bytes.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Take a session over and talk to its visitor: lines of standard input are your messages. The assistant is silent until
    /// the session is released, which leaving does not do.
    Takeover {
        /// The session.
        id: String,
        /// Why; kept in the audit trail, 1 to 500 bytes.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Take it over and leave it at that: it goes back to the queue unless you come to talk in time.
        #[arg(long)]
        no_chat: bool,
    },
    /// Give a session back to the assistant, which starts no reply before the next message of the visitor.
    Release {
        /// The session.
        id: String,
        /// Why; kept in the audit trail, 1 to 500 bytes.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Pass a session that you hold to another admin.
    Reassign {
        /// The session.
        id: String,
        /// The other admin's user id.
        #[arg(long, value_name = "USER")]
        to: String,
        /// Why; kept in the audit trail, 1 to 500 bytes.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// End any session; its history stays readable.
    End {
        /// The session.
        id: String,
        /// Why; kept in the audit trail, 1 to 500 bytes.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// The audit trail, newest first.
    Audit {
        /// Why; kept in the audit trail, 1 to 500 bytes.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Like `actor = "ann" AND create_time >= "2026-01-01T00:00:00Z"`; also over `action` and `session_id`.
        #[arg(long, value_name = "FILTER", default_value = "", hide_default_value = true)]
        filter: String,
        /// At most this many.
        #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Wrap the data keys of all sessions anew under the primary key of the ring, while they are used. May be interrupted
    /// and begun again. First give every core a ring with the new key, then make it the primary one everywhere.
    RotateKeys {
        /// Why; kept in the audit trail, 1 to 500 bytes.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

fn roles() -> PossibleValuesParser {
    PossibleValuesParser::new(Role::ALL.map(Role::name))
}

fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text.trim()))
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = settings::duration::parse(text)?;
    if lifetime < Duration::from_secs(1) {
        return Err("must be at least 1s".to_owned());
    }
    Ok(lifetime)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Args::try_parse_from(line.split(' ')).map(|args| args.command)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn dev_needs_nothing() {
        let Ok(Command::Dev(args)) = parse("chatbox dev") else { panic!("not dev") };
        assert_eq!((args.http, args.grpc, args.data.data), (None, None, PathBuf::from(".chatbox")));
    }

    #[test]
    fn a_token_is_for_a_user_for_twelve_hours_unless_told_otherwise() {
        let Ok(Command::Token(args)) = parse("chatbox token --sub alice") else { panic!("not token") };
        assert_eq!((args.roles, args.expires), (vec!["user".to_owned()], Duration::from_secs(12 * 3600)));
        let line = "chatbox token --sub s --role service --role user --scope a --scope b --expires 90s";
        let Ok(Command::Token(args)) = parse(line) else { panic!("not token") };
        assert_eq!((args.roles.len(), args.scopes.len(), args.expires.as_secs()), (2, 2, 90));
    }

    #[test]
    fn the_server_is_named_before_or_after_what_to_do_with_a_session() {
        for line in [
            "chatbox sessions --grpc http://h:1 --user bob end x",
            "chatbox sessions end x --grpc http://h:1 --user bob",
        ] {
            let Ok(Command::Sessions(args)) = parse(line) else { panic!("{line}") };
            assert_eq!((args.server.grpc.as_str(), args.server.user.as_str()), ("http://h:1", "bob"), "{line}");
        }
    }

    #[test]
    fn nothing_is_done_to_a_session_without_a_reason() {
        for line in ["queue", "show s", "takeover s", "release s", "reassign s --to bob", "end s", "audit"] {
            assert!(parse(&format!("chatbox admin {line}")).is_err(), "{line}");
            assert!(parse(&format!("chatbox admin {line} --reason why --user ann --json")).is_ok(), "{line}");
        }
        assert!(parse("chatbox admin reassign s --reason why").is_err());
    }

    #[test]
    fn a_token_on_the_command_line_is_not_shown_again() {
        let command = parse("chatbox chat --token top.secret.token").unwrap();
        assert!(!format!("{command:?}").contains("top"));
    }

    #[test]
    fn a_secret_from_elsewhere_needs_no_folder() {
        for line in ["chatbox token --sub a --config core.toml", "chatbox token --sub a --secret-env SECRET"] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "chatbox",
            "chatbox token",
            "chatbox token --sub a --role king",
            "chatbox token --sub a --expires soon",
            "chatbox token --sub a --expires 0s",
            "chatbox token --sub a --config f --data d",
            "chatbox dev --http 8080",
            "chatbox sessions list --limit 0",
            "chatbox sessions end",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
