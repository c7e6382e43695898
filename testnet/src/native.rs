//! The node's own push of one path, request by request and without patience.

use std::io::{Error, Result};
use std::net::SocketAddr;

use attic_node_core::api::wire::{ChunkHeader, commit_body};
use attic_node_core::api::{
    CommitOutcome, CommitPath, CommitReply, CommitRequest, PlanPath, PushPlan, PushSession,
};
use attic_store::chunker::{Chunker, ChunkerParams};
use attic_store::frame::FrameEncoder;
use attic_store::hash::ChunkId;
use attic_store::narinfo::{NarInfo, PathInfo};
use attic_store::store_path::StoreDir;
use serde::de::DeserializeOwned;

use crate::http::Request;
use crate::upload::Upload;

/// Pushes a path to the cache `main`, every chunk in full; whether the node said that it is there.
///
/// **Errors**: no answer, or one that is no success.
pub fn push(address: SocketAddr, token: &str, upload: &Upload) -> Result<bool> {
    let chunks = chunks(&upload.nar);
    push_planned(
        address,
        token,
        upload,
        Some(upload.nar.len() as u64),
        &chunks,
    )
}

/// As [`push`], by a client that does not say how large the NAR is.
///
/// **Errors**: as [`push`].
pub fn push_unannounced(address: SocketAddr, token: &str, upload: &Upload) -> Result<bool> {
    push_planned(address, token, upload, None, &chunks(&upload.nar))
}

/// As [`push`], with chunks of `len` bytes whatever the contents.
///
/// **Errors**: as [`push`].
pub fn push_in_pieces(
    address: SocketAddr,
    token: &str,
    upload: &Upload,
    len: usize,
) -> Result<bool> {
    let pieces: Vec<Vec<u8>> = upload.nar.chunks(len).map(<[u8]>::to_vec).collect();
    push_planned(
        address,
        token,
        upload,
        Some(upload.nar.len() as u64),
        &pieces,
    )
}

fn push_planned(
    address: SocketAddr,
    token: &str,
    upload: &Upload,
    nar_size: Option<u64>,
    chunks: &[Vec<u8>],
) -> Result<bool> {
    let info = info(upload);
    let path = PlanPath {
        hash: *info.path.hash(),
        nar_hash: info.nar_hash,
        nar_size,
    };
    let plan = PushPlan::new("main".parse().expect("a name"), vec![path]);
    let plan = serde_json::to_vec(&plan).expect("JSON");
    let session: PushSession = answer(address, token, Request::post("/_node/v1/push", plan))?;
    let Some(grant) = session.session else {
        return Ok(true);
    };
    let route = |what: &str| format!("/_node/v1/push/{}/{what}", grant.id);
    let longest = chunks.iter().map(Vec::len).max().unwrap_or(1);
    for part in chunks.chunks((REQUEST_LEN / longest).max(1)) {
        let put = Request::put(&route("chunks"), records(part)).token(token);
        let reply = put.send(address)?;
        if reply.status != 200 {
            return Err(Error::other(reply.text()));
        }
    }
    let path = CommitPath {
        info,
        listed: 0,
        chunks: u32::try_from(chunks.len()).expect("few chunks"),
        proof: None,
    };
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();
    let body = commit_body(&CommitRequest { paths: vec![path] }, &ids).expect("a body");
    let reply: CommitReply = answer(address, token, Request::post(&route("commit"), body))?;
    // What the session holds is not collected until it ends.
    let end = Request::new("DELETE", route("").trim_end_matches('/'));
    end.token(token).send(address)?;
    Ok(matches!(
        reply.results[..],
        [attic_node_core::api::CommitResult {
            outcome: CommitOutcome::Ok { .. },
            ..
        }]
    ))
}

fn answer<T: DeserializeOwned>(address: SocketAddr, token: &str, request: Request) -> Result<T> {
    let response = request.token(token).send(address)?;
    match response.status {
        200 => Ok(serde_json::from_slice(&response.body)?),
        status => Err(Error::other(format!("{status} {}", response.text()))),
    }
}

fn info(upload: &Upload) -> PathInfo {
    let narinfo = NarInfo::parse(upload.narinfo().as_bytes(), &StoreDir::default());
    narinfo.expect("a narinfo").info
}

fn chunks(nar: &[u8]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(ChunkerParams::CURRENT);
    let mut emit = |chunk: &[u8]| chunks.push(chunk.to_vec());
    chunker.push(nar, &mut emit);
    chunker.finish(&mut emit);
    chunks
}

fn records(chunks: &[Vec<u8>]) -> Vec<u8> {
    let mut encoder = FrameEncoder::new();
    let mut body = Vec::new();
    for chunk in chunks {
        let frame = encoder.encode(chunk).expect("a chunk is short enough");
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short");
        let header = ChunkHeader {
            id: ChunkId::of(chunk),
            raw_len: len(chunk),
            frame_len: len(&frame),
        };
        body.extend_from_slice(&header.to_bytes());
        body.extend_from_slice(&frame);
    }
    body
}

/// Bytes of chunks sent at a time, about.
const REQUEST_LEN: usize = 2 << 20;
