//! The way to the servers: how the driver is set up, whom it may talk to, and reads at the two levels that are used.

use std::time::Duration;

use mongodb::{
    Client, ClientSession, Collection, Database,
    bson::{Document, RawDocumentBuf, doc},
    options::{
        Acknowledgment, ClientOptions, FindOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
    },
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

/// How certain a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// What a majority has, possibly behind it for a moment after a failover.
    Majority,
    /// All that was acknowledged before the call began, by whomever: the primary shows that it still is one. What it finds
    /// is held by a majority when it answers. Costs about as much as a write.
    Linearizable,
}

impl Level {
    fn concern(self) -> ReadConcern {
        match self {
            Self::Majority => ReadConcern::majority(),
            Self::Linearizable => ReadConcern::linearizable(),
        }
    }
}

/// The collections.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) database: Database,
    pub(super) sessions: Documents,
    pub(super) log: Documents,
    pub(super) replies: Documents,
    pub(super) values: Documents,
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

    /// The one document of a filter, or the first in an order.
    pub(super) async fn one(
        &self,
        from: &Documents,
        filter: Document,
        fields: Document,
        level: Level,
    ) -> Result<Option<RawDocumentBuf>, Fault> {
        let find = from.find_one(filter).projection(fields).read_concern(level.concern()).max_time(self.limit);
        Ok(find.await?)
    }

    /// All documents of a filter in an order, with a limit in `options`.
    pub(super) async fn many(
        &self,
        from: &Documents,
        filter: Document,
        options: FindOptions,
    ) -> Result<Vec<RawDocumentBuf>, Fault> {
        let find = from.find(filter).with_options(options).read_concern(ReadConcern::majority()).max_time(self.limit);
        let mut cursor = find.await?;
        let mut documents = Vec::new();
        while cursor.advance().await? {
            documents.push(cursor.current().to_owned());
        }
        Ok(documents)
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
