//! Row C1: a bad ticket lets nobody in, and says what is wrong with it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use testnet::cluster::Cluster;
use testnet::program::{eventually, is_root};

/// What joining with a ticket on node 1 said, which must not have let it in.
#[track_caller]
fn refused(cluster: &Cluster, ticket: &str, hint: &str) -> String {
    let joined = cluster.join(1, ticket).exits_with(1).says(hint);
    assert_eq!(joined.stdout, "");
    let info = cluster[1].cli().run(&["cluster", "info"]).exits_with(1);
    info.says("attic-node join");
    assert!(cluster.peers(1).is_empty());
    let first = joined.stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with("error: "), "{joined}");
    first.to_owned()
}

#[test]
fn c1_each_kind_of_bad_ticket_has_its_own_message() {
    if !is_root("c1 tickets") {
        return;
    }
    let mut cluster = Cluster::new(4);
    let good = cluster.invite(0, &[]);
    let mut said = BTreeSet::new();
    let copy = "hint: copy the whole ticket";
    let new = "hint: ask for a new ticket";

    said.insert(refused(&cluster, "hello", copy));
    let damaged = &good[..good.len() - 1];
    said.insert(refused(&cluster, damaged, copy));

    let brief = cluster.invite(0, &["--expires", "1s"]);
    let made = Instant::now();
    eventually("the ticket to expire", Duration::from_secs(5), || {
        (made.elapsed() > Duration::from_secs(2)).then_some(())
    });
    said.insert(refused(&cluster, &brief, new));

    cluster.join(2, &good).succeeds();
    said.insert(refused(&cluster, &good, new));

    // Of a cluster that the node it leads to has left for another.
    cluster[3].cli().run(&["cluster", "init"]).succeeds();
    let foreign = cluster.invite(3, &[]);
    let leave = ["leave", "--no-confirm", "--delete-cluster-key"];
    cluster[3].cli().run(&leave).succeeds();
    cluster[3].cli().run(&["cluster", "init"]).succeeds();
    said.insert(refused(&cluster, &foreign, new));

    let fresh = cluster.invite(0, &[]);
    cluster[0].kill();
    let reach = "hint: see that a node of the cluster is up";
    said.insert(refused(&cluster, &fresh, reach));
    assert_eq!(said.len(), 6, "one message for two reasons: {said:#?}");

    // Nothing of that keeps a good ticket from being good.
    cluster[0].start_again();
    cluster.join(1, &fresh).succeeds();
    cluster
        .join(1, &fresh)
        .exits_with(1)
        .says("hint: see it with");
}

/// One who used a ticket may use it again: its first answer may have been lost.
#[test]
fn c1_a_ticket_is_not_used_up_by_the_same_node_twice() {
    if !is_root("c1 twice") {
        return;
    }
    let cluster = Cluster::new(2);
    let ticket = cluster.invite(0, &["--uses", "1"]);
    cluster.join(1, &ticket).succeeds();
    cluster[1].cli().run(&["leave", "--no-confirm"]).succeeds();
    cluster.join(1, &ticket).succeeds();
    cluster.wait_connected(&[0, 1]);
}

/// A counted ticket needs a node that issues them; an open one any node.
#[test]
fn c1_open_tickets_are_taken_by_every_member_counted_ones_by_issuers() {
    if !is_root("c1 open") {
        return;
    }
    let mut cluster = Cluster::joined(2);
    let (counted, open) = (cluster.invite(0, &[]), cluster.invite(0, &["--open"]));
    let refused = cluster[1].cli().run(&["invite"]).exits_with(1);
    refused.says("hint: only the node that made the cluster can");
    let (late, later) = (cluster.add(), cluster.add());
    cluster[0].kill();
    cluster.join(late, &counted).exits_with(1);
    cluster.join(late, &open).succeeds();
    cluster.join(later, &open).succeeds();
    cluster.wait_connected(&[1, late, later]);
}
