//! The settings of both binaries as `chatbox dev` runs them: its own defaults, laid over by variables, laid over by flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use chatbox_core::config::Config as CoreConfig;
use chatbox_edge::Config as EdgeConfig;
use chatbox_proto::settings::{Mistakes, Vars};
use toml::{Table, Value, toml};

use crate::{args::DevArgs, data_dir::DataDir, local_models::LocalServer};

pub(super) const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
pub(super) const GRPC: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 50051);

/// Id under which the folder's key is stored with what it seals: it must never change.
const KEY_ID: &str = "dev";

/// Both configurations, checked.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) core: CoreConfig,
    pub(super) edge: EdgeConfig,
}

/// Where the two listeners will be: flag, else variable, else default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listeners {
    pub(super) http: SocketAddr,
    pub(super) grpc: SocketAddr,
}

impl Listeners {
    /// A variable that is no address is left to the configuration to complain about.
    pub(super) fn new(args: &DevArgs, vars: &Vars) -> Self {
        let variable = |names: [&str; 2]| names.iter().find_map(|name| variable(vars, name)?.parse().ok());
        let http = args.http.or_else(|| variable(["CHATBOX_EDGE_LISTEN", "CHATBOX_LISTEN"])).unwrap_or(HTTP);
        let grpc = args.grpc.or_else(|| variable(["CHATBOX_CORE_LISTEN", "CHATBOX_LISTEN"])).unwrap_or(GRPC);
        Self { http, grpc }
    }
}

impl Settings {
    /// # Errors
    /// Everything that is wrong, at once; or a folder that cannot be used.
    pub(super) fn load(args: &DevArgs, vars: &Vars, data: &DataDir, found: &[LocalServer]) -> Result<Self> {
        let listeners = Listeners::new(args, vars);
        let mut vars = vars.clone();
        for (name, flag) in [("CHATBOX_EDGE_LISTEN", args.http), ("CHATBOX_CORE_LISTEN", args.grpc)] {
            if let Some(address) = flag {
                vars.insert(name.to_owned(), address.to_string());
            }
        }
        let mut core = core_defaults(args, data, &vars)?;
        add_models(&mut core, &mut vars, found);
        let core = CoreConfig::load(Some(&core.to_string()), &vars, &|path| std::fs::read_to_string(path));
        let edge = edge_defaults(args, listeners, data, &vars)?;
        let edge = EdgeConfig::load(Some(&edge.to_string()), &vars, &|path| std::fs::read_to_string(path));
        match (core, edge) {
            (Ok(core), Ok(mut edge)) => {
                // One process, one way to verify.
                edge.token = core.token.clone();
                Ok(Self { core, edge })
            }
            (core, edge) => {
                let mistakes = |role, result: Option<Mistakes>| {
                    result.into_iter().flat_map(|mistakes| mistakes.0).map(move |mistake| format!("{role}: {mistake}"))
                };
                let all = mistakes("core", core.err()).chain(mistakes("edge", edge.err())).collect();
                Err(Mistakes(all).into())
            }
        }
    }
}

/// Whether the way to core was chosen by a variable, for a proxy in between.
pub(super) fn chooses_core_url(vars: &Vars) -> bool {
    variable(vars, "CHATBOX_EDGE_CORE_URL").is_some()
}

/// How this machine reaches a listener of its own.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn variable<'a>(vars: &'a Vars, name: &str) -> Option<&'a str> {
    vars.get(name).map(String::as_str).filter(|text| !text.is_empty())
}

fn log_filter(verbose: u8) -> &'static str {
    match verbose {
        0 => "warn",
        1 => "info",
        _ => "info,chatbox_core=debug,chatbox_edge=debug,chatbox=debug",
    }
}

/// Nobody balances load here, and whoever presses Ctrl-C waits for it: no notice, no spreading, a short grace.
fn core_defaults(args: &DevArgs, data: &DataDir, vars: &Vars) -> Result<Table> {
    let database = data.database();
    let database = database.to_str().context("--data: the name of the folder must be UTF-8")?;
    let mut table = toml! {
        profile = "dev"
        metrics_listen = ""
        [drain]
        notice = "0s"
        jitter = "0s"
        grace = "5s"
        deadline = "10s"
    };
    table.insert("listen".to_owned(), GRPC.to_string().into());
    table.insert("store".to_owned(), one("url", &format!("sqlite:{database}")));
    token_default("CORE", &mut table, data, vars)?;
    table.insert("log".to_owned(), one("filter", log_filter(args.verbose)));
    // An array of tables in the text would hide the variable that sets the whole of it.
    if !["CHATBOX_CORE_KEYS_RING", "CHATBOX_KEYS_RING"].iter().any(|name| variable(vars, name).is_some()) {
        let mut key = Table::new();
        key.insert("id".to_owned(), KEY_ID.into());
        key.insert("key".to_owned(), data.sealing_key()?.expose().into());
        table.insert("keys".to_owned(), Table::from_iter([("ring".to_owned(), Value::from(vec![key]))]).into());
    }
    Ok(table)
}

