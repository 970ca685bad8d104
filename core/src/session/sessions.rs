//! What the layer above can do with sessions. Every operation on a session id goes through [`Sessions::owned`]: one gate,
//! one answer for unknown and foreign ids.

use chatbox_proto::{error_code::ErrorCode, ids::SessionId, status::Failure, v1};
use tokio::sync::oneshot;

use super::{
    directory::Directory,
    error::session_limit,
    event,
    history::{Bounds, HistoryReader, Page},
    log,
    room::{Act, Attach, Change, Command, RoomHandle, SubscriberId},
};
use crate::{
    domain::{
        entry::{Sender, SenderRole, Seq},
        session::SessionState,
        time::Timestamp,
    },
    seal::InstallationSecret,
    store::{Created, HandoffStore, Header, NewSession, RequestKey, SlotRule},
};

/// Looks for a session of one's own give up after so many tries: each failure means that a session ended or a room closed
/// in between.
pub(super) const TRIES: usize = 4;

/// Bytes of the messages of one page, encoded: gRPC clients take 4 MiB unless told otherwise. A reply alone is at most 3 MiB
/// by the configuration, so that every page, event and entry stays below those 4.
pub(super) const PAGE_BYTES: usize = 3 * 1024 * 1024;

/// Sessions, for the users and services they belong to.
#[derive(Debug, Clone)]
pub struct Sessions {
    pub(super) directory: Directory,
}

/// A stream's hold on a session.
#[derive(Debug, Clone)]
pub struct OpenSession {
    /// The room.
    pub room: RoomHandle,
    /// The stream within it.
    pub subscriber: SubscriberId,
}

/// A page of messages.
#[derive(Debug)]
pub struct MessagePage {
    /// Oldest first.
    pub messages: Vec<v1::Message>,
    /// Where the next page goes on.
    pub next: Option<Seq>,
    /// The head when the page was read.
    pub head: Seq,
}

impl Sessions {
    /// On top of a directory.
    #[must_use]
    pub fn new(directory: Directory) -> Self {
        Self { directory }
    }

    /// Opaque per caller and installation, for abuse detection at a provider.
    #[must_use]
    pub fn user_hash(&self, caller: &str) -> String {
        self.directory.user_hash(caller)
    }

    /// The one gate: the header of a session, if it is the caller's.
    ///
    /// # Errors
    /// The same `NOT_FOUND` for unknown and foreign ids.
    pub async fn owned(&self, caller: &str, id: SessionId) -> Result<Header, Failure> {
        let header = self.directory.header(id).await?;
        header.filter(|header| header.owner == caller).ok_or_else(Failure::session_not_found)
    }

    pub(super) async fn header(&self, id: SessionId) -> Result<Option<Header>, Failure> {
        self.directory.header(id).await
    }

    pub(super) fn log(&self, header: &Header) -> Result<log::SessionLog, super::SessionError> {
        self.directory.log(header)
    }

    pub(super) fn secret(&self) -> &InstallationSecret {
        &self.directory.shared.secret
    }

    /// The same gate for rooms.
    async fn owned_room(&self, caller: &str, id: SessionId) -> Result<RoomHandle, Failure> {
        if let Some(room) = self.directory.live(id) {
            return if room.owner() == caller { Ok(room) } else { Err(Failure::session_not_found()) };
        }
        let header = self.owned(caller, id).await?;
        self.directory.room_of(header).await
    }

    /// Whose session it is, for whoever decides in which capacity the caller may see it.
    ///
    /// # Errors
    /// `NOT_FOUND`; failures of the store.
    pub async fn owner(&self, id: SessionId) -> Result<String, Failure> {
        if let Some(room) = self.directory.live(id) {
            return Ok(room.owner().to_owned());
        }
        self.directory.header(id).await?.map(|header| header.owner).ok_or_else(Failure::session_not_found)
    }

    /// Any session, for admins.
    ///
    /// # Errors
    /// `NOT_FOUND`; failures of the store.
    pub async fn inspect(&self, id: SessionId) -> Result<v1::Session, Failure> {
        let header = self.directory.header(id).await?.ok_or_else(Failure::session_not_found)?;
        self.wire(&header).await
    }

