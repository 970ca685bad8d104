//! Reads at the two levels that are used, from the primary alone.

use mongodb::{
    ClientSession,
    bson::{Document, RawDocumentBuf},
    options::{FindOptions, ReadConcern},
};

use super::{Shared, connection::Documents, fault::Fault};

/// How certain a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// What a majority has, possibly behind it for a moment after a failover.
    Majority,
    /// And nothing older than what was acknowledged before the call began.
    Current,
}

impl Shared {
    /// A session in which to read at this level.
    pub(super) async fn session(&self, level: Level) -> Result<ClientSession, Fault> {
        let mut session = self.connection.causal().await?;
        if level == Level::Current {
            session.advance_operation_time(self.barrier.pass().await?);
        }
        Ok(session)
    }

    /// The first document of a filter, in an order when there may be several.
    pub(super) async fn one(
        &self,
        from: &Documents,
        filter: Document,
        options: FindOptions,
        level: Level,
    ) -> Result<Option<RawDocumentBuf>, Fault> {
        let mut options = options;
        options.limit = Some(1);
        Ok(self.many(from, filter, options, level).await?.pop())
    }

    /// All documents of a filter in an order; a limit is in `options`.
    pub(super) async fn many(
        &self,
        from: &Documents,
        filter: Document,
        options: FindOptions,
        level: Level,
    ) -> Result<Vec<RawDocumentBuf>, Fault> {
        let mut session = self.session(level).await?;
        let find = from.find(filter).with_options(options).read_concern(ReadConcern::majority());
        let mut cursor = find.max_time(self.connection.limit).session(&mut session).await?;
        let mut documents = Vec::new();
        while cursor.advance(&mut session).await? {
            documents.push(cursor.current().to_owned());
        }
        Ok(documents)
    }
}

/// Only these fields.
pub(super) fn fields(projection: Document) -> FindOptions {
    FindOptions::builder().projection(projection).build()
}
