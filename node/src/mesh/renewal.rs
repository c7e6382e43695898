//! A new certificate in time, for a node that is connected so long that it never dials an issuer.
//!
//! Whoever dials an issuer is handed the next certificate with the handshake. This is for everybody
//! else: once a certificate is due, each connected peer is asked, since who issues is not announced;
//! those who do not are quick to say so. A node whose certificate ran out is refused by all but
//! issuers, so the first peer it meets then is one.

use std::sync::Arc;
use std::time::Duration;

use attic_p2p::ids::NodeId;
use attic_p2p::membership::certificate::Certificate;
use attic_p2p::signed::Signed;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::http::ingest::joined;
use crate::mesh::Mesh;
use crate::mesh::members::now;
use crate::mesh::query::{Query, Reply};

/// Sees to this node's certificate until the mesh is stopped.
pub(crate) async fn renew(mesh: Arc<Mesh>) {
    loop {
        tokio::select! {
            () = mesh.members.renewed.notified() => show(&mesh).await,
            () = ask_when_due(&mesh) => {}
        }
    }
}

/// Shows the new certificate to those who have never met this node, and to those who refused the
/// old one.
async fn show(mesh: &Mesh) {
    let announcer = Arc::clone(&mesh.announcer);
    joined(spawn_blocking(move || announcer.introduce()).await);
    mesh.network.retry().await;
}

/// Asks around if that is due; rests before it returns. Harmless to drop.
async fn ask_when_due(mesh: &Mesh) {
    match mesh.members.wants_renewal() {
        None => sleep(until_due(mesh)).await,
        Some(certificate) if ask_all(mesh, &certificate).await => {}
        // Ends early when somebody comes, who may be an issuer.
        Some(_) => drop(timeout(ASK_AGAIN_AFTER, mesh.peer_came.notified()).await),
    }
}

/// How long to rest while nothing is due: clocks change, so it is looked at now and then.
fn until_due(mesh: &Mesh) -> Duration {
    let due = mesh
        .members
        .certificate()
        .filter(|_| !mesh.members.issues());
    let left = due.map(|certificate| certificate.value().renew_after().since(now()));
    left.map_or(LOOK_EVERY, |left| left.clamp(LOOK_SOON, LOOK_EVERY))
}

/// Asks one peer after the other for the next certificate; whether one gave it.
async fn ask_all(mesh: &Mesh, certificate: &Signed<Certificate>) -> bool {
    let query = Query::Renew {
        certificate: certificate.encode().into(),
    };
    let query = query.encode();
    for peer in mesh.network.peers() {
        let Ok(answer) = mesh.network.request(peer.node, query.clone()).await else {
            continue;
        };
        if let Some(Reply::Renew(Some(bytes))) = Reply::decode(&answer)
            && let Ok(renewed) = Signed::decode(&bytes)
            && take(mesh, peer.node, renewed).await
        {
            return true;
        }
    }
    false
}

async fn take(mesh: &Mesh, from: NodeId, renewed: Signed<Certificate>) -> bool {
    let members = Arc::clone(&mesh.members);
    let taken = spawn_blocking(move || {
        let not_after = renewed.value().not_after;
        members.take_renewed(renewed).map(|()| not_after)
    });
    match joined(taken.await) {
        Ok(not_after) => {
            tracing::info!(%from, %not_after, "certificate renewed");
            true
        }
        Err(refusal) => {
            tracing::warn!(%from, %refusal, "a certificate that is none for this node");
            false
        }
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(3600);
const LOOK_SOON: Duration = Duration::from_secs(1);
/// Between rounds among the same peers.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(60);
