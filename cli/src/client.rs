//! `ChatCore` over gRPC, as the commands of this program use it.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use chatbox_proto::{
    error_code::ErrorCode,
    settings::Vars,
    status::Failure,
    token::{Role, Secret},
    v1::{
        CreateSessionRequest, EndSessionRequest, GetSessionRequest, ListMessagesRequest, ListMessagesResponse,
        ListModelsRequest, ListModelsResponse, ListSessionsRequest, Message, PageOrder, RotateKeysRequest,
        RotateKeysResponse, Session, admin::chat_admin_client::ChatAdminClient, core::chat_core_client::ChatCoreClient,
    },
};
use tonic::{
    Code, Request, Status, Streaming,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    args::ServerArgs,
    data_dir::DataDir,
    plain_text::plain_line,
    token::{Minter, Subject},
};

const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Longer than the server's own limit for a call, so that its answer is seen.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
const KEEPALIVE: Duration = Duration::from_secs(20);
/// A page of 1,000 messages of 32 KiB is the largest honest answer.
const MAX_ANSWER: usize = 40 << 20;
/// Pages of 1,000 messages that are read for one request of a person.
const MAX_PAGES: usize = 50;
const MAX_PAGE_SIZE: i32 = 1_000;

/// Renewed when the server says that it expires, which it does an hour before at the earliest.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// Adds the token to every call.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(AsciiMetadataValue);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Client of `ChatCore` as one caller.
pub(crate) type Core = ChatCoreClient<InterceptedService<Channel, Bearer>>;

/// Client of `ChatAdmin` as one caller.
pub(crate) type Team = ChatAdminClient<InterceptedService<Channel, Bearer>>;

/// Where the token comes from.
#[derive(Debug)]
enum Credentials {
    Given(Secret),
    /// The folder of an instance on this machine: tokens can be made as they are needed.
    Minted(Box<Minter>, Subject),
}

/// A server, and who we are to it.
#[derive(Debug)]
pub(crate) struct Client {
    url: String,
    channel: Channel,
    credentials: Credentials,
}

impl Client {
    /// Prepares the connection; it is made with the first call. Needs a tokio runtime.
    pub(crate) fn new(args: &ServerArgs, vars: &Vars) -> Result<Self> {
        Self::with_role(args, vars, Role::User)
    }

    /// Like [`new`](Self::new), as an admin if the token is made here.
    pub(crate) fn admin(args: &ServerArgs, vars: &Vars) -> Result<Self> {
        Self::with_role(args, vars, Role::Admin)
    }

    fn with_role(args: &ServerArgs, vars: &Vars, role: Role) -> Result<Self> {
        let url = if args.grpc.contains("://") { args.grpc.clone() } else { format!("http://{}", args.grpc) };
        let mut endpoint = Endpoint::from_shared(url.clone())
            .with_context(|| format!("--grpc {}: must be like http://127.0.0.1:50051", args.grpc))?
            .user_agent(concat!("chatbox/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        if url.starts_with("https:") {
            endpoint = endpoint.tls_config(tls(args.ca.as_deref())?)?;
        }
        Ok(Self { url, channel: endpoint.connect_lazy(), credentials: credentials(args, vars, role)? })
    }

    /// With tokens that live this long.
    #[cfg(test)]
    pub(crate) fn lifetime(mut self, lifetime: Duration) -> Self {
        if let Credentials::Minted(_, subject) = &mut self.credentials {
            subject.lifetime = lifetime;
        }
        self
    }

    /// Whether [`token`](Self::token) can make a fresh one.
    pub(crate) fn renews_tokens(&self) -> bool {
        matches!(self.credentials, Credentials::Minted(..))
    }

    /// A token that is good now.
    pub(crate) fn token(&self) -> Result<String> {
        match &self.credentials {
            Credentials::Given(token) => Ok(token.expose().to_owned()),
            Credentials::Minted(minter, subject) => minter.mint(subject),
        }
    }

    /// The calls of the contract.
    pub(crate) fn core(&self) -> Result<Core> {
        let core = ChatCoreClient::with_interceptor(self.channel.clone(), self.bearer()?);
        Ok(core.max_decoding_message_size(MAX_ANSWER))
    }

    fn bearer(&self) -> Result<Bearer> {
        let mut bearer: AsciiMetadataValue =
            format!("Bearer {}", self.token()?).parse().map_err(|_| anyhow!("--token: this is not a token"))?;
        bearer.set_sensitive(true);
        Ok(Bearer(bearer))
    }

    /// The calls of the team.
    pub(crate) fn team(&self) -> Result<Team> {
        let team = ChatAdminClient::with_interceptor(self.channel.clone(), self.bearer()?);
        Ok(team.max_decoding_message_size(MAX_ANSWER))
    }

    /// Starts a rotation of the data keys; it runs for as long as the answers are read.
    pub(crate) async fn rotate_keys(&self, reason: &str) -> Result<Streaming<RotateKeysResponse>> {
        let mut admin = self.team()?;
        // Without a time limit: there may be millions of keys.
        let answer = admin.rotate_keys(RotateKeysRequest { reason: reason.to_owned() }).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.explain(&status))
    }

