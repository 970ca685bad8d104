use serde_json::Value;

use std::{io, path::Path};

use super::*;

mod database;

/// 32 bytes that look random.
const KEY: &str = "4wcBM6yXDs0mC8hXGzJqYk1rT5nVfLpZ2aQeUoIiRbE=";
const OTHER_KEY: &str = "zHq7mTt0Yv3sB1nWc5LxKd9RfGjPuQeAoIi2kMh8VNw=";
const SECRET: &str = "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM";

fn good() -> String {
    format!(
        "default_model = \"gpt\"\n\
         [token]\nsecret = \"{SECRET}\"\n\
         [[keys.ring]]\nid = \"k1\"\nkey = \"{KEY}\"\n\
         [providers.openai]\napi_key = \"sk-7LrT2vWc8KdF5hJn\"\n\
         [[models]]\nid = \"gpt\"\nupstream_model = \"gpt-x\"\n"
    )
}

fn vars(list: &[(&str, &str)]) -> Vars {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn no_files(_: &Path) -> io::Result<String> {
    Err(io::ErrorKind::NotFound.into())
}

fn load(file: &str, list: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    Config::load(Some(file), &vars(list), &no_files).map_err(|mistakes| mistakes.0)
}

#[test]
fn production_needs_keys_a_token_secret_and_a_model_and_nothing_else() {
    let config = load(&good(), &[]).expect("good");
    assert_eq!(config.build_models().expect("models").default_model().info.upstream_model, "gpt-x");
    let mistakes = load("", &[]).expect_err("nothing is set");
    for name in ["keys.ring: ", "token.secret: ", "models: ", "default_model: "] {
        assert!(mistakes.iter().any(|mistake| mistake.starts_with(name)), "{name} in {mistakes:?}");
    }
    assert_eq!(mistakes.len(), 4, "{mistakes:?}");
}

#[test]
fn in_the_dev_profile_the_demo_model_is_there_without_being_asked_for() {
    let ring = format!("[{{id = \"dev\", key = \"{KEY}\"}}]");
    let list = [("CHATBOX_PROFILE", "dev"), ("CHATBOX_TOKEN_SECRET", SECRET), ("CHATBOX_CORE_KEYS_RING", &ring)];
    let config = load("", &list).expect("variables are enough");
    assert_eq!(config.keys.primary_id(), Some("dev"));
    let models = config.build_models().expect("models");
    assert!(models.is_demo_only() && models.default_model().info.id == "demo");
}

#[test]
fn variables_alone_set_up_a_real_model() {
    let ring = format!("[{{id = \"k1\", key = \"{KEY}\"}}]");
    let config = load(
        "",
        &[
            ("CHATBOX_TOKEN_SECRET", SECRET),
            ("CHATBOX_KEYS_RING", &ring),
            ("CHATBOX_PROVIDERS_OPENAI_BASE_URL", "http://127.0.0.1:11434/v1"),
            ("CHATBOX_PROVIDERS_DEMO_WORD_DELAY", "0s"),
            ("CHATBOX_MODELS", "[{id = \"llama\", context_tokens = 4096}]"),
            ("CHATBOX_DEFAULT_MODEL", "llama"),
        ],
    )
    .expect("variables are enough");
    let models = config.build_models().expect("models");
    let info = &models.default_model().info;
    assert_eq!((info.provider.as_str(), info.upstream_model.as_str(), info.context_tokens), ("openai", "llama", 4096));
    assert_eq!(config.providers["demo"].kind, ProviderKind::Demo);
}

#[test]
fn every_bad_value_is_named() {
    each_is_named(&[
        ("PROFILE", "test"),
        ("LISTEN", "50051"),
        ("METRICS_LISTEN", "localhost"),
        ("METRICS_LISTEN", "127.0.0.1:50051"),
        ("DEFAULT_MODEL", "nope"),
        ("TLS_CERT_FILE", "cert.pem"),
        ("TLS_CLIENT_CA_FILE", "ca.pem"),
        ("STORE_URL", "postgres://db.test/x"),
        ("STORE_URL", "sqlite:"),
        ("STORE_MAX_SIZE", "1KiB"),
        ("STORE_CALL_TIMEOUT", "0s"),
        ("KEYS_PRIMARY", "k2"),
        ("KEYS_RING_0_ID", "No Such"),
        ("KEYS_RING_0_KEY", "c2hvcnQ="),
        ("KEYS_RING_0_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ("KEYS_RING_0_KEY_FILE", "k1.key"),
        ("TOKEN_SECRET", "short"),
        ("TOKEN_SECRET", "PLACEHOLDER-PLACEHOLDER-PLACEHOLDER"),
        ("TOKEN_LEEWAY", "1h"),
        ("SESSION_ACTIVE_PER_USER", "101"),
        ("SESSION_IDLE_END", "10ms"),
        ("SESSION_IDLE_END", "8761h"),
        ("SESSION_NAMING", "always"),
        ("SESSION_NAMING_TIMEOUT", "0s"),
        ("SESSION_NAMING_AT_ONCE", "0"),
        ("SESSION_MESSAGE_BYTES", "64KiB"),
        ("SESSION_MESSAGE_BYTES", "10MB"),
        ("SESSION_QUEUE_EVENTS", "0"),
        ("SESSION_PAGE_SIZE", "0"),
        ("SESSION_MAX_PAGE_SIZE", "49"),
        ("SESSION_HEARTBEAT", "0s"),
        ("SESSION_REPLY_LAPSE", "1s"),
        ("SESSION_APPEND_ROUNDS", "0"),
        ("SESSION_HOLD_LAPSE", "1s"),
        ("SESSION_OFFLINE_NOTICE", &"x".repeat(1_001)),
        ("ADMIN_LISTEN", "localhost"),
        ("ADMIN_LISTEN", "127.0.0.1:50051"),
        ("ADMIN_CALLS_PER_MINUTE", "0"),
        ("LIMITS_STREAMS_PER_CONNECTION", "100"),
        ("LIMITS_MERGE_DELTAS", "1s"),
        ("LIMITS_CONNECTIONS", "0"),
        ("LIMITS_CALLS_PER_USER", "0"),
        ("LIMITS_MESSAGES_PER_MINUTE", "100001"),
        ("LIMITS_REPLIES", "0"),
        ("BUDGETS_USER_TOKENS", "1000000000000001"),
        ("BUDGETS_USER_COST", "-1"),
        ("BUDGETS_SERVICE_COST", "1"),
        ("BUDGETS_ROLES", "{nobody = {tokens = 5}}"),
        ("LIMITS_REQUEST_BYTES", "1GiB"),
        ("LIMITS_HEADER_BYTES", "1KiB"),
        ("GENERATE_STREAMS_PER_CALLER", "0"),
        ("GENERATE_FRAME_BYTES", "2MiB"),
        ("GENERATE_CONVERSATION_BYTES", "1GiB"),
        ("GENERATE_MESSAGES", "0"),
        ("DRAIN_DEADLINE", "20s"),
        ("DRAIN_GRACE", "1h"),
        ("ALERTS_GIVE_UP", "1s"),
        ("ALERTS_MAX_PAUSE", "1s"),
        ("ALERTS_KEEP", "1s"),
        ("ALERTS_LINK", "example.org"),
        ("ALERTS_CRASH_STARTS", "1"),
        ("ALERTS_CRASH_WINDOW", "1s"),
        ("ALERTS_ABNORMAL_REFUSALS", "0"),
        ("ALERTS_STORE_DOWN_AFTER", "0s"),
        ("TELEMETRY_OTLP_ENDPOINT", "collector:4317"),
        ("TELEMETRY_SAMPLE_RATIO", "2"),
        ("TELEMETRY_QUEUE_SPANS", "0"),
        ("LOG_FORMAT", "xml"),
        ("LOG_FILTER", "=,="),
        ("MISSPELT", "1"),
    ]);
}

#[test]
fn every_bad_value_of_a_provider_or_a_model_is_named() {
    each_is_named(&[
        ("PROVIDERS_OPENAI_KIND", "bard"),
        ("PROVIDERS_OPENAI_BASE_URL", "http://llm.test/v1"),
        ("PROVIDERS_OPENAI_BASE_URL", "https://u:p@llm.test/v1"),
        ("PROVIDERS_OPENAI_API_KEY", "PLACEHOLDER"),
        ("PROVIDERS_OPENAI_API_KEY_FILE", "no.key"),
        ("PROVIDERS_OPENAI_OUTPUT_LIMIT", "tokens"),
        ("PROVIDERS_OPENAI_FIRST_BYTE_TIMEOUT", "0s"),
        ("PROVIDERS_OPENAI_TOTAL_TIMEOUT", "soon"),
        ("PROVIDERS_OPENAI_RETRIES", "6"),
        ("PROVIDERS_OPENAI_RETRIES", "-1"),
        ("PROVIDERS_OPENAI_EVENT_BYTES", "1B"),
        ("PROVIDERS_OPENAI_KEY_HEADER", "cookie"),
        ("PROVIDERS_OPENAI_CONCURRENCY", "0"),
        ("PROVIDERS_OPENAI_QUEUE", "1000000"),
        ("PROVIDERS_OPENAI_QUEUE_TIMEOUT", "0s"),
        ("PROVIDERS_OPENAI_BREAKER_FAILURES", "-1"),
        ("PROVIDERS_OPENAI_BREAKER_WINDOW", "0s"),
        ("PROVIDERS_OPENAI_BREAKER_PAUSE", "1h"),
        ("PROVIDERS_ANTHROPIC_BASE_URL", "http://llm.test/v1"),
        ("PROVIDERS_DIFY_BASE_URL", "https://u:p@llm.test/v1"),
        ("PROVIDERS_DEMO_WORD_DELAY", "1h"),
        ("MODELS_0_ID", "two words"),
        ("MODELS_0_PROVIDER", "nobody"),
        ("MODELS_0_CONTEXT_TOKENS", "0"),
        ("MODELS_0_MAX_OUTPUT_TOKENS", "8192"),
        ("MODELS_0_FALLBACKS", "nope"),
        ("MODELS_0_FALLBACKS", "gpt"),
        ("MODELS_0_ROLES", "king"),
        ("MODELS_0_ON_LOSS", "restart"),
        ("MODELS_0_ON_LOSS", "cry"),
        ("MODELS_0_PROMPT_PRICE", "-1"),
        ("MODELS_0_COMPLETION_PRICE", "1e9"),
    ]);
}

#[test]
fn every_bad_value_of_the_bus_is_named() {
    let nats = |name: &str, value: &str| {
        let name = format!("CHATBOX_CORE_{name}");
        let url = if name.ends_with("BUS_URL") {
            ("CHATBOX_PROFILE", "dev")
        } else {
            ("CHATBOX_CORE_BUS_URL", "tls://nats.test")
        };
        load(&good(), &[("CHATBOX_PROFILE", "dev"), url, (name.as_str(), value)]).expect_err(value)
    };
    for (name, value, named) in [
        ("BUS_URL", "http://nats.test", "bus.url"),
        ("BUS_PREFIX", "two words", "bus.prefix"),
        ("BUS_USER", "core", "bus.user"),
        ("BUS_PASSWORD", "secret-of-the-bus", "bus.password"),
        ("BUS_CERT_FILE", "cert.pem", "bus.cert_file"),
        ("BUS_KEY_FILE", "key.pem", "bus.key_file"),
        ("BUS_TOKEN_FILE", "no.token", "bus.token_file"),
        ("BUS_PASSWORD_FILE", "no.password", "bus.password_file"),
        ("BUS_CREDENTIALS_FILE", "no.creds", "bus.credentials_file"),
        ("BUS_SUBJECT", "x", "BUS_SUBJECT"),
    ] {
        let mistakes = nats(name, value);
        assert_eq!(mistakes.len(), 1, "{name}={value}: {mistakes:?}");
        assert!(mistakes[0].contains(named) && !mistakes[0].contains("secret-of-the-bus"), "{mistakes:?}");
    }
    let plain =
        [("CHATBOX_PROFILE", "dev"), ("CHATBOX_CORE_BUS_URL", "nats://n"), ("CHATBOX_CORE_BUS_CA_FILE", "ca.pem")];
    let mistakes = load(&good(), &plain).expect_err("certificates without TLS");
    assert!(matches!(&mistakes[..], [mistake] if mistake.starts_with("bus.ca_file")), "{mistakes:?}");
    let alone = [("CHATBOX_CORE_BUS_TOKEN", "secret-of-the-bus")];
    let mistakes = load(&good(), &alone).expect_err("nobody to give it to");
    assert_eq!(mistakes, ["bus.url: local takes no other settings of bus"]);
}

/// Variables with a value, each of which is a mistake.
fn each_is_named(list: &[(&str, &str)]) {
    for &(name, value) in list {
        let name_of_variable = format!("CHATBOX_CORE_{name}");
        let mistakes = load(&good(), &[(&name_of_variable, value)]).expect_err(name);
        let named = mistakes.iter().any(|mistake| {
            mistake.to_lowercase().replace(['.', '['], "_").replace(']', "").contains(&name.to_lowercase())
        });
        assert!(named, "{name}={value}: {mistakes:?}");
        // Another id or default breaks what refers to it, too.
        let expected =
            if matches!(name, "KEYS_RING_0_KEY_FILE" | "MODELS_0_ID" | "MODELS_0_CONTEXT_TOKENS" | "MODELS_0_ROLES") {
                2
            } else {
                1
            };
        assert!(mistakes.len() <= expected, "{name}={value}: {mistakes:?}");
        assert!(!mistakes.join("").contains(SECRET) && !mistakes.join("").contains(KEY));
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let list = [
        ("CHATBOX_SESSION_HEARTBEAT", "0s"),
        ("CHATBOX_LIMITS_CONNECTIONS", "0"),
        ("CHATBOX_STORE_URL", "x"),
        ("CHATBOX_DEFAULT_MODEL", "nope"),
        ("CHATBOX_LOG_FILTER", "=,="),
    ];
    assert_eq!(load(&good(), &list).expect_err("five").len(), 5);
}

#[test]
fn production_refuses_what_is_only_good_enough_for_a_laptop() {
    let demo = "default_model = \"demo\"\n[[models]]\nid = \"demo\"\nprovider = \"demo\"\n";
    let rest = good().split_once('\n').expect("lines").1.split("[[models]]").next().expect("part").to_owned();
    let file =
        format!("{}{rest}[[models]]{}", "default_model = \"demo\"\n", demo.split("[[models]]").nth(1).expect("part"));
    let mistakes = load(&file, &[]).expect_err("demo");
    assert_eq!(mistakes, ["default_model: must not be a demo model in the production profile"]);
    assert!(load(&file, &[("CHATBOX_PROFILE", "dev")]).is_ok());

    let open = [("CHATBOX_CORE_LISTEN", "0.0.0.0:50051")];
    assert!(load(&good(), &open).expect_err("no TLS")[0].starts_with("tls.cert_file: "));
    let tls = [open[0], ("CHATBOX_CORE_TLS_CERT_FILE", "c.pem"), ("CHATBOX_CORE_TLS_KEY_FILE", "k.pem")];
    assert!(load(&good(), &tls).is_ok());

    let weak = [("CHATBOX_TOKEN_SECRET", "changeme-changeme-changeme-changeme"), ("CHATBOX_PROFILE", "dev")];
    assert!(load(&good(), &weak).is_ok());
    assert!(load(&good(), &weak[..1]).is_err());
}

#[test]
fn secrets_come_from_files_too_and_lose_only_their_line_end() {
    let file =
        good().replace(&format!("key = \"{KEY}\""), "key_file = \"/run/k1\"").replace("api_key =", "api_key_file =");
    let read = |path: &Path| match path.to_str() {
        Some("/run/k1") => Ok(format!("{KEY}\n")),
        Some("sk-7LrT2vWc8KdF5hJn") => Ok("sk-from-file-4EuM8Kd\r\n".to_owned()),
        _ => Err(io::ErrorKind::NotFound.into()),
    };
    let from_file = vars(&[("CHATBOX_TOKEN_SECRET_FILE", "/run/k1")]);
    let both = Config::load(Some(&file), &from_file, &read).expect_err("two secrets").0;
    assert_eq!(both, ["token.secret, token.secret_file: set only one of them"]);
    let config = Config::load(Some(&file), &Vars::new(), &read).expect("files");
    assert_eq!(config.keys.pairs().collect::<Vec<_>>(), [("k1", KEY)]);
    assert_eq!(config.providers["openai"].api_key.expose(), "sk-from-file-4EuM8Kd");
    let mistakes = Config::load(Some(&file), &Vars::new(), &no_files).expect_err("no files").0;
    assert!(
        mistakes.iter().any(|mistake| mistake == "keys.ring[0].key_file: cannot be read: entity not found"),
        "{mistakes:?}"
    );
}

#[test]
fn each_kind_of_provider_is_set_up_by_its_key_alone_and_asks_its_own_service() {
    for (name, url) in [("anthropic", "https://api.anthropic.com/v1"), ("dify", "https://api.dify.ai/v1")] {
        let file = good() + &format!("provider = \"{name}\"\n");
        let mistakes = load(&file, &[]).expect_err("no key");
        assert_eq!(mistakes, [format!("providers.{name}.api_key: must be set for {url}")]);
        let variable = format!("CHATBOX_PROVIDERS_{}_API_KEY", name.to_uppercase());
        let config = load(&file, &[(&variable, "sk-5hJnZsGa4EuM")]).expect("a key is enough");
        assert_eq!(config.providers[name].base_url, url);
        assert_eq!(config.build_models().expect("models").default_model().info.provider, name);
    }
    let elsewhere = good() + "provider = \"dify\"\n[providers.dify]\nbase_url = \"http://127.0.0.1:1/v1\"\n";
    assert_eq!(load(&elsewhere, &[]).expect("a server of one's own").providers["dify"].kind, ProviderKind::Dify);
}

#[test]
fn fallbacks_are_models_with_room_and_the_default_is_for_everybody() {
    let second =
        "[[models]]\nid = \"small\"\ncontext_tokens = 2048\n[[models]]\nid = \"spare\"\nfallbacks = [\"gpt\"]\n";
    let with = |lines: &str| format!("{}{lines}{second}", good());
    let config =
        load(&with("fallbacks = [\"spare\"]\non_loss = \"restart\"\nprompt_price = 2.5\n"), &[]).expect("good");
    let models = config.build_models().expect("models");
    let info = &models.default_model().info;
    assert_eq!((info.fallbacks.as_slice(), info.price.prompt), (&["spare".to_owned()][..], 2_500));
    assert_eq!(models.loads().len(), 1, "all share one provider");
    for (lines, expect) in [
        ("fallbacks = [\"small\"]\n", "models[0].fallbacks: \"small\" has no room for the prompts of this model"),
        ("fallbacks = [\"spare\", \"spare\"]\n", "models[0].fallbacks: \"spare\" is there twice, or the model itself"),
        ("fallbacks = [\"nope\"]\n", "models[0].fallbacks: \"nope\" is not among the models"),
        ("on_loss = \"restart\"\n", "models[0].on_loss: restart needs fallbacks"),
        ("roles = [\"admin\"]\n", "default_model: must be a model for everybody, without roles"),
        ("cached_price = nan\n", "models[0].cached_price: must be from 0 to 100000 for a million tokens"),
    ] {
        assert_eq!(load(&with(lines), &[]).expect_err(lines), [expect]);
    }
}

#[test]
fn the_sample_of_providers_is_valid_with_keys_alone() {
    let sample = include_str!("../../../deployments/providers.toml");
    let ring = format!("[{{id = \"k1\", key = \"{KEY}\"}}]");
    let keys = ["OPENAI", "ANTHROPIC", "DIFY", "AZURE"].map(|name| format!("CHATBOX_CORE_PROVIDERS_{name}_API_KEY"));
    let mut list = vec![("CHATBOX_TOKEN_SECRET", SECRET), ("CHATBOX_CORE_KEYS_RING", ring.as_str())];
    list.extend(keys.iter().map(|name| (name.as_str(), "5hJnZsGa4EuM")));
    let config = load(sample, &list).expect("valid");
    assert_eq!(config.build_models().expect("models").iter().count(), 5);
}

#[test]
fn the_sample_of_alerts_is_valid_with_its_secrets_alone() {
    let file = good() + include_str!("../../../deployments/alerts.toml");
    let secrets = |file: &Path| match file.file_name().and_then(|name| name.to_str()) {
        Some("pager_url") => Ok("https://pager.example.org/".to_owned()),
        _ => Ok("7LrT2vWc8KdF5hJnZsGa4EuM".to_owned()),
    };
    let config = Config::load(Some(&file), &Vars::new(), &secrets).expect("valid");
    assert_eq!(config.alerts.build().expect("rules").rules.len(), 5);
}

#[test]
fn of_several_keys_one_is_named() {
    let two = format!("{}[[keys.ring]]\nid = \"k2\"\nkey = \"{OTHER_KEY}\"\n", good());
    assert_eq!(load(&two, &[]).expect_err("which?"), ["keys.primary: must name one of several keys"]);
    assert_eq!(load(&two, &[("CHATBOX_KEYS_PRIMARY", "k2")]).expect("named").keys.primary_id(), Some("k2"));
    let twice = two.replace("k2", "k1");
    let mistakes = load(&twice, &[("CHATBOX_KEYS_PRIMARY", "k1")]).expect_err("twice");
    assert_eq!(mistakes, ["keys.ring[1].id: \"k1\" is there twice"]);
}

#[test]
fn printed_values_hide_every_secret_and_can_be_read() {
    let file =
        good() + "[providers.gateway]\nbase_url = \"https://llm.test/v1\"\nheaders = { \"x-key\" = \"MARKER\" }\n";
    let config = load(&file, &[]).expect("good");
    let text = settings::print(&config);
    for secret in [SECRET, KEY, "7LrT2vWc8KdF5hJn", "MARKER"] {
        assert!(!text.contains(secret) && !format!("{config:?}").contains(secret), "{text}");
    }
    assert!(text.contains("message_bytes = \"32KiB\"") && text.contains("heartbeat = \"15s\""), "{text}");
    let read: Config = settings::load(Some(&text), ROLE, &Vars::new()).expect("readable");
    assert_eq!(read.session, config.session);
}

/// Every setting that is not a table, with its path.
fn leaves(value: &Value, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, Value)>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                path.push(name.clone());
                leaves(member, path, found);
                path.pop();
            }
        }
        Value::Array(elements) if elements.iter().any(Value::is_object) => {
            for (index, element) in elements.iter().enumerate() {
                path.push(index.to_string());
                leaves(element, path, found);
                path.pop();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            found.push((path.clone(), value.clone()));
        }
    }
}

