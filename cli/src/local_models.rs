//! Finds model servers on this machine: Ollama, and llama.cpp's server. Both list their models like OpenAI does.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use reqwest::{Client, redirect};
use serde::{Deserialize, de::DeserializeOwned};

/// Time for one server to answer: it is on this machine, or it is not there.
const ANSWER_WITHIN: Duration = Duration::from_millis(300);
/// An answer above this is not a list of models.
const MAX_ANSWER: usize = 256 * 1024;
/// Models taken from one server.
const MAX_MODELS: usize = 50;
/// Longest id of a model, and of its name at its server.
const MAX_ID: usize = 64;
const MAX_NAME: usize = 200;
/// Tokens when the server does not say. Ollama gives a model this many unless it is configured otherwise.
const CONTEXT_TOKENS: u32 = 4_096;
/// Below this the configuration refuses a model.
const MIN_CONTEXT_TOKENS: u32 = 256;

/// A server that may be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Name of the provider.
    pub(crate) provider: &'static str,
    /// As people call it.
    pub(crate) title: &'static str,
    pub(crate) address: SocketAddr,
}

/// A server that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalServer {
    pub(crate) provider: &'static str,
    pub(crate) title: &'static str,
    /// Where its API begins, `/v1` included.
    pub(crate) base_url: String,
    pub(crate) models: Vec<LocalModel>,
}

/// A model of a local server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalModel {
    /// An id that the configuration takes.
    pub(crate) id: String,
    /// Its name at its server.
    pub(crate) upstream_model: String,
    /// Tokens of prompt and answer together.
    pub(crate) context_tokens: u32,
}

/// Where such servers listen unless told otherwise. Our own address is not asked.
pub(crate) fn candidates(own: &[SocketAddr]) -> Vec<Candidate> {
    let at = |provider, title, port| Candidate { provider, title, address: SocketAddr::from(([127, 0, 0, 1], port)) };
    let mut all =
        vec![at("ollama", "Ollama", 11_434), at("llamacpp", "llama.cpp", 8_081), at("llamacpp2", "llama.cpp", 8_080)];
    all.retain(|candidate| !own.iter().any(|own| own.port() == candidate.address.port()));
    all
}

/// Asks all of them at once, and returns those that have a model, in the order of the candidates.
pub(crate) async fn find(candidates: &[Candidate]) -> Vec<LocalServer> {
    // A proxy has no business between us and this machine.
    let client = Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .connect_timeout(ANSWER_WITHIN)
        .timeout(ANSWER_WITHIN)
        .build();
    let Ok(client) = client else { return Vec::new() };
    let answers = join_all(candidates.iter().map(|candidate| ask(&client, candidate))).await;
    let mut servers: Vec<LocalServer> = answers.into_iter().flatten().collect();
    unique_ids(&mut servers);
    servers
}

#[derive(Deserialize)]
struct List {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
}

/// What llama.cpp's server says about itself.
#[derive(Deserialize)]
struct Props {
    default_generation_settings: Defaults,
}

#[derive(Deserialize)]
struct Defaults {
    n_ctx: u32,
}

async fn ask(client: &Client, candidate: &Candidate) -> Option<LocalServer> {
    let base_url = format!("http://{}/v1", candidate.address);
    let list: List = get(client, &format!("{base_url}/models")).await?;
    let props: Option<Props> = get(client, &format!("http://{}/props", candidate.address)).await;
    let context = props.map_or(CONTEXT_TOKENS, |props| props.default_generation_settings.n_ctx);
    let context_tokens = context.max(MIN_CONTEXT_TOKENS);
    let models: Vec<_> = list
        .data
        .into_iter()
        .filter(|listed| chats(&listed.id))
        .take(MAX_MODELS)
        .filter_map(|listed| {
            let id = id_of(&listed.id)?;
            Some(LocalModel { id, upstream_model: listed.id, context_tokens })
        })
        .collect();
    let &Candidate { provider, title, .. } = candidate;
    (!models.is_empty()).then_some(LocalServer { provider, title, base_url, models })
}

async fn get<T: DeserializeOwned>(client: &Client, url: &str) -> Option<T> {
    let mut answer = client.get(url).send().await.ok()?.error_for_status().ok()?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            return None;
        }
    }
    serde_json::from_slice(&body).ok()
}

/// Models that make vectors or transcripts are listed among the others.
fn chats(name: &str) -> bool {
    let name = name.to_lowercase();
    !["embed", "rerank", "whisper"].iter().any(|other| name.contains(other))
}

