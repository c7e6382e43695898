//! The verbs of clusters, as programs that talk to a node in memory.

use std::process::{Command, Output, Stdio};

use attic_node_core::api::{InviteRequest, Role};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::memory_cluster::{Cluster, NODES, shut_out};
use crate::memory_node::{Faults, MemoryNode};

/// A user and a node; what a line of the user's does is checked.
struct World {
    node: MemoryNode,
    home: tempfile::TempDir,
}

impl World {
    async fn new(cluster: Cluster) -> World {
        let node = MemoryNode::start(Faults::default()).await;
        node.state().cluster = cluster;
        let home = tempfile::tempdir().unwrap();
        World { node, home }
    }

    /// Runs, checks the exit code and each of what is `said` on stderr, and gives stdout.
    async fn check(&self, line: &str, code: i32, said: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attic-node"));
        command
            .env_clear()
            .env("HOME", self.home.path())
            .env("ATTIC_NODE_ENDPOINT", self.node.endpoint().to_string())
            .args(line.split_whitespace())
            .stdin(Stdio::null());
        let output = spawn_blocking(move || command.output()).await.unwrap();
        let Output {
            status,
            stdout,
            stderr,
        } = output.unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(code), "{line}: {stderr}");
        for said in said {
            assert!(
                stderr.contains(said),
                "{line} should say {said:?}: {stderr}"
            );
        }
        String::from_utf8(stdout).unwrap()
    }

    /// Runs with `--json`, and reads what is printed.
    async fn json(&self, line: &str) -> Value {
        let printed = self.check(&format!("{line} --json"), 0, &[]).await;
        serde_json::from_str(&printed).unwrap()
    }
}

#[tokio::test]
async fn init_names_a_cluster_once() {
    let world = World::new(Cluster::default()).await;
    let made = world
        .check(
            "cluster init --name office",
            0,
            &["Made cluster \"office\""],
        )
        .await;
    assert_eq!(made.trim(), "0f".repeat(16));
    let hint = "hint: see it with: attic-node cluster info";
    world.check("cluster init", 1, &["InCluster", hint]).await;
    world.node.state().cluster = Cluster::default();
    let made = world.json("cluster init --name office").await;
    let wanted = json!({ "cluster": "0f".repeat(16), "name": "office" });
    assert_eq!(made, wanted);
}

#[tokio::test]
async fn info_shows_the_cluster_or_that_there_is_none() {
    let world = World::new(Cluster::default()).await;
    let hint = "hint: make one with: attic-node cluster init";
    for line in [
        "cluster info",
        "cluster info --json",
        "peers",
        "revoke desk --no-confirm",
        "leave --no-confirm",
    ] {
        assert_eq!(world.check(line, 1, &["NoCluster", hint]).await, "");
    }
    world.node.state().cluster = Cluster::of_three();
    let shown = world.check("cluster info", 0, &[]).await;
    for line in [
        "Name: office",
        &format!("Node: {}", NODES[0]),
        "Role: keeper, makes tickets",
        "Certificate: expired at 2000-02-29 12:00 UTC",
        "Members: 3 (1 connected)",
        "Cache: main (public, read)",
        "Paths: 12",
        "Log: 1 segment, 2.00 KiB",
    ] {
        let said = shown.lines().any(|shown| shown.starts_with(line));
        assert!(said, "{line}: {shown}");
    }
    let shown = world.check("cluster info --json", 0, &[]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["caches"][0]["public_keys"], json!(["main:AAAA"]));
}

