use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::*;
use crate::{
    settings::{ByteSize, print},
    token::{Secret, TokenConfig},
};

#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
struct Config {
    listen: String,
    count: u32,
    ratio: f64,
    on: bool,
    origins: Vec<String>,
    size: ByteSize,
    #[serde(with = "crate::settings::duration")]
    wait: Duration,
    token: TokenConfig,
    providers: Vec<Provider>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".into(),
            count: 3,
            ratio: 0.5,
            on: false,
            origins: Vec::new(),
            size: ByteSize::kib(64),
            wait: Duration::from_secs(5),
            token: TokenConfig::default(),
            providers: Vec::new(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Default)]
#[serde(default, deny_unknown_fields)]
struct Provider {
    name: String,
    api_key: Secret,
}

fn vars(list: &[(&str, &str)]) -> Vars {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn mistakes(file: &str, list: &[(&str, &str)]) -> Vec<String> {
    load::<Config>(Some(file), "EDGE", &vars(list)).unwrap_err().0
}

#[test]
fn defaults_are_laid_over_by_the_file_and_that_by_variables() {
    let file = "count = 7\nwait = \"9s\"\n[token]\nissuer = \"file\"\n";
    let config: Config = load(
        Some(file),
        "EDGE",
        &vars(&[
            ("CHATBOX_WAIT", "1s"),
            ("CHATBOX_EDGE_WAIT", "2s"),
            ("CHATBOX_ON", "true"),
            ("CHATBOX_RATIO", "1"),
            ("CHATBOX_SIZE", "1MiB"),
            ("CHATBOX_ORIGINS", "https://a.test, https://b.test"),
            ("CHATBOX_TOKEN_ISSUER", "variable"),
            ("CHATBOX_TOKEN_SECRET", "a secret"),
            ("CHATBOX_LISTEN", ""),
        ]),
    )
    .unwrap();
    assert_eq!(config.count, 7);
    assert_eq!(config.wait, Duration::from_secs(2));
    assert!(config.on);
    assert_eq!(config.size, ByteSize::mib(1));
    assert_eq!(config.origins, ["https://a.test", "https://b.test"]);
    assert_eq!(config.token.issuer, "variable");
    assert_eq!(config.token.secret.expose(), "a secret");
    assert_eq!(config.listen, "127.0.0.1:0");
}

#[test]
fn elements_of_an_array_of_tables_have_variables() {
    let file = "[[providers]]\nname = \"a\"\n[[providers]]\nname = \"b\"\n";
    let config: Config = load(Some(file), "CORE", &vars(&[("CHATBOX_PROVIDERS_1_API_KEY", "k")])).unwrap();
    assert!(config.providers[0].api_key.is_empty());
    assert_eq!(config.providers[1].api_key.expose(), "k");
}

#[test]
fn a_list_may_be_written_in_toml() {
    let config: Config = load(None, "CORE", &vars(&[("CHATBOX_ORIGINS", r#"["a,b", "c"]"#)])).unwrap();
    assert_eq!(config.origins, ["a,b", "c"]);
}

#[test]
fn all_mistakes_of_the_file_are_reported_at_once() {
    let found = mistakes("count = \"x\"\nlisten = 7\nmisspelt = 1\n[token]\nleeway = \"soon\"\nother = 2\n", &[]);
    assert_eq!(found.len(), 5, "{found:?}");
    for name in ["count", "listen", "misspelt", "token.leeway", "other"] {
        assert!(found.iter().any(|mistake| mistake.contains(name)), "{name} in {found:?}");
    }
}

#[test]
fn all_mistakes_of_variables_are_reported_at_once() {
    let found = mistakes(
        "",
        &[("CHATBOX_COUNT", "x"), ("CHATBOX_EDGE_ON", "yes"), ("CHATBOX_EDGE_MISSPELT", "1"), ("CHATBOX_RATIO", "r")],
    );
    assert_eq!(found.len(), 4, "{found:?}");
    let found = mistakes("", &[("CHATBOX_WAIT", "soon"), ("CHATBOX_COUNT", "-1")]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[1].starts_with("wait: "), "{found:?}");
}

#[test]
fn variables_of_the_other_binary_and_of_kubernetes_are_none_of_ours() {
    let others = [
        ("CHATBOX_CORE_STORE", "x"),
        ("CHATBOX_EDGE_SERVICE_HOST", "10.0.0.1"),
        ("CHATBOX_EDGE_SERVICE_PORT_HTTP", "80"),
        ("CHATBOX_EDGE_PORT", "tcp://10.0.0.1:80"),
        ("CHATBOX_EDGE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("PATH", "/bin"),
    ];
    assert_eq!(load::<Config>(None, "EDGE", &vars(&others)).unwrap(), Config::default());
}

#[test]
fn no_mistake_shows_a_value() {
    let found = mistakes("[token]\nsecret = \"MARKER", &[]);
    assert!(found[0].starts_with("line 2 "), "{found:?}");
    assert!(!found.join("").contains("MARKER"));
    let found = mistakes("[token]\nsecret = 77777777\n", &[]);
    assert!(found[0].starts_with("token.secret: "), "{found:?}");
    assert!(!found.join("").contains("77777777"));
}

#[test]
fn printed_values_can_be_read_back_and_show_no_secret() {
    let config = Config {
        token: TokenConfig { secret: Secret::new("MARKER"), ..TokenConfig::default() },
        providers: vec![Provider { name: "a".into(), api_key: Secret::new("MARKER") }],
        ..Config::default()
    };
    let text = print(&config);
    assert!(!text.contains("MARKER"), "{text}");
    assert!(text.contains("size = \"64KiB\"") && text.contains("wait = \"5s\""), "{text}");
    assert!(load::<Config>(Some(&text), "EDGE", &Vars::new()).is_ok());
}