/// An id from a name: llama.cpp calls a model by its file unless it is told a name.
fn id_of(name: &str) -> Option<String> {
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return None;
    }
    let file = name.strip_suffix(".gguf").map(|path| path.rsplit(['/', '\\']).next().unwrap_or(path));
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
    let id: String = file.unwrap_or(name).chars().map(|c| if allowed(c) { c } else { '-' }).take(MAX_ID).collect();
    (!id.is_empty()).then_some(id)
}

/// Two servers may have a model of the same name: the later one is called after its server too. What still is there
/// twice is left out.
fn unique_ids(servers: &mut [LocalServer]) {
    let mut taken = std::collections::HashSet::from(["demo".to_owned()]);
    for server in servers {
        let provider = server.provider;
        server.models.retain_mut(|model| {
            if taken.contains(&model.id) {
                model.id = format!("{provider}/{}", model.id).chars().take(MAX_ID).collect();
            }
            taken.insert(model.id.clone())
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinSet,
    };

    use super::*;

    /// A server that answers every path that begins with the one of a pair with its body, and others with 404.
    async fn server(tasks: &mut JoinSet<()>, pages: &'static [(&'static str, &'static str)]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let read = socket.read(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request[..read]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                let page = pages.iter().find(|(at, _)| *at == path);
                let (status, body) = page.map_or(("404 Not Found", ""), |(_, body)| ("200 OK", *body));
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    fn candidate(provider: &'static str, address: SocketAddr) -> Candidate {
        Candidate { provider, title: "a server", address }
    }

    #[tokio::test]
    async fn models_of_several_servers_are_found_under_ids_of_their_own() {
        let mut tasks = JoinSet::new();
        let ollama: &[_] = &[(
            "/v1/models",
            r#"{"object":"list","data":[{"id":"llama3.2:3b","object":"model"},{"id":"nomic-embed-text:latest"}]}"#,
        )];
        let llama: &[_] = &[
            ("/v1/models", r#"{"data":[{"id":"/models/My Model.gguf","meta":{}},{"id":"llama3.2:3b"}]}"#),
            ("/props", r#"{"default_generation_settings":{"n_ctx":2048,"params":{}},"total_slots":1}"#),
        ];
        let first = candidate("ollama", server(&mut tasks, ollama).await);
        let second = candidate("llamacpp", server(&mut tasks, llama).await);
        let found = find(&[first.clone(), second]).await;
        let models: Vec<_> = found
            .iter()
            .flat_map(|server| {
                server.models.iter().map(|m| (m.id.as_str(), m.upstream_model.as_str(), m.context_tokens))
            })
            .collect();
        assert_eq!(
            models,
            [
                ("llama3.2:3b", "llama3.2:3b", 4096),
                ("My-Model", "/models/My Model.gguf", 2048),
                ("llamacpp/llama3.2:3b", "llama3.2:3b", 2048),
            ]
        );
        assert_eq!(found[0].base_url, format!("http://{}/v1", first.address));
    }

    #[tokio::test]
    async fn who_is_not_there_or_hangs_or_talks_of_something_else_is_not_found() {
        let mut tasks = JoinSet::new();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        // Accepts, for the kernel does, and never answers.
        let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = server(&mut tasks, &[("/v1/models", "<html>"), ("/props", "{}")]).await;
        let empty = server(&mut tasks, &[("/v1/models", r#"{"data":[]}"#)]).await;
        let all = [gone, hangs.local_addr().unwrap(), web, empty].map(|address| candidate("x", address));
        assert_eq!(find(&all).await, []);
    }

    #[test]
    fn our_own_port_is_not_asked() {
        let own = [SocketAddr::from(([127, 0, 0, 1], 8080))];
        let ports = |own: &[SocketAddr]| candidates(own).iter().map(|c| c.address.port()).collect::<Vec<_>>();
        assert_eq!(ports(&own), [11_434, 8_081]);
        assert_eq!(ports(&[]), [11_434, 8_081, 8_080]);
    }

    #[test]
    fn an_id_is_what_the_configuration_takes() {
        for (name, id) in [("a/b:c", Some("a/b:c")), ("C:\\m\\x y.gguf", Some("x-y")), ("", None), ("a\nb", None)] {
            assert_eq!(id_of(name).as_deref(), id, "{name}");
        }
        assert_eq!(id_of(&"x".repeat(100)).unwrap().len(), MAX_ID);
    }
}