fn edge_defaults(args: &DevArgs, listeners: Listeners, data: &DataDir, vars: &Vars) -> Result<Table> {
    let mut table = toml! {
        profile = "dev"
        metrics_listen = ""
        [drain]
        notice = "0s"
        jitter = "0s"
        deadline = "5s"
    };
    table.insert("listen".to_owned(), HTTP.to_string().into());
    table.insert("origins".to_owned(), origins(listeners.http).into());
    token_default("EDGE", &mut table, data, vars)?;
    table.insert("log".to_owned(), one("filter", log_filter(args.verbose)));
    Ok(table)
}

/// The secret of the folder, unless a variable names a file that holds another.
fn token_default(role: &str, table: &mut Table, data: &DataDir, vars: &Vars) -> Result<()> {
    let names = [format!("CHATBOX_{role}_TOKEN_SECRET_FILE"), "CHATBOX_TOKEN_SECRET_FILE".to_owned()];
    if !names.iter().any(|name| variable(vars, name).is_some()) {
        table.insert("token".to_owned(), one("secret", data.token_secret()?.expose()));
    }
    Ok(())
}

/// The page's own origins, as far as they are known before the listener is bound. An empty list means the same by the
/// host of the request, which also covers the other names of this machine when it listens on all of its addresses.
fn origins(http: SocketAddr) -> Vec<String> {
    if http.port() == 0 || !http.ip().is_loopback() {
        return Vec::new();
    }
    vec![format!("http://{http}"), format!("http://localhost:{}", http.port())]
}

fn one(name: &str, value: &str) -> Value {
    Table::from_iter([(name.to_owned(), Value::from(value))]).into()
}