/// A word of another node is told as that, and only what the cluster's key signed as true.
#[tokio::test]
async fn info_says_how_it_knows_that_the_node_was_revoked() {
    let world = World::new(Cluster::of_three()).await;
    let nameless = NODES[2];
    let others = "but desk says this node is revoked; no word of the cluster's key on that is here";
    let two = format!("but desk, {nameless} say this node is revoked");
    for (revoked, begins, says) in [
        (shut_out(None, &[(1, Some("desk"))]), "expired at", others),
        (
            shut_out(None, &[(1, Some("desk")), (2, None)]),
            "expired at",
            two.as_str(),
        ),
        (
            shut_out(Some(951_825_600), &[]),
            "revoked at 2000-02-29 12:00 UTC: the cluster's key signed it",
            "attic-node leave",
        ),
        (
            shut_out(Some(951_825_600), &[(1, Some("desk"))]),
            "revoked at 2000-02-29 12:00 UTC, desk says so too: the cluster's key",
            "attic-node leave",
        ),
    ] {
        world.node.state().cluster.shut_out = Some(revoked.clone());
        let shown = world.check("cluster info", 0, &[]).await;
        let line = shown
            .lines()
            .find_map(|line| line.strip_prefix("Certificate: "));
        let line = line.unwrap_or_default();
        assert!(line.starts_with(begins) && line.contains(says), "{shown}");
        let shown = world.json("cluster info").await;
        assert_eq!(shown["revoked"], json!(revoked));
    }
}

#[tokio::test]
async fn invite_prints_the_ticket_alone() {
    let world = World::new(Cluster::default()).await;
    let said = [
        "a ticket for 1 member",
        "Reads: *; writes: nothing",
        "like a password",
    ];
    assert_eq!(world.check("invite", 0, &said).await, "attic1ticket\n");
    let line = "invite --role keeper --read a* --read b --write b --expires 90m --uses 3 --json";
    let said = ["for 3 keepers", "Reads: a* b; writes: b"];
    let printed = world.check(line, 0, &said).await;
    assert_eq!(
        serde_json::from_str::<Value>(&printed).unwrap(),
        json!({ "ticket": "attic1ticket" })
    );
    world
        .check("invite --open", 0, &["for any number of members"])
        .await;

    let request = |role, read: &[&str], write: &[&str], expires_seconds, uses| InviteRequest {
        role,
        read: read.iter().map(ToString::to_string).collect(),
        write: write.iter().map(ToString::to_string).collect(),
        expires_seconds,
        uses,
    };
    let week = 7 * 24 * 3600;
    let wanted = [
        request(Role::Member, &["*"], &[], week, Some(1)),
        request(Role::Keeper, &["a*", "b"], &["b"], 90 * 60, Some(3)),
        request(Role::Member, &["*"], &[], week, None),
    ];
    assert_eq!(world.node.state().cluster.invited, wanted);
}

#[tokio::test]
async fn join_shows_the_mesh_forming() {
    let world = World::new(Cluster::default()).await;
    let said = [
        &format!("Joined cluster \"office\", admitted by {}", NODES[1]),
        "Cache \"main\" had no paths",
        "your cache \"tools\" is \"tools-local\" now",
        &format!("desk ({}) at /ip4/10.0.0.1/tcp/7746", NODES[1]),
        "1 connected, 1 away",
        "attic-node use main",
    ];
    let lines = world.check("join attic1good", 0, &said).await;
    assert_eq!(
        lines,
        "extra-substituters = http://127.0.0.1:7745/main http://127.0.0.1:7745/tools\n\
         extra-trusted-public-keys = main:AAAA main-1:BBBB tools:AAAA tools-1:BBBB\n"
    );
    world.node.state().cluster = Cluster::default();
    let joined = world.json("join attic1good").await;
    assert_eq!(joined["admitted_by"], NODES[1]);
    assert_eq!(joined["caches"][1]["public_key"], "tools:AAAA");
    assert_eq!(joined["caches"][1]["old_public_keys"][0], "tools-1:BBBB");
    assert_eq!(joined.get("incomplete"), None);
}

#[tokio::test]
async fn join_warns_that_keys_may_be_missing() {
    let world = World::new(Cluster::default()).await;
    let said = ["warning: not all that the cluster knows is here yet"];
    world.check("join attic1slow", 0, &said).await;
}

