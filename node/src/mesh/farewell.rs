//! Leaving in good order: the others are told, so that they do not wait for this node.
//!
//! What is said last is a record in the own log that names nobody: its author has left. It spreads
//! like any other; before this node goes it makes sure that some peers have it, because nobody can
//! ask for it later.

use std::sync::Arc;
use std::time::Duration;

use attic_p2p::ids::NodeId;
use attic_p2p::reconcile::{Answer, Ask, bucket_of};
use futures::future::join_all;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::http::ingest::joined;
use crate::mesh::Mesh;
use crate::mesh::query::{Query, Reply};

impl Mesh {
    /// Says that this node leaves, and waits until some peers have that, as far as there are any and
    /// it does not take too long. Nothing is said of its membership after that.
    pub(crate) async fn say_farewell(&self) {
        let announcer = Arc::clone(&self.announcer);
        joined(spawn_blocking(move || announcer.say_leaving()).await);
        if timeout(FAREWELL_MAX, self.farewell_heard()).await.is_err() {
            tracing::warn!("not all who were to hear that this node leaves have heard it");
        }
    }

    async fn farewell_heard(&self) {
        while self.view.left_at(self.me).is_none() {
            sleep(PAUSE).await;
        }
        let seq = self.view.with_directory(|directory| directory.seq(self.me));
        let peers = self.network.peers().into_iter().take(HEARERS_MAX);
        join_all(peers.map(|peer| self.log_reaches(peer.node, seq))).await;
    }

    /// Waits until a peer has this node's log up to `seq`, or cannot be asked.
    async fn log_reaches(&self, peer: NodeId, seq: u64) {
        let buckets = bucket_of(&self.me);
        let question = Query::Sync(Ask::Tips { buckets }.encode()).encode();
        while let Ok(answer) = self.network.request(peer, question.clone()).await {
            let tips = match Reply::decode(&answer) {
                Some(Reply::Sync(bytes)) => Answer::decode(&bytes),
                _ => return,
            };
            let Ok(Answer::Tips { tips, .. }) = tips else {
                return;
            };
            if tips.iter().any(|tip| tip.node == self.me && tip.seq >= seq) {
                return;
            }
            sleep(PAUSE).await;
        }
    }
}

/// Peers that are asked whether they have heard: each tells all others.
const HEARERS_MAX: usize = 8;
const FAREWELL_MAX: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);