    /// Messages of any session, for admins: the newest page below `before`, oldest first.
    ///
    /// # Errors
    /// `NOT_FOUND`; failures of the store.
    pub async fn inspect_messages(
        &self,
        id: SessionId,
        before: Option<Seq>,
        limit: usize,
    ) -> Result<MessagePage, Failure> {
        let header = self.directory.header(id).await?.ok_or_else(Failure::session_not_found)?;
        self.page_before(&header, before, 0, limit).await
    }

    pub(super) fn complete(&self, id: SessionId, session: &mut v1::Session) {
        self.directory.shared.queue.complete(id, session);
    }

    pub(super) fn handoffs(&self) -> &dyn HandoffStore {
        &*self.directory.shared.handoffs
    }

    pub(super) fn call_limit(&self) -> std::time::Duration {
        self.directory.shared.limits.store_call
    }

    pub(super) fn report(&self, error: &super::SessionError, what: &'static str) -> Failure {
        self.directory.shared.report(error, what)
    }

    /// Somebody of the team has shown up.
    pub fn team_is_there(&self) {
        self.directory.shared.queue.team_is_there();
    }

    /// What an admin does to a session. `request_id` names the call: repeated, it is the same call, and nothing is done again.
    ///
    /// # Errors
    /// `NOT_FOUND`, `FAILED_PRECONDITION` with what stands in the way, `ALREADY_EXISTS` `REQUEST_ID_REUSED`, failures of the
    /// store.
    pub async fn act(&self, admin: &Sender, id: SessionId, act: Act, request_id: &str) -> Result<v1::Session, Failure> {
        let secret = &self.directory.shared.secret;
        let request = (!request_id.is_empty()).then(|| RequestKey {
            id: secret.hash("admin call", &[admin.user_id.as_bytes(), request_id.as_bytes()]),
            content: secret.hash("admin call content", &[format!("{act:?}").as_bytes()]),
        });
        for _ in 0..TRIES {
            let room = self.directory.room(id).await?;
            let (done, answer) = oneshot::channel();
            let command = Command::Act { act: act.clone(), by: admin.clone(), request: request.clone(), done };
            if room.command(command).await.is_ok()
                && let Ok(result) = answer.await
            {
                return result;
            }
        }
        Err(super::error::shutting_down())
    }

    /// Makes a session.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` `SESSION_LIMIT`, `ALREADY_EXISTS` `REQUEST_ID_REUSED`, `INVALID_ARGUMENT` for an unknown model.
    pub async fn create(&self, owner: &str, model: &str, request_id: &str) -> Result<v1::Session, Failure> {
        let model_id = self.model(model)?;
        self.share(owner)?;
        let secret = &self.directory.shared.secret;
        let request = (!request_id.is_empty()).then(|| RequestKey {
            id: secret.hash("create session", &[owner.as_bytes(), request_id.as_bytes()]),
            content: secret.hash("create session content", &[model.as_bytes()]),
        });
        let slot = self.directory.shared.limits.slot_rule();
        match self.store_new(owner, model_id, slot, request).await? {
            Created::New(header) | Created::Repeated(header) => self.wire(&header).await,
            Created::SlotTaken(_) => Err(session_limit()),
            Created::RequestReused => Err(Failure::new(
                ErrorCode::AlreadyExists,
                "REQUEST_ID_REUSED",
                "this request_id was used with other fields",
            )),
        }
    }

    /// One more write of a user, of those that a minute has.
    fn share(&self, user_id: &str) -> Result<(), Failure> {
        let shared = &self.directory.shared;
        shared.quota.write(user_id).inspect_err(|_| shared.metrics.limited("too_many_messages"))
    }

    async fn store_new(
        &self,
        owner: &str,
        model: String,
        slot: SlotRule,
        request: Option<RequestKey>,
    ) -> Result<Created, Failure> {
        let shared = &self.directory.shared;
        let id = SessionId::generate();
        let (key, wrapped_key) = shared.ring.new_data_key(id);
        let created_at = Timestamp::now();
        let state = SessionState::new(model, created_at);
        let derived = log::derive(id, &key, &state)
            .map_err(|error| self.directory.shared.report(&error, "a session could not be sealed"))?;
        let new = NewSession { id, owner: owner.to_owned(), slot, wrapped_key, created_at, request, derived };
        let call = tokio::time::timeout(shared.limits.store_call, shared.store.create_session(new)).await;
        call.map_err(|_| super::SessionError::StoreTimeout).and_then(|result| result.map_err(Into::into)).map_err(
            |error| {
                let failure = self.directory.shared.report(&error, "a session could not be made");
                if error.outcome_unknown() { failure.outcome_unknown() } else { failure }
            },
        )
    }

