//! The way to a room: what it is told and asked, over a bounded channel.

use std::sync::Arc;

use chatbox_proto::{ids::MessageId, status::Failure, v1};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Act, Attach, Change, SubscriberId};
use crate::{
    domain::entry::{Message, Sender, Seq},
    session::{error::shutting_down, queue::Place},
    store::{HandoffRow, RequestKey},
};

/// What a subscriber wants, checked for form.
#[derive(Debug)]
pub enum Frame {
    /// Write a message.
    Send(Message),
    /// Stop the running reply.
    Stop(MessageId),
    /// End the session.
    EndSession,
    /// Ask for a person, for this reason.
    RequestHelp(String),
    /// Choose the model that answers; whether there is one of that id, for the caller, was checked.
    SelectModel(String),
    /// Have the last reply generated once more.
    Regenerate(MessageId),
    /// Somebody is writing, or stopped.
    Typing(bool),
    /// Somebody has read up to here.
    Read(Seq),
}

pub(in crate::session) enum Command {
    Attach(Attach),
    Frame {
        subscriber: SubscriberId,
        request_id: String,
        frame: Frame,
    },
    HalfClose(SubscriberId),
    Detach(SubscriberId),
    End {
        by: Sender,
        done: oneshot::Sender<Result<v1::Session, Failure>>,
    },
    Erase {
        by: Sender,
        done: oneshot::Sender<Result<v1::Session, Failure>>,
    },
    /// A change of the session as a whole.
    Change {
        change: Change,
        done: oneshot::Sender<Result<v1::Session, Failure>>,
    },
    /// Nothing was written after this entry for as long as a session may stand still.
    Idle(Seq),
    /// An admin does something to the session.
    Act {
        act: Act,
        by: Sender,
        request: Option<RequestKey>,
        done: oneshot::Sender<Result<v1::Session, Failure>>,
    },
    /// Nobody has written the session's row for a while.
    StandsStill(HandoffRow),
    /// Where the session is in the queue now, if it is.
    Placed(Option<Place>),
    /// The head as the store told it to a read that began then.
    StoreHead {
        head: Seq,
        read_at: Instant,
    },
    /// Nobody renews the reply that runs by the log: its row at this number of renewals, or none.
    Dead(Option<(MessageId, u64)>),
}

/// Reaches one room. Sending fails when the room has closed: then look it up again.
#[derive(Debug, Clone)]
pub struct RoomHandle {
    /// Boxed: the channel keeps 32 places for each room, however small its bound is.
    pub(super) commands: mpsc::Sender<Box<Command>>,
    pub(super) owner: Arc<str>,
}

/// The room has closed.
#[derive(Debug, Clone, Copy)]
pub(in crate::session) struct RoomClosed;

impl RoomHandle {
    pub(in crate::session) fn owner(&self) -> &str {
        &self.owner
    }

    pub(in crate::session) fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    pub(in crate::session) async fn command(&self, command: Command) -> Result<(), RoomClosed> {
        self.commands.send(Box::new(command)).await.map_err(|_| RoomClosed)
    }

    /// For hints that may be lost.
    pub(in crate::session) fn hint_store_head(&self, head: Seq, read_at: Instant) {
        let _ = self.commands.try_send(Box::new(Command::StoreHead { head, read_at }));
    }

    /// For hints that may be lost: who opens the session is told its place as it is then.
    pub(in crate::session) fn hint_place(&self, place: Option<Place>) {
        let _ = self.commands.try_send(Box::new(Command::Placed(place)));
    }

    /// Hands a subscriber's frame to the room; the answer comes on the subscriber's queue.
    ///
    /// # Errors
    /// The room has closed.
    pub async fn frame(&self, subscriber: SubscriberId, request_id: String, frame: Frame) -> Result<(), Failure> {
        let command = Command::Frame { subscriber, request_id, frame };
        self.command(command).await.map_err(|RoomClosed| shutting_down())
    }

    /// Waits until the room has closed.
    pub async fn closed(&self) {
        self.commands.closed().await;
    }

    /// The subscriber sends nothing more: its stream ends once nothing it waits for is left.
    pub async fn half_close(&self, subscriber: SubscriberId) {
        let _ = self.command(Command::HalfClose(subscriber)).await;
    }

    /// The subscriber is gone.
    pub async fn detach(&self, subscriber: SubscriberId) {
        let _ = self.command(Command::Detach(subscriber)).await;
    }
}
