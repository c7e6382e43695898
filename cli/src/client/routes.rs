//! The routes of the node's API as typed methods. Their meaning is in [`attic_node_core::api`].

use std::time::Duration;

use attic_node_core::api::bucket::{
    BucketCheck, CollectReply, CollectRequest, DurableReply, DurableRequest, RebuildReply,
    RebuildRequest,
};
use attic_node_core::api::wire::{commit_body, ids_body, parse_bitmap};
use attic_node_core::api::{
    CacheCreate, CachePatch, CacheView, ChunksReply, ClusterInit, ClusterMade, ClusterView,
    CommitReply, CommitRequest, GcReply, GcRequest, InviteReply, InviteRequest, JoinReply,
    JoinRequest, KeyImport, KeyRotate, LeaveReply, LeaveRequest, NodeId, Nothing, PathPage,
    PathView, PeerView, PinPut, PinView, PushPlan, PushSession, RemoveReply, RemoveRequest,
    RevokeReply, Status, UsageReply, VerifyReply, VerifyRequest,
};
use attic_store::cache_name::CacheName;
use attic_store::hash::{ChunkId, NarHash};
use attic_store::store_path::{StorePath, StorePathHash};
use bytes::Bytes;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Call, Client, ClientError, Payload};

impl Client {
    /// `GET status`
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.json(Call::new(Method::GET, "status")).await
    }

    /// `GET caches`
    pub async fn caches(&self) -> Result<Vec<CacheView>, ClientError> {
        self.json(Call::new(Method::GET, "caches")).await
    }

    /// `GET caches/{name}`
    pub async fn cache(&self, name: &CacheName) -> Result<CacheView, ClientError> {
        self.json(Call::new(Method::GET, of_cache(name, ""))).await
    }

    /// `POST caches`
    pub async fn create_cache(&self, create: &CacheCreate) -> Result<CacheView, ClientError> {
        self.json(
            Call::new(Method::POST, "caches")
                .payload(json(create)?)
                .once(),
        )
        .await
    }

    /// `PATCH caches/{name}`
    pub async fn patch_cache(
        &self,
        name: &CacheName,
        patch: &CachePatch,
    ) -> Result<CacheView, ClientError> {
        self.json(Call::new(Method::PATCH, of_cache(name, "")).payload(json(patch)?))
            .await
    }

    /// `DELETE caches/{name}`
    pub async fn destroy_cache(&self, name: &CacheName) -> Result<CacheView, ClientError> {
        self.json(Call::new(Method::DELETE, of_cache(name, "")).once())
            .await
    }

    /// `POST caches/{name}/key/import`
    pub async fn import_key(
        &self,
        name: &CacheName,
        key: &KeyImport,
    ) -> Result<CacheView, ClientError> {
        self.json(Call::new(Method::POST, of_cache(name, "/key/import")).payload(json(key)?))
            .await
    }

    /// `POST caches/{name}/key/rotate`
    pub async fn rotate_key(
        &self,
        name: &CacheName,
        rotate: &KeyRotate,
    ) -> Result<CacheView, ClientError> {
        let call = Call::new(Method::POST, of_cache(name, "/key/rotate"));
        self.json(call.once().payload(json(rotate)?)).await
    }

    async fn paths(
        &self,
        name: &CacheName,
        after: Option<StorePathHash>,
    ) -> Result<PathPage, ClientError> {
        let after = after
            .map(|after| format!("?after={after}"))
            .unwrap_or_default();
        self.json(Call::new(
            Method::GET,
            of_cache(name, &format!("/paths{after}")),
        ))
        .await
    }

    /// `GET caches/{name}/paths`, page after page: passes every path to `visit`, ordered by hash part.
    ///
    /// **Errors**: of the node, or the first of `visit`, which ends it.
    pub async fn for_each_path<E: From<ClientError>>(
        &self,
        name: &CacheName,
        mut visit: impl FnMut(PathView) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after = None;
        loop {
            let page = self.paths(name, after).await?;
            page.paths.into_iter().try_for_each(&mut visit)?;
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// `POST caches/{name}/remove`
    pub async fn remove(
        &self,
        name: &CacheName,
        request: &RemoveRequest,
    ) -> Result<RemoveReply, ClientError> {
        self.json(Call::new(Method::POST, of_cache(name, "/remove")).payload(json(request)?))
            .await
    }

    /// `GET caches/{name}/pins`
    pub async fn pins(&self, name: &CacheName) -> Result<Vec<PinView>, ClientError> {
        self.json(Call::new(Method::GET, of_cache(name, "/pins")))
            .await
    }

    /// `PUT caches/{name}/pins/{pin}`
    pub async fn put_pin(
        &self,
        name: &CacheName,
        pin: &str,
        put: &PinPut,
    ) -> Result<PinView, ClientError> {
        let path = of_cache(name, &format!("/pins/{}", segment(pin)));
        self.json(Call::new(Method::PUT, path).payload(json(put)?))
            .await
    }

    /// `DELETE caches/{name}/pins/{pin}`
    pub async fn delete_pin(&self, name: &CacheName, pin: &str) -> Result<(), ClientError> {
        let path = of_cache(name, &format!("/pins/{}", segment(pin)));
        self.call(&Call::new(Method::DELETE, path)).await.map(drop)
    }

    /// `GET usage`. Takes a look at every path, however long that takes.
    pub async fn usage(&self) -> Result<UsageReply, ClientError> {
        self.json(Call::new(Method::GET, "usage").silence_max(None))
            .await
    }

    /// `POST gc`. Answers when the collection is over, however long it takes.
    pub async fn gc(&self, request: &GcRequest) -> Result<GcReply, ClientError> {
        let call = Call::new(Method::POST, "gc").payload(json(request)?);
        self.json(call.silence_max(None)).await
    }

    /// `POST verify`. Answers when everything has been read, however long it takes.
    pub async fn verify(&self, request: &VerifyRequest) -> Result<VerifyReply, ClientError> {
        let call = Call::new(Method::POST, "verify").payload(json(request)?);
        self.json(call.silence_max(None)).await
    }

    /// `GET cluster`
    pub async fn cluster(&self) -> Result<ClusterView, ClientError> {
        self.json(Call::new(Method::GET, "cluster")).await
    }

    /// `POST cluster/init`
    pub async fn init_cluster(&self, init: &ClusterInit) -> Result<ClusterMade, ClientError> {
        self.json(
            Call::new(Method::POST, "cluster/init")
                .payload(json(init)?)
                .once(),
        )
        .await
    }

    /// `POST cluster/rebuild`. Answers when everything in the bucket was looked at.
    pub async fn rebuild_cluster(
        &self,
        request: &RebuildRequest,
    ) -> Result<RebuildReply, ClientError> {
        let call = Call::new(Method::POST, "cluster/rebuild").payload(json(request)?);
        self.json(call.once().silence_max(None)).await
    }

    /// `POST bucket/check`. Answers when everything was tried.
    pub async fn check_bucket(&self) -> Result<BucketCheck, ClientError> {
        let call = Call::new(Method::POST, "bucket/check").payload(json(&Nothing {})?);
        self.json(call.silence_max(None)).await
    }

    /// `POST bucket/collect`. Answers when it is done.
    pub async fn collect_bucket(
        &self,
        request: &CollectRequest,
    ) -> Result<CollectReply, ClientError> {
        let call = Call::new(Method::POST, "bucket/collect").payload(json(request)?);
        self.json(call.once().silence_max(None)).await
    }

    /// `POST bucket/durable`. Answers when all are durable, or the time is over.
    pub async fn await_durable(
        &self,
        request: &DurableRequest,
    ) -> Result<DurableReply, ClientError> {
        let call = Call::new(Method::POST, "bucket/durable").payload(json(request)?);
        self.json(call.silence_max(None)).await
    }

    /// `POST cluster/invites`
    pub async fn invite(&self, request: &InviteRequest) -> Result<InviteReply, ClientError> {
        self.json(
            Call::new(Method::POST, "cluster/invites")
                .payload(json(request)?)
                .once(),
        )
        .await
    }

    /// `POST cluster/join`. The node tries every address of the ticket before it gives up.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinReply, ClientError> {
        self.json(
            Call::new(Method::POST, "cluster/join")
                .payload(json(request)?)
                .once(),
        )
        .await
    }

    /// `POST cluster/leave`. Answers when what only this node held has another holder, or that takes
    /// too long.
    pub async fn leave(&self, request: LeaveRequest) -> Result<LeaveReply, ClientError> {
        let call = Call::new(Method::POST, "cluster/leave").payload(json(&request)?);
        self.json(call.once().silence_max(None)).await
    }

    /// `GET peers`
    pub async fn peers(&self) -> Result<Vec<PeerView>, ClientError> {
        self.json(Call::new(Method::GET, "peers")).await
    }

    /// `POST peers/{node}/revoke`
    pub async fn revoke(&self, node: &NodeId) -> Result<RevokeReply, ClientError> {
        let path = format!("peers/{node}/revoke");
        self.json(Call::new(Method::POST, path).payload(json(&Nothing {})?))
            .await
    }

    /// `POST push`. With `recheck` it answers when all NARs have been read, however long that takes.
    pub async fn plan(&self, plan: &PushPlan) -> Result<PushSession, ClientError> {
        let call = Call::new(Method::POST, "push").payload(json(plan)?);
        let call = match plan.recheck {
            true => call.silence_max(None),
            false => call,
        };
        self.json(call).await
    }

    /// `PUT push/{session}/list/{hash}`: all chunk ids of a path, in bodies of at most `body_max`
    /// bytes.
    pub async fn list(
        &self,
        session: &str,
        path: &StorePathHash,
        ids: &[ChunkId],
        body_max: usize,
    ) -> Result<(), ClientError> {
        let part_len = (body_max / 32).max(1);
        for (number, part) in ids.chunks(part_len).enumerate() {
            let from = number * part_len;
            let route = format!("push/{session}/list/{path}?from={from}");
            let body = Payload::Binary(vec![ids_body(part).into()]);
            let call = Call::new(Method::PUT, route).payload(body);
            self.call(&call).await?;
        }
        Ok(())
    }

    /// `POST push/{session}/missing`: for each id, whether the node wants its bytes.
    pub async fn missing(&self, session: &str, ids: &[ChunkId]) -> Result<Vec<bool>, ClientError> {
        let call = missing(session, ids);
        let bitmap = self.call(&call).await?;
        parse_bitmap(&bitmap, ids.len()).map_err(|error| unintelligible(&call, error))
    }

    /// `PUT push/{session}/chunks`: records as [`attic_node_core::api::wire`] shapes them.
    pub async fn put_chunks(
        &self,
        session: &str,
        records: Vec<Bytes>,
    ) -> Result<ChunksReply, ClientError> {
        let call = Call::new(Method::PUT, format!("push/{session}/chunks"));
        let call = call.payload(Payload::Binary(records));
        // About a chunk that nobody has: is the session still there?
        let question = missing(session, &[ChunkId::from_bytes([0; 32])]);
        self.json(call.asks_first(question)).await
    }

    /// `POST push/{session}/commit`. The node reads and hashes `nar_bytes` before it answers.
    ///
    /// **Errors**: also [`ClientError::Unintelligible`] when the reply is not about these paths.
    pub async fn commit<'a>(
        &self,
        session: &str,
        request: &CommitRequest,
        ids: impl IntoIterator<Item = &'a ChunkId>,
        nar_bytes: u64,
    ) -> Result<CommitReply, ClientError> {
        let call = Call::new(Method::POST, format!("push/{session}/commit"));
        let body = commit_body(request, ids).map_err(|error| unintelligible(&call, error))?;
        let silence_max = COMMIT_WAIT_MAX + Duration::from_secs(nar_bytes / COMMIT_SPEED_MIN);
        let call = call
            .payload(Payload::Binary(vec![body.into()]))
            .silence_max(Some(silence_max));
        let reply: CommitReply = self.json(call.clone()).await?;
        let answered = reply.results.iter().map(|result| &result.path);
        if answered.eq(request.paths.iter().map(|path| path.info.path.hash())) {
            return Ok(reply);
        }
        Err(ClientError::Unintelligible {
            what: call.describe(),
            source: None,
        })
    }

    /// `DELETE push/{session}`
    pub async fn end_session(&self, session: &str) -> Result<(), ClientError> {
        let path = format!("push/{session}");
        self.call(&Call::new(Method::DELETE, path)).await.map(drop)
    }

    /// `PUT /{cache}/log/{derivation}`: a build log as a zstd frame.
    pub async fn put_log(
        &self,
        cache: &CacheName,
        derivation: &StorePath,
        log: Vec<u8>,
    ) -> Result<(), ClientError> {
        let name = format!("log/{}", segment(&derivation.to_string()));
        let path = format!("{}/{name}", segment(cache.as_str()));
        let call = Call::put_object(path, Payload::ZstdText([log.into()]));
        self.call(&call).await.map(drop)
    }

    /// `PUT /{cache}/debuginfo/{id}.debug`: which `member` of which NAR holds the debug information
    /// of a build id.
    pub async fn put_debug_info(
        &self,
        cache: &CacheName,
        build_id: &str,
        nar_hash: &NarHash,
        member: &str,
    ) -> Result<(), ClientError> {
        let path = format!("{}/debuginfo/{build_id}.debug", segment(cache.as_str()));
        // The node names NARs by their hash, so this holds before the path is there.
        let archive = format!("../nar/{}.nar.zst", nar_hash.nix32());
        let body = json(&serde_json::json!({ "archive": archive, "member": member }))?;
        self.call(&Call::put_object(path, body)).await.map(drop)
    }

    async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let body = self.call(&call).await?;
        serde_json::from_slice(&body).map_err(|error| unintelligible(&call, error))
    }
}

fn missing(session: &str, ids: &[ChunkId]) -> Call {
    Call::new(Method::POST, format!("push/{session}/missing"))
        .payload(Payload::Binary(vec![ids_body(ids).into()]))
}

fn of_cache(name: &CacheName, rest: &str) -> String {
    format!("caches/{}{rest}", segment(name.as_str()))
}

/// `text` as one segment of a URL's path: all but unreserved characters escaped.
fn segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+') {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

fn json(value: &impl Serialize) -> Result<Payload, ClientError> {
    let text = serde_json::to_vec(value).map_err(|source| ClientError::Unintelligible {
        what: "write request".to_owned(),
        source: Some(source.into()),
    })?;
    Ok(Payload::Json([text.into()]))
}

fn unintelligible(
    call: &Call,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ClientError {
    ClientError::Unintelligible {
        what: call.describe(),
        source: Some(source.into()),
    }
}

/// Commits wait for each other at the node, and the others may be large.
const COMMIT_WAIT_MAX: Duration = Duration::from_secs(600);
/// Bytes of NAR per second that even a slow disk lets a node read and hash.
const COMMIT_SPEED_MIN: u64 = 10 << 20;
