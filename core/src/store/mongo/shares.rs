//! Share links.

use async_trait::async_trait;
use chatbox_proto::ids::{SessionId, ShareId};
use mongodb::{
    bson::{Document, RawDocument, RawDocumentBuf, doc},
    options::FindOptions,
};

use super::{
    MongoStore, Shared,
    document::{self, binary, number},
    fault::{Access, Fault},
    reading::Level,
};
use crate::{
    domain::time::Timestamp,
    store::{RequestKey, Share, ShareCreated, ShareRevoked, ShareStore, StoreError},
};

#[async_trait]
impl ShareStore for MongoStore {
    async fn create_share(
        &self,
        share: Share,
        request: Option<RequestKey>,
        limit: u32,
    ) -> Result<ShareCreated, StoreError> {
        let create = create(&self.shared, &share, request.as_ref(), limit);
        self.call("create_share", Access::Write, create).await
    }

    async fn share(&self, id: ShareId) -> Result<Option<Share>, StoreError> {
        self.call("share", Access::Read, by_id(&self.shared, id)).await
    }

    async fn shares(
        &self,
        session_id: SessionId,
        before: Option<ShareId>,
        limit: u32,
    ) -> Result<Vec<Share>, StoreError> {
        let list = async {
            let mut filter = doc! { "session": binary(session_id.as_bytes()) };
            if let Some(before) = before {
                filter.insert("_id", doc! { "$lt": binary(before.as_bytes()) });
            }
            let options = FindOptions::builder().sort(doc! { "_id": -1 }).limit(i64::from(limit)).build();
            let found = self.shared.many(&self.shared.connection.shares, filter, options, Level::Majority).await?;
            found.iter().map(|found| read(found)).collect()
        };
        self.call("shares", Access::Read, list).await
    }

    async fn revoke_share(&self, session_id: SessionId, id: ShareId) -> Result<ShareRevoked, StoreError> {
        let revoke = async {
            let filter = doc! {
                "_id": binary(id.as_bytes()),
                "session": binary(session_id.as_bytes()),
                "revoked": false,
            };
            let update = doc! { "$set": { "revoked": true } };
            let changed = self.shared.connection.shares.update_one(filter, update).await?.modified_count > 0;
            Ok(match by_id(&self.shared, id).await?.filter(|share| share.session_id == session_id) {
                Some(share) if changed => ShareRevoked::Now(share),
                Some(share) => ShareRevoked::Before(share),
                None => ShareRevoked::Unknown,
            })
        };
        self.call("revoke_share", Access::Write, revoke).await
    }

    async fn remove_shares(&self, session_id: SessionId) -> Result<u64, StoreError> {
        let remove = async {
            let filter = doc! { "session": binary(session_id.as_bytes()) };
            Ok(self.shared.connection.shares.delete_many(filter).await?.deleted_count)
        };
        self.call("remove_shares", Access::Write, remove).await
    }
}

async fn create(
    shared: &Shared,
    share: &Share,
    request: Option<&RequestKey>,
    limit: u32,
) -> Result<ShareCreated, Fault> {
    if let Some(earlier) = earlier_call(shared, share.session_id, request).await? {
        return Ok(earlier);
    }
    let working = doc! { "session": binary(share.session_id.as_bytes()), "revoked": false };
    let count = shared.connection.shares.count_documents(working).limit(u64::from(limit)).await?;
    if count >= u64::from(limit) {
        return Ok(ShareCreated::TooMany);
    }
    let stored = RawDocumentBuf::try_from(stored(share, request)).map_err(|_| Fault::Misuse("a share"))?;
    match shared.connection.shares.insert_one(stored).await.map_err(Fault::from) {
        Ok(_) => Ok(ShareCreated::New),
        Err(fault) if fault.is_duplicate() => {
            // The same call came in between, or the id is there.
            let earlier = earlier_call(shared, share.session_id, request).await?;
            earlier.ok_or(Fault::Misuse("a share with this id exists"))
        }
        Err(fault) => Err(fault),
    }
}

async fn earlier_call(
    shared: &Shared,
    session_id: SessionId,
    request: Option<&RequestKey>,
) -> Result<Option<ShareCreated>, Fault> {
    let Some(request) = request else { return Ok(None) };
    let filter = doc! { "session": binary(session_id.as_bytes()), "request": binary(&request.id) };
    let found = shared.one(&shared.connection.shares, filter, FindOptions::default(), Level::Current).await?;
    let Some(found) = found else { return Ok(None) };
    let same = document::id(&found, "content")? == request.content;
    Ok(Some(if same { ShareCreated::Repeated(read(&found)?) } else { ShareCreated::RequestReused }))
}

async fn by_id(shared: &Shared, id: ShareId) -> Result<Option<Share>, Fault> {
    let filter = doc! { "_id": binary(id.as_bytes()) };
    let found = shared.one(&shared.connection.shares, filter, FindOptions::default(), Level::Current).await?;
    found.map(|found| read(&found)).transpose()
}

fn stored(share: &Share, request: Option<&RequestKey>) -> Document {
    let mut document = doc! {
        "_id": binary(share.id.as_bytes()),
        "session": binary(share.session_id.as_bytes()),
        "secret": binary(&share.secret_hash),
        "created": share.created_at.millis(),
        "revoked": share.revoked,
    };
    if let Some(snapshot) = share.snapshot {
        document.insert("snapshot", number(snapshot));
    }
    if let Some(expires_at) = share.expires_at {
        document.insert("expires", expires_at.millis());
    }
    if let Some(request) = request {
        document.insert("request", binary(&request.id));
        document.insert("content", binary(&request.content));
    }
    document
}

fn read(document: &RawDocument) -> Result<Share, Fault> {
    let time = |field: &'static str| -> Result<Timestamp, Fault> {
        document.get_i64(field).map(Timestamp::from_millis).map_err(|_| Fault::Corrupt(field))
    };
    let with_snapshot = document::has(document, "snapshot")?;
    let expires = document::has(document, "expires")?;
    Ok(Share {
        id: ShareId::from_bytes(document::id(document, "_id")?),
        session_id: SessionId::from_bytes(document::id(document, "session")?),
        secret_hash: document::id(document, "secret")?,
        snapshot: with_snapshot.then(|| document::seq(document, "snapshot")).transpose()?,
        created_at: time("created")?,
        expires_at: expires.then(|| time("expires")).transpose()?,
        revoked: document::flag(document, "revoked")?,
    })
}