    fn model(&self, id: &str) -> Result<String, Failure> {
        let models = &self.directory.shared.models;
        if id.is_empty() {
            return Ok(models.default_model().info.id.clone());
        }
        match models.get(id) {
            Some(_) => Ok(id.to_owned()),
            None => Err(Failure::invalid("model", "must be the id of a model from ListModels")),
        }
    }

    /// One session of the caller.
    ///
    /// # Errors
    /// `NOT_FOUND`; failures of the store.
    pub async fn get(&self, caller: &str, id: SessionId) -> Result<v1::Session, Failure> {
        let header = self.owned(caller, id).await?;
        self.wire(&header).await
    }

    /// The session at its head.
    async fn wire(&self, header: &Header) -> Result<v1::Session, Failure> {
        let read = async {
            let log = self.directory.log(header)?;
            log.state(&header.derived).await
        };
        if header.is_erased() {
            return Err(Failure::session_not_found());
        }
        let state = read.await.map_err(|error| self.directory.shared.report(&error, "a session could not be read"))?;
        if state.erased {
            return Err(Failure::session_not_found());
        }
        let mut session = event::wire_session(&header.id.to_string(), &header.owner, header.created_at, &state);
        self.directory.shared.queue.complete(header.id, &mut session);
        Ok(session)
    }

    /// Messages of a session, newest page first: up to `limit` below `before`, down to and without `after`. A page may be
    /// shorter: it is bounded by bytes too.
    ///
    /// # Errors
    /// `NOT_FOUND`; failures of the store.
    pub async fn messages_before(
        &self,
        caller: &str,
        id: SessionId,
        before: Option<Seq>,
        after: Seq,
        limit: usize,
    ) -> Result<MessagePage, Failure> {
        let header = self.owned(caller, id).await?;
        self.page_before(&header, before, after, limit).await
    }

    async fn page_before(
        &self,
        header: &Header,
        before: Option<Seq>,
        after: Seq,
        limit: usize,
    ) -> Result<MessagePage, Failure> {
        let read = async {
            let log = self.directory.log(header)?;
            let head = log.call(log.store.head(header.id)).await?;
            let page =
                HistoryReader::new(&log).page_before(before.unwrap_or(head + 1), after, page_bounds(limit)).await?;
            let mut page = message_page(page, head);
            page.messages.reverse();
            Ok(page)
        };
        read.await
            .map_err(|error: super::SessionError| self.directory.shared.report(&error, "messages could not be read"))
    }

    /// Messages of a session from `after` on, oldest first; bounded like the others.
    ///
    /// # Errors
    /// `NOT_FOUND`; failures of the store.
    pub async fn messages_after(
        &self,
        caller: &str,
        id: SessionId,
        after: Seq,
        limit: usize,
    ) -> Result<MessagePage, Failure> {
        let header = self.owned(caller, id).await?;
        let read = async {
            let log = self.directory.log(&header)?;
            let head = log.call(log.store.head(id)).await?;
            Ok(message_page(HistoryReader::new(&log).page_after(after, page_bounds(limit)).await?, head))
        };
        read.await
            .map_err(|error: super::SessionError| self.directory.shared.report(&error, "messages could not be read"))
    }

    /// Ends a session; an ended one is returned unchanged.
    ///
    /// # Errors
    /// `NOT_FOUND`; failures of the store.
    pub async fn end(&self, caller: &Sender, id: SessionId) -> Result<v1::Session, Failure> {
        self.share(&caller.user_id)?;
        for _ in 0..TRIES {
            let room = self.owned_room(&caller.user_id, id).await?;
            let (done, answer) = oneshot::channel();
            if room.command(Command::End { by: caller.clone(), done }).await.is_ok()
                && let Ok(result) = answer.await
            {
                return result;
            }
        }
        Err(super::error::shutting_down())
    }