/// Each way a ticket fails has its own message, from the node, and its own way on.
#[tokio::test]
async fn join_says_what_is_wrong_with_a_ticket() {
    let world = World::new(Cluster::default()).await;
    let new = "hint: ask for a new ticket";
    for (ticket, said, hint) in [
        ("attic1expired", "TicketExpired", new),
        ("attic1usedup", "TicketUsedUp", new),
        ("attic1foreign", "NotAdmitted", new),
        (
            "attic1nobody",
            "NobodyReached",
            "hint: see that a node of the cluster is up",
        ),
        ("attic1goo", "BadTicket", "hint: copy the whole ticket"),
    ] {
        let printed = world
            .check(&format!("join {ticket}"), 1, &[said, hint])
            .await;
        assert_eq!(printed, "", "stdout is data");
    }
    assert_eq!(
        world.node.state().requests["join"],
        5,
        "nothing is tried twice"
    );
    world.node.state().cluster = Cluster::of_three();
    let hint = "leave it with: attic-node leave";
    world
        .check("join attic1good", 1, &["InCluster", hint])
        .await;
}

#[tokio::test]
async fn leave_asks_first() {
    let world = World::new(Cluster::of_three()).await;
    world
        .check("leave", 1, &["not confirmed", "hint: pass --no-confirm"])
        .await;
    assert!(world.node.state().cluster.name.is_some());
    let said = ["Left cluster \"office\" (2 NARs handed over"];
    world.check("leave --yes", 0, &said).await;
    assert!(world.node.state().cluster.name.is_none());
    world.node.state().cluster = Cluster::of_three();
    let left = world.json("leave --no-confirm").await;
    assert_eq!(left, json!({ "handed_off": 2, "only_here": 1 }));
}

#[tokio::test]
async fn peers_shows_how_each_stands() {
    let world = World::new(Cluster::of_three()).await;
    let shown = world.check("peers", 0, &[]).await;
    let rows: Vec<Vec<_>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][..4], ["NAME", "STATE", "ROLE", "VERSION"]);
    let desk = ["desk", "connected", "member", "1.0.0", "0.2", "ms"];
    assert_eq!(rows[1][..6], desk);
    assert_eq!(rows[2][..5], ["laptop", "banned", "member", "1.0.0", "-"]);
    assert!(shown.contains("until 2000-02-29 12:00 UTC: wrong bytes"));
    let shown = world.check("peers --json", 0, &[]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["node"], NODES[1]);
    assert_eq!(shown[1]["state"], "banned");
}

/// A slip of the hand revokes nobody.
#[tokio::test]
async fn revoke_takes_an_id_a_name_or_the_beginning_of_an_id() {
    let world = World::new(Cluster::of_three()).await;
    let hint = "hint: see them with: attic-node peers";
    world
        .check("revoke des", 1, &["no peer is called des", hint])
        .await;
    world
        .check(
            "revoke 12D3KooW",
            1,
            &["no peer is called", "at least 12", hint],
        )
        .await;
    for (named, node) in [
        ("laptop", NODES[2]),
        (&NODES[1][..12], NODES[1]),
        // Not among the peers, and revoked all the same.
        (NODES[0], NODES[0]),
    ] {
        let said = format!("Revoked {node}");
        let rotate =
            "hint: it may have the keys of other caches it could write; make new ones with";
        let line = format!("revoke {named}");
        let hint = "hint: pass --no-confirm";
        world.check(&line, 1, &["not confirmed", hint]).await;
        assert!(world.node.state().cluster.revoked.is_empty());
        let line = format!("{line} --no-confirm");
        let tickets = "1 ticket by which it came";
        let made = "warning: it made the cache \"tools\", and can sign for it still";
        let replace = "attic-node cache destroy tools, then attic-node cache create tools";
        let said = [&said, tickets, made, replace, rotate];
        world.check(&line, 0, &said).await;
        let revoked = world.node.state().cluster.revoked.pop();
        assert_eq!(revoked.map(|node| node.to_string()).as_deref(), Some(node));
        let told = world.json(&line).await;
        assert_eq!(
            told,
            json!({ "node": node, "tickets_withdrawn": 1, "caches": ["tools"] })
        );
        world.node.state().cluster.revoked.clear();
    }
    let mut cluster = Cluster::of_three();
    cluster.peers[1].name = Some("desk".into());
    world.node.state().cluster = cluster;
    let both = format!("desk could be {} or {}", NODES[1], NODES[2]);
    world.check("revoke desk", 1, &[&both, hint]).await;
    assert!(world.node.state().cluster.revoked.is_empty());
}