    pub(crate) async fn models(&self) -> Result<ListModelsResponse> {
        let answer = self.core()?.list_models(request(ListModelsRequest {})).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.explain(&status))
    }

    /// A new session. `None`: the caller has as many active ones as allowed.
    pub(crate) async fn create_session(&self, model: &str) -> Result<Option<Session>> {
        let message = CreateSessionRequest { model: model.to_owned(), ..CreateSessionRequest::default() };
        match self.core()?.create_session(request(message)).await {
            Ok(answer) => Ok(answer.into_inner().session),
            Err(status) if status.code() == Code::FailedPrecondition => Ok(None),
            Err(status) => Err(self.explain(&status)),
        }
    }

    pub(crate) async fn session(&self, session_id: &str) -> Result<Session> {
        let message = GetSessionRequest { session_id: session_id.to_owned() };
        let answer = self.core()?.get_session(request(message)).await.map_err(|status| self.explain(&status))?;
        answer.into_inner().session.context("the server named no session")
    }

    pub(crate) async fn end_session(&self, session_id: &str) -> Result<Session> {
        let message = EndSessionRequest { session_id: session_id.to_owned() };
        let answer = self.core()?.end_session(request(message)).await.map_err(|status| self.explain(&status))?;
        answer.into_inner().session.context("the server named no session")
    }

    /// The caller's sessions, last activity first, at most `limit`.
    pub(crate) async fn sessions(&self, limit: usize) -> Result<Vec<Session>> {
        let mut core = self.core()?;
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let page_size = i32::try_from(limit - all.len()).unwrap_or(MAX_PAGE_SIZE).min(MAX_PAGE_SIZE);
            let message = ListSessionsRequest { page_size, page_token, ..ListSessionsRequest::default() };
            let page = core.list_sessions(request(message)).await.map_err(|status| self.explain(&status))?.into_inner();
            all.extend(page.sessions);
            page_token = page.next_page_token;
            if page_token.is_empty() || all.len() >= limit {
                all.truncate(limit);
                return Ok(all);
            }
        }
    }

    /// The newest messages of a session, oldest first.
    pub(crate) async fn last_messages(&self, session_id: &str, count: i32) -> Result<ListMessagesResponse> {
        let message = ListMessagesRequest {
            session_id: session_id.to_owned(),
            page_size: count,
            ..ListMessagesRequest::default()
        };
        let answer = self.core()?.list_messages(request(message)).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.explain(&status))
    }

    /// All messages of a session after a position, oldest first.
    pub(crate) async fn messages_after(&self, session_id: &str, after_seq: u64) -> Result<Vec<Message>> {
        let mut core = self.core()?;
        let mut all = Vec::new();
        let mut page_token = String::new();
        for _ in 0..MAX_PAGES {
            let message = ListMessagesRequest {
                session_id: session_id.to_owned(),
                page_size: MAX_PAGE_SIZE,
                page_token,
                order: PageOrder::OldestFirst.into(),
                after_seq,
            };
            let page = core.list_messages(request(message)).await.map_err(|status| self.explain(&status))?.into_inner();
            all.extend(page.messages);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
        Err(anyhow!("the session is too long for this command"))
    }

    /// What a call answered, or its failure in one line.
    pub(crate) fn explained<T>(&self, answer: Result<tonic::Response<T>, Status>) -> Result<T> {
        answer.map(tonic::Response::into_inner).map_err(|status| self.explain(&status))
    }

    /// A failed call in one line, with what to do about it.
    pub(crate) fn explain(&self, status: &Status) -> anyhow::Error {
        let failure = Failure::from(status);
        let from_server = !status.details().is_empty();
        let of_the_way = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
        if of_the_way && !from_server {
            return anyhow!("cannot reach {}: is `chatbox dev` running there? Another address: --grpc", self.url);
        }
        let hint = match (failure.code, &self.credentials) {
            (ErrorCode::Unauthenticated, Credentials::Given(_)) => "; the token is not accepted there, or has expired",
            (ErrorCode::Unauthenticated, Credentials::Minted(..)) => {
                "; the instance there has another data folder: name it with --data, or give --token"
            }
            _ => "",
        };
        anyhow!("{}{hint}", describe(&failure))
    }
}

/// A failure in words.
pub(crate) fn describe(failure: &Failure) -> String {
    let wait = failure.retry_after.map(|wait| format!("; try again in {} s", wait.as_secs_f32().ceil()));
    plain_line(&format!("{}{}", failure.message, wait.unwrap_or_default()))
}

/// A request that gives up some time after the server would have.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_WITHIN);
    request
}

fn tls(ca: Option<&Path>) -> Result<ClientTlsConfig> {
    let Some(file) = ca else { return Ok(ClientTlsConfig::new().with_native_roots()) };
    let pem = std::fs::read(file).with_context(|| format!("--ca {}", file.display()))?;
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))
}

fn credentials(args: &ServerArgs, vars: &Vars, role: Role) -> Result<Credentials> {
    if let Some(token) = args.token.as_ref().filter(|token| !token.is_empty()) {
        return Ok(Credentials::Given(token.clone()));
    }
    let data = DataDir::existing(&args.data.data)?;
    let subject = Subject {
        user_id: args.user.clone(),
        display_name: if args.user == "you" { "You".to_owned() } else { args.user.clone() },
        roles: vec![role],
        scopes: Vec::new(),
        lifetime: TOKEN_LIFETIME,
    };
    Ok(Credentials::Minted(Box::new(Minter::for_data_dir(&data, vars)?), subject))
}