    /// Gives a session another name.
    ///
    /// # Errors
    /// `NOT_FOUND`; failures of the store.
    pub async fn rename(&self, caller: &str, id: SessionId, name: String) -> Result<v1::Session, Failure> {
        self.change(caller, id, Change::Rename { name, automatic: false }).await
    }

    /// Makes an ended session active again; an active one is returned unchanged.
    ///
    /// # Errors
    /// `NOT_FOUND`, `FAILED_PRECONDITION` `SESSION_LIMIT`; failures of the store.
    pub async fn reopen(&self, caller: &Sender, id: SessionId) -> Result<v1::Session, Failure> {
        self.change(&caller.user_id, id, Change::Reopen(caller.clone())).await
    }

    /// Has the session's room make a change.
    pub(super) async fn change(&self, caller: &str, id: SessionId, change: Change) -> Result<v1::Session, Failure> {
        for _ in 0..TRIES {
            let room = self.owned_room(caller, id).await?;
            let (done, answer) = oneshot::channel();
            if room.command(Command::Change { change: change.clone(), done }).await.is_ok()
                && let Ok(result) = answer.await
            {
                return result;
            }
        }
        Err(super::error::shutting_down())
    }

    /// Attaches a stream to a session of the caller: the one that is named, else the active one, else a new one.
    ///
    /// # Errors
    /// `NOT_FOUND`, limits, failures of the store.
    pub async fn attach(
        &self,
        caller: &Sender,
        session: Option<SessionId>,
        model: &str,
        mut join: impl FnMut(bool, oneshot::Sender<Result<SubscriberId, Failure>>) -> Attach,
    ) -> Result<OpenSession, Failure> {
        // One that was found as the active one may be erased by now: then it is not active any more.
        let erased = |failure: &Failure| session.is_none() && failure.code == ErrorCode::NotFound;
        for _ in 0..TRIES {
            let found = match session {
                Some(id) if caller.role == SenderRole::Admin => self.directory.room(id).await.map(|room| (room, false)),
                Some(id) => self.owned_room(&caller.user_id, id).await.map(|room| (room, false)),
                None => {
                    let (header, created) = self.active_or_new(&caller.user_id, model).await?;
                    self.directory.room_of(header).await.map(|room| (room, created))
                }
            };
            let (room, created) = match found {
                Err(failure) if erased(&failure) => continue,
                found => found?,
            };
            let (done, answer) = oneshot::channel();
            if room.command(Command::Attach(join(created, done))).await.is_err() {
                continue;
            }
            match answer.await {
                Ok(Err(failure)) if erased(&failure) => {}
                Ok(result) => return Ok(OpenSession { subscriber: result?, room }),
                Err(_) => {}
            }
        }
        Err(super::error::shutting_down())
    }

    /// Concurrent first opens meet in slot 0: one makes the session, the others find it.
    async fn active_or_new(&self, owner: &str, model: &str) -> Result<(Header, bool), Failure> {
        let shared = &self.directory.shared;
        let call = tokio::time::timeout(shared.limits.store_call, shared.store.active_session(owner)).await;
        let active = call
            .map_err(|_| super::SessionError::StoreTimeout)
            .and_then(|result| result.map_err(Into::into))
            .map_err(|error| self.directory.shared.report(&error, "the active session could not be read"))?;
        if let Some(header) = active {
            return Ok((header, false));
        }
        let model = self.model(model)?;
        match self.store_new(owner, model, SlotRule::First, None).await? {
            Created::New(header) => Ok((header, true)),
            Created::SlotTaken(header) | Created::Repeated(header) => Ok((header, false)),
            // Only calls with a request id can find it reused.
            Created::RequestReused => Err(Failure::internal()),
        }
    }
}

fn page_bounds(messages: usize) -> Bounds {
    Bounds { messages, bytes: PAGE_BYTES }
}

fn message_page(page: Page, head: Seq) -> MessagePage {
    let next = page.messages.last().filter(|_| page.more).map(|message| message.seq);
    MessagePage { messages: page.messages, next, head }
}
