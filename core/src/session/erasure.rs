//! Erasure of a session: first a fence in its log, after which no core appends anything, then the destruction of its key and
//! of all that is not sealed under it. The fence makes the order certain: whoever still has the session open learns from its
//! log that there is none any more, and whatever was on its way finds the head moved.
//!
//! Between the two the session is unfinished. Whoever opens it destroys it, and the sweep of every core opens it when nobody
//! else has: a core that dies in between leaves nothing behind.

use std::time::Duration;

use chatbox_proto::{error_code::ErrorCode, ids::SessionId, status::Failure};
use tokio::sync::oneshot;

use super::{
    directory::{Directory, Phase},
    error::{SessionError, shutting_down},
    listing::place,
    room::Command,
    sessions::{Sessions, TRIES},
};
use crate::{
    domain::entry::{Sender, Seq},
    store::StoreError,
};

/// Sessions per read while all of a user's are erased.
const ERASE_PAGE: u32 = 100;

/// Between two tries to destroy a key: doubled each time, up to the longest, until this core leaves.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Directory {
    /// Erases a session that exists; one that is erased already is left so. Dropping the future leaves all of it or nothing:
    /// what has begun goes on.
    ///
    /// # Errors
    /// Failures of the store. After one whose outcome is unknown the fence may be there: the destruction then follows.
    pub(super) async fn erase(&self, id: SessionId, by: Sender) -> Result<(), Failure> {
        if *self.shared.phase.borrow() != Phase::Serving {
            return Err(shutting_down());
        }
        let (told, answer) = oneshot::channel();
        let directory = self.clone();
        self.shared.tasks.spawn(async move {
            match directory.fence(id, by).await {
                Ok(Some(fence)) => directory.destroy_in_time(id, fence, told).await,
                // Whoever asked may be gone.
                Ok(None) => drop(told.send(Ok(()))),
                Err(failure) => drop(told.send(Err(failure))),
            }
        });
        answer.await.unwrap_or_else(|_| Err(shutting_down()))
    }

    /// Writes the fence, and returns its number; `None` when the session is erased already.
    async fn fence(&self, id: SessionId, by: Sender) -> Result<Option<Seq>, Failure> {
        for _ in 0..TRIES {
            let room = match self.room(id).await {
                Ok(room) => room,
                // Opening it has found the fence, and destroyed it.
                Err(failure) if failure.code == ErrorCode::NotFound => return Ok(None),
                Err(failure) => return Err(failure),
            };
            let (done, answer) = oneshot::channel();
            if room.command(Command::Erase { by: by.clone(), done }).await.is_ok()
                && let Ok(result) = answer.await
            {
                return result.map(|session| Some(session.head));
            }
        }
        Err(shutting_down())
    }

    /// Destroys until it is done or this core leaves. Whoever waits is told of the first failure.
    async fn destroy_in_time(&self, id: SessionId, fence: Seq, told: oneshot::Sender<Result<(), Failure>>) {
        let mut told = Some(told);
        let mut tell = |result| told.take().map(|told| told.send(result));
        let mut phase = self.shared.phase.clone();
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(error) = self.destroy(id, fence).await else {
                tell(Ok(()));
                return;
            };
            let failure = self.shared.report(&error, "an erased session could not be destroyed yet");
            tell(Err(failure.outcome_unknown()));
            tokio::select! {
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    /// Destroys what a session with this fence can be read with.
    pub(super) async fn destroy(&self, id: SessionId, fence: Seq) -> Result<(), SessionError> {
        // Ahead of the key: afterwards nobody looks for what is left.
        self.in_time(self.shared.shares.remove_shares(id)).await?;
        self.in_time(self.shared.store.erase_session(id, fence)).await?;
        tracing::info!(session.id = %id, "a session was erased");
        Ok(())
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, SessionError> {
        let call = tokio::time::timeout(self.shared.limits.store_call, call);
        Ok(call.await.map_err(|_| SessionError::StoreTimeout)??)
    }
}

impl Sessions {
    /// Destroys a session of the caller and everything in it; one that they have erased before stays so.
    ///
    /// # Errors
    /// `NOT_FOUND`; failures of the store.
    pub async fn erase(&self, caller: &Sender, id: SessionId) -> Result<(), Failure> {
        let header = self.directory.any_header(id).await?;
        let header = header.filter(|header| header.owner == caller.user_id).ok_or_else(Failure::session_not_found)?;
        if header.is_erased() {
            return Ok(());
        }
        self.directory.erase(id, caller.clone()).await
    }

    /// Destroys all sessions that a user has when this begins, and says how many. Cut anywhere, it can be done again.
    ///
    /// # Errors
    /// Failures of the store: those that were destroyed stay so.
    pub async fn erase_all(&self, owner: &str, by: &Sender) -> Result<u64, Failure> {
        let (mut erased, mut after) = (0, None);
        loop {
            let page = self.headers(owner, None, after, ERASE_PAGE).await?;
            let Some(last) = page.last() else { return Ok(erased) };
            after = Some(place(last));
            for header in page {
                self.directory.erase(header.id, by.clone()).await?;
                erased += 1;
            }
        }
    }
}