#[test]
fn every_setting_is_reachable_by_its_variable() {
    // Secrets show only whether they are set, so here they are not.
    let file = "[[keys.ring]]\nid = \"k1\"\n[[models]]\nid = \"gpt\"\n";
    let shape = |list: &[(&str, &str)]| {
        let config: Result<Config, _> = settings::load(Some(file), ROLE, &vars(list));
        config.ok().map(|config| serde_json::to_value(config).expect("JSON"))
    };
    let mut found = Vec::new();
    leaves(&shape(&[]).expect("good"), &mut Vec::new(), &mut found);
    assert!(found.len() > 80, "{}", found.len());
    // Headers, channels, rules and roles with a budget have no names until a file gives them some.
    let unnamed = ["headers", "channels", "rules"];
    found.retain(|(path, _)| path.last().is_none_or(|name| !unnamed.contains(&name.as_str())));
    found.retain(|(path, _)| path.join(".") != "budgets.roles");
    for (path, value) in found {
        let name = format!("CHATBOX_CORE_{}", path.join("_").to_uppercase());
        let pointer = format!("/{}", path.join("/"));
        let candidates = [
            "true",
            "false",
            "7",
            "7s",
            "7KiB",
            "127.0.0.1:7",
            "json",
            "dev",
            "RS256",
            "demo",
            "openai",
            "api-key",
            "restart",
            "0.5",
            "max_tokens",
            "word",
            "rule",
        ];
        let changed = candidates.iter().any(|candidate| {
            shape(&[(&name, candidate)]).is_some_and(|config| config.pointer(&pointer).is_some_and(|now| *now != value))
        });
        // Some kinds are fixed; that it is no other setting is all that can be shown.
        let fixed = path[0] == "providers" && path[1] != "openai" && path[2] == "kind";
        assert!(changed || fixed, "{name} changes nothing");
    }
}