/// The models of the variables first, then those found on this machine, then the demo model. The default is the first one,
/// unless it is set.
fn add_models(core: &mut Table, vars: &mut Vars, found: &[LocalServer]) {
    let mut models = Vec::new();
    for name in ["CHATBOX_CORE_MODELS", "CHATBOX_MODELS"] {
        let Some(text) = variable(vars, name) else { continue };
        match format!("list = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("list")) {
            Some(Value::Array(list)) if list.iter().all(Value::is_table) => models = list,
            // The configuration says what is wrong with it.
            _ => return,
        }
        vars.remove("CHATBOX_CORE_MODELS");
        vars.remove("CHATBOX_MODELS");
        break;
    }
    let mut providers = Table::new();
    let has =
        |models: &[Value], id: &str| models.iter().any(|model| model.get("id").and_then(Value::as_str) == Some(id));
    for server in found {
        let mut provider = Table::new();
        provider.insert("base_url".to_owned(), server.base_url.as_str().into());
        // A model that is not loaded yet is read from disk first.
        provider.insert("first_byte_timeout".to_owned(), "2m".into());
        provider.insert("send_user".to_owned(), false.into());
        providers.insert(server.provider.to_owned(), provider.into());
        for model in &server.models {
            if has(&models, &model.id) {
                continue;
            }
            let mut table = Table::new();
            table.insert("id".to_owned(), model.id.as_str().into());
            table.insert("name".to_owned(), format!("{} ({})", model.id, server.title).into());
            table.insert("provider".to_owned(), server.provider.into());
            table.insert("upstream_model".to_owned(), model.upstream_model.as_str().into());
            table.insert("context_tokens".to_owned(), i64::from(model.context_tokens).into());
            table.insert("max_output_tokens".to_owned(), i64::from((model.context_tokens / 2).min(1_024)).into());
            models.push(table.into());
        }
    }
    if !has(&models, "demo") {
        models.push(
            toml! {
                id = "demo"
                name = "Demo (built in)"
                provider = "demo"
                max_output_tokens = 4096
            }
            .into(),
        );
    }
    if let Some(id) = models.first().and_then(|model| model.get("id")).cloned() {
        core.insert("default_model".to_owned(), id);
    }
    core.insert("models".to_owned(), models.into());
    core.insert("providers".to_owned(), providers.into());
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::{
        super::testing::{dev_args, vars},
        *,
    };
    use crate::local_models::LocalModel;

    fn load(line: &str, list: &[(&str, &str)], found: &[LocalServer]) -> Settings {
        let folder = TempDir::new().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        Settings::load(&dev_args(folder.path(), line), &vars(list), &data, found).unwrap()
    }

    fn ollama() -> LocalServer {
        let model = |id: &str| LocalModel { id: id.to_owned(), upstream_model: id.to_owned(), context_tokens: 2_000 };
        LocalServer {
            provider: "ollama",
            title: "Ollama",
            base_url: "http://127.0.0.1:11434/v1".to_owned(),
            models: vec![model("llama3.2:3b"), model("qwen3")],
        }
    }

    #[test]
    fn a_local_model_answers_by_default_and_the_demo_stays() {
        let Settings { core, .. } = load("", &[], &[ollama()]);
        let models: Vec<_> = core.models.iter().map(|model| (model.id.as_str(), model.provider.as_str())).collect();
        assert_eq!(models, [("llama3.2:3b", "ollama"), ("qwen3", "ollama"), ("demo", "demo")]);
        assert_eq!(core.default_model, "llama3.2:3b");
        assert_eq!(core.providers["ollama"].base_url, "http://127.0.0.1:11434/v1");
        assert_eq!((core.models[0].context_tokens, core.models[0].max_output_tokens), (2_000, 1_000));
        core.build_models().unwrap();
        assert_eq!(load("", &[], &[]).core.default_model, "demo");
    }

    #[test]
    fn what_is_set_stands_above_what_is_found() {
        let list = [
            ("CHATBOX_PROVIDERS_OPENAI_BASE_URL", "http://127.0.0.1:9/v1"),
            ("CHATBOX_CORE_MODELS", "[{id = \"qwen3\", name = \"mine\"}]"),
            ("CHATBOX_CORE_MODELS_0_CONTEXT_TOKENS", "4000"),
            ("CHATBOX_DEFAULT_MODEL", "llama3.2:3b"),
        ];
        let Settings { core, .. } = load("", &list, &[ollama()]);
        let models: Vec<_> = core.models.iter().map(|model| (model.id.as_str(), model.provider.as_str())).collect();
        assert_eq!(models, [("qwen3", "openai"), ("llama3.2:3b", "ollama"), ("demo", "demo")]);
        assert_eq!((core.default_model.as_str(), core.models[0].context_tokens), ("llama3.2:3b", 4_000));
    }

    #[test]
    fn a_flag_stands_above_a_variable_and_a_variable_above_the_default() {
        let list = [("CHATBOX_EDGE_LISTEN", "127.0.0.1:1001"), ("CHATBOX_CORE_LISTEN", "127.0.0.1:1002")];
        let Settings { core, edge } = load("--http 127.0.0.1:1003", &list, &[]);
        assert_eq!((edge.listen.port(), core.listen.port()), (1003, 1002));
        assert_eq!(edge.origins, ["http://127.0.0.1:1003", "http://localhost:1003"]);
        let Settings { core, edge } = load("", &[], &[]);
        assert_eq!((edge.listen, core.listen), (HTTP, GRPC));
        assert_eq!(load("--http 0.0.0.0:0", &[], &[]).edge.origins, [""; 0]);
    }

    #[test]
    fn both_verify_tokens_alike_and_a_key_of_the_environment_replaces_that_of_the_folder() {
        let key = "4wcBM6yXDs0mC8hXGzJqYk1rT5nVfLpZ2aQeUoIiRbE="; // gitleaks:allow: made up
        let ring = format!("[{{id = \"k1\", key = \"{key}\"}}]");
        let list = [
            ("CHATBOX_CORE_TOKEN_SECRET", "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM"), // gitleaks:allow: made up
            ("CHATBOX_TOKEN_AUDIENCE", "chatbox"),
            ("CHATBOX_KEYS_RING", &ring),
        ];
        let Settings { core, edge } = load("", &list, &[]);
        assert_eq!((&core.token, core.token.audience.as_str()), (&edge.token, "chatbox"));
        assert_eq!(core.keys.pairs().collect::<Vec<_>>(), [("k1", key)]);
    }
}
