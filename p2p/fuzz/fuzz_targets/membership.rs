//! Any bytes are a ticket, a certificate, a message of the handshake and so on that are written as
//! they were read, or an error. And no bytes let a stranger in: the gate admits what the cluster
//! signed and nothing else.
//!
//! In `p2p/`: `cargo +nightly fuzz run membership`.

#![no_main]

use std::str;

use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::membership::Role;
use attic_p2p::membership::certificate::{Certificate, Delegation, Holder, Issuer};
use attic_p2p::membership::gate::{GateView, Judgement, Standing, judge_hello, judge_reply};
use attic_p2p::membership::genesis::{ClusterKey, Genesis};
use attic_p2p::membership::hello::{Hello, Reply};
use attic_p2p::membership::revocation::{Revocation, Revocations};
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::membership::sealing::OpeningKey;
use attic_p2p::membership::ticket::Ticket;
use attic_p2p::membership::time::UnixTime;
use attic_p2p::signed::{Signed, Statement};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    signed::<Certificate>(bytes);
    signed::<Delegation>(bytes);
    signed::<Revocation>(bytes);
    if let Ok(genesis) = Genesis::decode(bytes) {
        assert_eq!(Genesis::decode(&genesis.encode()).as_ref(), Ok(&genesis));
    }
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(ticket) = text.parse::<Ticket>()
    {
        let printed = ticket.to_text();
        let again: Ticket = printed.parse().expect("what is printed is read");
        assert_eq!(again.to_text(), printed);
    }
    let (view, stranger) = (view(), Identity::from_seed([9; 32]).node_id());
    if let Ok(hello) = Hello::decode(bytes) {
        assert_eq!(Hello::decode(&hello.encode()).as_ref(), Ok(&hello));
        admits_nobody(&view, stranger, &hello);
    }
    if let Ok(reply) = Reply::decode(bytes) {
        assert_eq!(Reply::decode(&reply.encode()).as_ref(), Ok(&reply));
        assert!(judge_reply(&view, NOW, stranger, reply).is_err());
    }
});

fn admits_nobody(view: &GateView, stranger: NodeId, hello: &Hello) {
    // A ticket's table has the last word on this one; here it is empty.
    let judged = judge_hello(view, NOW, stranger, hello);
    assert!(
        matches!(judged, Err(_) | Ok(Judgement::Redeem { .. })),
        "{judged:?}"
    );
}

fn signed<T: Statement + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(statement) = Signed::<T>::decode(bytes) {
        assert_eq!(statement.encode(), bytes);
    }
}

/// What an issuer knows whose key the fuzzer has not.
fn view() -> GateView {
    let identity = Identity::from_seed([1; 32]);
    let key = ClusterKey::from_seed([2; 32]);
    let genesis = key.found("office".parse().expect("a name"), [3; 16]);
    let holder = Holder {
        node: identity.node_id(),
        sealing_key: OpeningKey::of(&identity).sealing_key(),
        role: Role::Keeper,
        scopes: Scopes::all(),
    };
    let cluster = genesis.cluster_id();
    let certificate = Certificate::new(cluster, holder, Issuer::Cluster, NOW, [4; 16]);
    GateView {
        node: identity.node_id(),
        sealing_key: OpeningKey::of(&identity).sealing_key(),
        genesis,
        standing: Standing::Member(Signed::new(certificate, &key)),
        revocations: Revocations::default(),
        issues: true,
        issuers: Vec::new(),
    }
}

const NOW: UnixTime = UnixTime(1_800_000_000);
