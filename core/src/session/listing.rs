//! An owner's sessions in pages: all of them, or those with a name.

use chatbox_proto::{ids::SessionId, status::Failure, v1};

use super::{error::SessionError, event, sessions::Sessions};
use crate::{
    domain::time::Timestamp,
    store::{Header, SessionQuery},
};

/// Sessions that one search looks through, and how many at once.
const SEARCHED: usize = 2_000;
const SEARCH_PAGE: u32 = 200;

/// A page of an owner's sessions.
#[derive(Debug)]
pub struct SessionPage {
    /// Latest activity first.
    pub sessions: Vec<v1::Session>,
    /// Where the next page goes on.
    pub next: Option<(Timestamp, SessionId)>,
}

impl Sessions {
    /// A page of the caller's sessions, latest activity first.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn list(
        &self,
        caller: &str,
        ended: Option<bool>,
        after: Option<(Timestamp, SessionId)>,
        limit: u32,
    ) -> Result<SessionPage, Failure> {
        // One more than wanted tells whether there is a next page.
        let mut headers = self.headers(caller, ended, after, limit + 1).await?;
        let more = headers.len() > limit as usize;
        headers.truncate(limit as usize);
        let next = headers.last().filter(|_| more).map(place);
        Ok(SessionPage { sessions: headers.iter().map(|header| self.listed(header)).collect(), next })
    }

    /// As [`list`](Self::list), those whose name contains this text, compared without case. Names are sealed, so that each
    /// has to be opened: a call looks through 2,000 sessions, and the page after it goes on behind them.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn search(
        &self,
        caller: &str,
        name_contains: &str,
        ended: Option<bool>,
        after: Option<(Timestamp, SessionId)>,
        limit: u32,
    ) -> Result<SessionPage, Failure> {
        let wanted = name_contains.to_lowercase();
        let (mut sessions, mut after, mut looked) = (Vec::new(), after, 0);
        loop {
            let headers = self.headers(caller, ended, after, SEARCH_PAGE).await?;
            for header in &headers {
                if sessions.len() == limit as usize || looked == SEARCHED {
                    return Ok(SessionPage { sessions, next: after });
                }
                let session = self.listed(header);
                if session.name.to_lowercase().contains(&wanted) {
                    sessions.push(session);
                }
                after = Some(place(header));
                looked += 1;
            }
            if headers.len() < SEARCH_PAGE as usize {
                return Ok(SessionPage { sessions, next: None });
            }
        }
    }

    /// A page of the headers.
    pub(super) async fn headers(
        &self,
        caller: &str,
        ended: Option<bool>,
        after: Option<(Timestamp, SessionId)>,
        limit: u32,
    ) -> Result<Vec<Header>, Failure> {
        let shared = &self.directory.shared;
        let query = SessionQuery { owner: caller.to_owned(), ended, after, limit };
        let call = tokio::time::timeout(shared.limits.store_call, shared.store.list_sessions(query)).await;
        call.map_err(|_| SessionError::StoreTimeout)
            .and_then(|result| result.map_err(Into::into))
            .map_err(|error| self.directory.shared.report(&error, "sessions could not be listed"))
    }

    /// A session of a list. Its folded state may be a moment old; a list is.
    fn listed(&self, header: &Header) -> v1::Session {
        let read = || {
            let log = self.directory.log(header)?;
            log.open_state(&header.derived)
        };
        match read() {
            Ok(state) => event::wire_session(&header.id.to_string(), &header.owner, header.created_at, &state),
            // The others must not be lost for it, and whoever owns it has to see that it is there and what became of it:
            // reading it fails with `DATA_LOSS`.
            Err(error) => {
                self.directory.shared.report(&error, "a session of a list could not be read");
                event::unreadable_session(header)
            }
        }
    }
}

/// Where a session stands in its owner's list.
pub(super) fn place(header: &Header) -> (Timestamp, SessionId) {
    (header.derived.last_activity, header.id)
}
