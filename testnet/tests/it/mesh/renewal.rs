//! Certificates end, and are renewed in time. The certificate that an open ticket gives ends with the
//! ticket, so that a test need not wait for a month.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attic_node_core::api::PeerState;
use testnet::cluster::Cluster;
use testnet::program::{eventually, is_root};

use super::HEALED_MAX;

/// A node that was never restarted, and whose connection never broke, has a new certificate before
/// the old one ends.
#[test]
fn a_running_node_is_given_its_next_certificate_in_time() {
    if !is_root("renewal") {
        return;
    }
    let cluster = Cluster::new(2);
    let ticket = cluster.invite(0, &["--open", "--expires", &format!("{BRIEF}s")]);
    cluster.join(1, &ticket).succeeds();
    cluster.wait_connected(&[0, 1]);
    let first = cluster.view(1).certificate_expires;
    assert!(first <= now() + BRIEF, "it ends with the ticket");
    eventually(
        "the next certificate",
        Duration::from_secs(2 * BRIEF),
        || (cluster.view(1).certificate_expires > now() + MONTH / 2).then_some(()),
    );
    assert!(now() <= first, "renewed when the old one had ended");
    eventually("the other to know of it", HEALED_MAX, || {
        (cluster.peers(0)[0].certificate_expires > now() + MONTH / 2).then_some(())
    });
    assert_eq!(cluster.connected(0), [cluster[1].id()]);
    let info = cluster[1].cli().run(&["cluster", "info"]).succeeds();
    info.says("Certificate: good until");
}

/// Nobody renews while the issuer is away: nodes whose certificate ran out say so and keep serving
/// what they have, and are back as soon as the issuer is, with nothing done to them.
#[test]
fn who_has_run_out_says_so_and_comes_back_with_the_issuer() {
    if !is_root("run out") {
        return;
    }
    let mut cluster = Cluster::new(3);
    let ticket = cluster.invite(0, &["--open", "--expires", &format!("{BRIEF}s")]);
    cluster.join(1, &ticket).succeeds();
    cluster.join(2, &ticket).succeeds();
    cluster.wait_connected(&[0, 1, 2]);
    cluster[0].kill();
    let ends = [1, 2].map(|node| cluster.view(node).certificate_expires);
    let end = ends.into_iter().max().unwrap_or_default();
    assert!(end <= now() + BRIEF, "renewed before the issuer was gone");
    eventually(
        "the certificates to end",
        Duration::from_secs(2 * BRIEF),
        || (now() > end + 1).then_some(()),
    );
    // Who is connected stays so; who comes anew is asked for its certificate.
    cluster[2].kill();
    cluster[2].start_again();
    let expired = "certificate expired at";
    for (node, other) in [(1, 2), (2, 1)] {
        let id = cluster[other].id();
        let reason = eventually("a reason", HEALED_MAX, || {
            let peers = cluster.peers(node);
            let peer = peers.iter().find(|peer| peer.node.to_string() == id)?;
            match &peer.state {
                PeerState::Away { reason } => reason.clone(),
                _ => None,
            }
        });
        assert!(reason.contains(expired), "{reason}");
        let cli = cluster[node].cli();
        cli.run(&["peers"]).succeeds().says(expired);
        cli.run(&["status"])
            .succeeds()
            .says("Certificate: expired at");
        cli.run(&["cluster", "info"]).succeeds().says("expired at");
        assert_eq!(cluster[node].get("/readyz").unwrap().status, 200);
    }

    cluster[0].start_again();
    cluster.wait_connected(&[0, 1, 2]);
    for node in [1, 2] {
        assert!(cluster.view(node).certificate_expires > now() + MONTH / 2);
        let status = cluster[node].cli().run(&["status"]).succeeds();
        status.says("Certificate: good until");
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// How long a ticket is good, in seconds: enough to join with it on a busy machine, twice.
const BRIEF: u64 = 40;
const MONTH: u64 = 30 * 24 * 3600;
