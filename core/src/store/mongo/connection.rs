//! The way to the servers: how the driver is set up, whom it may talk to, and the collections.

use std::time::Duration;

use mongodb::{
    Client, ClientSession, Collection, Database,
    bson::{RawDocumentBuf, doc},
    options::{Acknowledgment, ClientOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern},
};

use super::{MongoOptions, fault::Fault, schema};

/// The database when the URI names none.
const DATABASE: &str = "chatbox";
/// Who the connections belong to, in the server's log.
const APPLICATION: &str = "chatbox-core";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often servers are looked at while all is well; a failed call looks at once.
const HEARTBEAT: Duration = Duration::from_secs(2);

pub(super) type Documents = Collection<RawDocumentBuf>;

/// The collections.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) database: Database,
    pub(super) sessions: Documents,
    pub(super) log: Documents,
    pub(super) replies: Documents,
    pub(super) values: Documents,
    pub(super) shares: Documents,
    pub(super) outbox: Documents,
    pub(super) handoffs: Documents,
    pub(super) audit: Documents,
    pub(super) budgets: Documents,
    /// Time for one command.
    pub(super) limit: Duration,
}

impl Connection {
    /// Checks the URI and sets the driver up; connects to nobody yet. No error shows any of the URI.
    pub(super) async fn new(options: &MongoOptions) -> Result<Self, Fault> {
        let mut client = ClientOptions::parse(options.uri.expose())
            .await
            .map_err(|_| Fault::Refused("not a URI that the driver understands".to_owned()))?;
        // What the guarantees rest on is not left to the URI.
        client.retry_writes = Some(true);
        client.retry_reads = Some(true);
        client.write_concern = Some(write_concern(options.call_timeout));
        client.read_concern = Some(ReadConcern::majority());
        client.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        client.max_pool_size = Some(options.pool_size);
        client.app_name.get_or_insert_with(|| APPLICATION.to_owned());
        client.heartbeat_freq = Some(HEARTBEAT);
        client.connect_timeout = Some(CONNECT_TIMEOUT.min(options.call_timeout));
        // Earlier than the call's own limit, after which nobody knows whether anything was sent.
        client.server_selection_timeout = Some(options.call_timeout * 8 / 10);
        let name = client.default_database.clone().unwrap_or_else(|| DATABASE.to_owned());
        let client = Client::with_options(client)?;
        let database = client.database(&name);
        Ok(Self {
            sessions: database.collection(schema::SESSIONS),
            log: database.collection(schema::LOG),
            replies: database.collection(schema::REPLIES),
            values: database.collection(schema::VALUES),
            shares: database.collection(schema::SHARES),
            outbox: database.collection(schema::OUTBOX),
            handoffs: database.collection(schema::HANDOFFS),
            audit: database.collection(schema::AUDIT),
            budgets: database.collection(schema::BUDGETS),
            limit: options.call_timeout,
            client,
            database,
        })
    }

    /// Refuses what cannot keep the promises: a server that stands alone has no majority and no retryable writes.
    pub(super) async fn check(&self) -> Result<(), Fault> {
        let hello = self.client.database("admin").run_command(doc! { "hello": 1 }).await?;
        if hello.contains_key("setName") || hello.get_str("msg").is_ok_and(|message| message == "isdbgrid") {
            return Ok(());
        }
        Err(Fault::Refused("the server is not part of a replica set; a set of one node will do".to_owned()))
    }

    /// A session in which each read sees at least what those before it saw.
    pub(super) async fn causal(&self) -> Result<ClientSession, Fault> {
        Ok(self.client.start_session().causal_consistency(true).await?)
    }
}

/// Held by a majority, in their journals.
pub(super) fn write_concern(limit: Duration) -> WriteConcern {
    let mut concern = WriteConcern::majority();
    concern.journal = Some(true);
    concern.w_timeout = Some(limit);
    debug_assert_eq!(concern.w, Some(Acknowledgment::Majority));
    concern
}
