use std::net::TcpListener;

use chatbox_proto::settings::Mistakes;
use tempfile::TempDir;

use super::{
    testing::{ANY_PORTS, AT_ONCE, Instance, LIMIT, bind, chat_args, dev_args, pipe, vars},
    *,
};
use crate::client::Client;

#[tokio::test]
async fn a_conversation_goes_through_everything_twice_in_one_process() {
    let folder = TempDir::new().unwrap();
    for round in 1..=2 {
        let instance = Instance::start(folder.path(), ANY_PORTS, &[AT_ONCE]).await;
        let args = chat_args(folder.path(), instance.started.grpc);
        let (code, out, err) = pipe(&args, &["first question", "", "second question"]).await;
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        let (first, second) = (out.find("> first question"), out.find("> second question"));
        assert!(first.is_some() && first < second, "{out}");
        assert_eq!(out.matches("the built-in demo model").count(), 2, "{out}");

        // What was said before is still there.
        let client = Client::new(&args.server, &Vars::new()).unwrap();
        let sessions = client.sessions(10).await.unwrap();
        assert_eq!(sessions.iter().map(|session| session.message_count).collect::<Vec<_>>(), [4 * round]);
        assert_eq!(client.models().await.unwrap().default_model, "demo");
        instance.stop().await;
    }
}

#[tokio::test]
async fn a_second_instance_on_the_same_folder_is_refused_in_one_line() {
    let folder = TempDir::new().unwrap();
    let first = Instance::start(folder.path(), ANY_PORTS, &[]).await;
    let error = bind(&dev_args(folder.path(), ANY_PORTS), Vars::new()).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.starts_with("another chatbox dev runs on ") && error.contains("--data"), "{error}");
    assert!(!error.contains('\n'), "{error}");
    first.stop().await;
    Instance::start(folder.path(), ANY_PORTS, &[]).await.stop().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_with_the_flag_that_chooses_another() {
    let folder = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for (flag, other) in [("--http", "--grpc"), ("--grpc", "--http")] {
        let args = dev_args(&folder.path().join("data"), &format!("{flag} {address} {other} 127.0.0.1:0"));
        let error = bind(&args, Vars::new()).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains(flag), "{error}");
    }
    assert!(!folder.path().join("data").exists());
}

#[tokio::test]
async fn mistakes_of_both_configurations_are_reported_at_once() {
    let folder = TempDir::new().unwrap();
    let list = [
        ("CHATBOX_CORE_SESSION_HEARTBEAT", "0s"),
        ("CHATBOX_EDGE_SOCKET_PING_INTERVAL", "0s"),
        ("CHATBOX_EDGE_NO", "1"),
    ];
    let error = bind(&dev_args(folder.path(), ANY_PORTS), vars(&list)).await.unwrap_err();
    let mistakes = &error.downcast_ref::<Mistakes>().expect("mistakes").0;
    assert!(mistakes.iter().any(|mistake| mistake.starts_with("core: session.heartbeat")), "{mistakes:?}");
    assert!(mistakes.iter().any(|mistake| mistake.starts_with("edge: ")), "{mistakes:?}");
}

#[tokio::test]
async fn the_link_opens_the_page_of_this_instance_for_its_user() {
    let folder = TempDir::new().unwrap();
    let list = [("CHATBOX_EDGE_PATH_PREFIX", "/talk"), ("CHATBOX_TOKEN_ISSUER", "https://id.test")];
    let instance = Instance::start(folder.path(), ANY_PORTS, &list).await;
    let Started { http, url, token, .. } = &instance.started;
    assert_eq!(*url, format!("http://{http}/talk/#token={token}"));
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let page = client.get(url).send().await.unwrap();
    assert!(page.status().is_success());
    let models = client.get(format!("http://{http}/talk/api/v1/models")).bearer_auth(token).send().await.unwrap();
    assert!(models.text().await.unwrap().contains("\"demo\""));
    let origins = [format!("http://{http}"), format!("http://localhost:{}", http.port())];
    for (origin, accepted) in origins.iter().map(|origin| (origin.as_str(), true)).chain([("http://evil.test", false)])
    {
        let host = origin.strip_prefix("http://").unwrap();
        let upgrade = client
            .get(format!("http://{http}/talk/ws"))
            .header("host", if accepted { host.to_owned() } else { http.to_string() })
            .header("origin", origin)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", format!("chatbox.v1.json, bearer.{token}"));
        let status = upgrade.send().await.unwrap().status();
        assert_eq!(status.as_u16() == 101, accepted, "{origin}: {status}");
    }
    instance.stop().await;
}

#[tokio::test]
async fn models_of_variables_come_before_the_demo_and_can_be_chosen() {
    let folder = TempDir::new().unwrap();
    let list = [
        ("CHATBOX_PROVIDERS_OPENAI_BASE_URL", "http://127.0.0.1:9/v1"),
        ("CHATBOX_MODELS", "[{id = \"one\"}, {id = \"two\", context_tokens = 512, max_output_tokens = 100}]"),
    ];
    let prepared = Prepared::new(&dev_args(folder.path(), ANY_PORTS), vars(&list)).await.unwrap();
    let ids =
        |prepared: &Prepared| prepared.settings.core.models.iter().map(|model| model.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&prepared), ["one", "two", "demo"]);
    assert_eq!(prepared.settings.core.default_model, "one");
    let chosen = [list[0], list[1], ("CHATBOX_DEFAULT_MODEL", "demo")];
    let prepared = Prepared::new(&dev_args(folder.path(), ANY_PORTS), vars(&chosen)).await.unwrap();
    assert_eq!(prepared.settings.core.default_model, "demo");
}
