//! What a host's gate rests on: the same judgement as in a node, without its files.

use std::future::{Future, ready};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use attic_p2p::directory::Directory;
use attic_p2p::gate::Gate;
use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::membership::certificate::{Certificate, Holder};
use attic_p2p::membership::gate::{GateState, GateView, MemberGate, RefusedBy, Standing};
use attic_p2p::membership::genesis::Genesis;
use attic_p2p::membership::hello::Refusal;
use attic_p2p::membership::revocation::{Revocation, Revocations, Subject};
use attic_p2p::membership::sealing::{OpeningKey, SealingKey};
use attic_p2p::membership::time::UnixTime;
use attic_p2p::signed::Signed;

/// The gate of a host and what it knows.
pub(crate) struct Door {
    room: Arc<Room>,
    gate: MemberGate<Keeper>,
}

struct Room {
    now: AtomicU64,
    view: Mutex<Arc<GateView>>,
}

/// Answers the gate's questions.
struct Keeper(Arc<Room>);

impl Door {
    pub(crate) fn new(
        identity: &Identity,
        genesis: &Genesis,
        certificate: &Signed<Certificate>,
    ) -> Door {
        let view = GateView {
            node: identity.node_id(),
            sealing_key: OpeningKey::of(identity).sealing_key(),
            genesis: genesis.clone(),
            standing: Standing::Member(certificate.clone()),
            revocations: Revocations::default(),
            issues: false,
            issuers: Vec::new(),
        };
        let room = Arc::new(Room {
            now: AtomicU64::new(0),
            view: Mutex::new(Arc::new(view)),
        });
        let gate = MemberGate::new(Keeper(Arc::clone(&room)));
        Door { room, gate }
    }

    /// Sets the host's clock, in seconds since 1970.
    pub(crate) fn set_now(&self, now: u64) {
        self.room.now.store(now, Ordering::Relaxed);
    }

    /// Takes over what the directory says about who is out.
    pub(crate) fn take_revocations(&self, directory: &Directory) {
        self.room.learn(directory.revocations().cloned());
    }

    /// Whether `node` is known to be out.
    pub(crate) fn is_revoked(&self, node: NodeId) -> bool {
        let view = Arc::clone(&self.room.view());
        view.revocations.of(Subject::Node(node)).is_some()
    }

    /// Whether `dialer` and `listener`, who know each other's keys, let each other in.
    pub(crate) fn open(
        (dialer, dialer_node): (&Door, NodeId),
        (listener, listener_node): (&Door, NodeId),
    ) -> bool {
        let hello = dialer.gate.hello(listener_node);
        let answer = now_or_never(listener.gate.answer(dialer_node, &hello));
        let accepted = dialer.gate.accept(listener_node, &answer.reply);
        answer.admit && accepted.is_ok()
    }
}

impl Room {
    fn view(&self) -> MutexGuard<'_, Arc<GateView>> {
        self.view.lock().expect("no panic under this lock")
    }

    fn learn(&self, revocations: impl Iterator<Item = Signed<Revocation>>) {
        let mut place = self.view();
        let mut view = GateView::clone(&place);
        for revocation in revocations {
            let inserted = view.revocations.insert(revocation, &view.genesis);
            inserted.expect("only checked ones are handed in");
        }
        *place = Arc::new(view);
    }
}

impl GateState for Keeper {
    fn now(&self) -> UnixTime {
        UnixTime(self.0.now.load(Ordering::Relaxed))
    }

    fn view(&self) -> Arc<GateView> {
        Arc::clone(&self.0.view())
    }

    fn redeem(
        &self,
        _invite: NodeId,
        _joiner: NodeId,
        _sealing_key: SealingKey,
    ) -> Pin<Box<dyn Future<Output = Result<Signed<Certificate>, Refusal>> + Send + '_>> {
        Box::pin(ready(Err(Refusal::TicketUnknown)))
    }

    fn renew(
        &self,
        _holder: Holder,
    ) -> Pin<Box<dyn Future<Output = Option<Signed<Certificate>>> + Send + '_>> {
        Box::pin(ready(None))
    }

    fn learn(&self, revocations: Vec<Signed<Revocation>>) {
        self.0.learn(revocations.into_iter());
    }

    fn adopt(&self, _certificate: Signed<Certificate>) {}

    fn met(&self, _remote: &Certificate) {}

    fn refused(&self, _remote: NodeId, _refusal: &Refusal, _by: RefusedBy) {}
}

/// What a future is that never waits.
fn now_or_never<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing in a simulated gate waits"),
    }
}
