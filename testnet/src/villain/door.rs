//! How a villain gets in: as everybody does.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::membership::certificate::{Certificate, Holder};
use attic_p2p::membership::gate::{GateState, GateView, RefusedBy, Standing};
use attic_p2p::membership::hello::Refusal;
use attic_p2p::membership::revocation::{Revocation, Revocations};
use attic_p2p::membership::sealing::{OpeningKey, SealingKey};
use attic_p2p::membership::ticket::Ticket;
use attic_p2p::membership::time::UnixTime;
use attic_p2p::signed::Signed;
use futures::future::{BoxFuture, ready};
use tokio::sync::Notify;

/// Knows its certificate and nothing else.
#[derive(Clone)]
pub(super) struct Door(Arc<Knowledge>);

struct Knowledge {
    view: Mutex<Arc<GateView>>,
    news: Notify,
}

impl Door {
    pub(super) fn new(identity: &Identity, ticket: &Ticket) -> Door {
        let view = GateView {
            node: identity.node_id(),
            sealing_key: OpeningKey::of(identity).sealing_key(),
            genesis: ticket.genesis().clone(),
            standing: Standing::Joining(ticket.key().clone()),
            revocations: Revocations::default(),
            issues: false,
            issuers: Vec::new(),
        };
        Door(Arc::new(Knowledge {
            view: Mutex::new(Arc::new(view)),
            news: Notify::new(),
        }))
    }

    /// Its certificate, once it has one.
    pub(super) async fn certificate(&self) -> Signed<Certificate> {
        loop {
            let news = self.0.news.notified();
            if let Standing::Member(certificate) = &self.now_view().standing {
                return certificate.clone();
            }
            news.await;
        }
    }

    fn now_view(&self) -> Arc<GateView> {
        Arc::clone(&self.0.view.lock().expect("no panic under this lock"))
    }
}

impl GateState for Door {
    fn now(&self) -> UnixTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        UnixTime(since.unwrap_or_default().as_secs())
    }

    fn view(&self) -> Arc<GateView> {
        self.now_view()
    }

    fn redeem(
        &self,
        _: NodeId,
        _: NodeId,
        _: SealingKey,
    ) -> BoxFuture<'_, Result<Signed<Certificate>, Refusal>> {
        Box::pin(ready(Err(Refusal::TicketUnknown)))
    }

    fn renew(&self, _: Holder) -> BoxFuture<'_, Option<Signed<Certificate>>> {
        Box::pin(ready(None))
    }

    fn learn(&self, _: Vec<Signed<Revocation>>) {}

    fn adopt(&self, certificate: Signed<Certificate>) {
        let mut view = self.0.view.lock().expect("no panic under this lock");
        *view = Arc::new(GateView {
            standing: Standing::Member(certificate),
            ..GateView::clone(&view)
        });
        drop(view);
        self.0.news.notify_waiters();
    }

    fn met(&self, _: &Certificate) {}

    fn refused(&self, remote: NodeId, refusal: &Refusal, _: RefusedBy) {
        eprintln!("{remote}: {refusal}");
    }
}
