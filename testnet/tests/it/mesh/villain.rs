//! C6: members that misbehave, real processes with real certificates. Whatever they do, clients get
//! right bytes or none, the node beside them answers, and people see who it was.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use attic_node_core::api::{PeerState, PeerView};
use testnet::cluster::Cluster;
use testnet::program::{self, Running, eventually, is_root};
use testnet::proxy::FaultProxy;
use testnet::static_cache::StaticCache;
use testnet::villain::{self, Mode};

use crate::upstream;
use crate::upstream::shared::ranked;

use super::{HEALED_MAX, VISIBLE_MAX, all_answer, path, realise, status};

/// A member that misbehaves, on a host of its own. Killed when dropped.
struct Villain {
    mode: Mode,
    id: String,
    process: Option<Running>,
}

impl Villain {
    fn seed(mode: Mode) -> u8 {
        100 + mode as u8
    }

    /// Lets one in through node 0.
    fn unleash(cluster: &mut Cluster, mode: Mode) -> Villain {
        let ticket = cluster.invite(0, &["--write", "*"]);
        let network = cluster.network();
        let host = network.add_host();
        let mut command = network.place(host).command(env!("CARGO_BIN_EXE_testnet"));
        command.arg("villain");
        Villain::start(command, mode, &ticket)
    }

    /// Lets one in on the machine itself.
    fn beside(cluster: &Cluster, mode: Mode) -> Villain {
        let ticket = cluster.invite(0, &["--write", "*"]);
        let mut command = Command::new(env!("CARGO_BIN_EXE_testnet"));
        command.args(["villain", "--listen", "/ip4/127.0.0.1/tcp/0"]);
        Villain::start(command, mode, &ticket)
    }

    fn start(mut command: Command, mode: Mode, ticket: &str) -> Villain {
        let seed = Villain::seed(mode);
        command.args([&*mode.word(), "--ticket", ticket]);
        command.args(["--seed", &seed.to_string()]);
        Villain {
            mode,
            id: villain::identity(seed).node_id().to_string(),
            process: Some(program::start(&mut command)),
        }
    }

    fn unleash_all(cluster: &mut Cluster, modes: &[Mode]) -> Vec<Villain> {
        let villains: Vec<Villain> = modes
            .iter()
            .map(|mode| Villain::unleash(cluster, *mode))
            .collect();
        for villain in &villains {
            let met = format!("{:?} to be let in", villain.mode);
            eventually(&met, HEALED_MAX, || villain.seen_by(cluster, 0));
        }
        villains
    }

    /// What a node knows of it.
    fn seen_by(&self, cluster: &Cluster, node: usize) -> Option<PeerView> {
        let peers = cluster.peers(node).into_iter();
        { peers }.find(|peer| peer.node.to_string() == self.id)
    }

    /// What a node keeps it out for, if it does.
    fn banned_by(&self, cluster: &Cluster, node: usize) -> Option<String> {
        match self.seen_by(cluster, node)?.state {
            PeerState::Banned { reason, .. } => Some(reason),
            PeerState::Connected | PeerState::Away { .. } | PeerState::Left { .. } => None,
        }
    }

    /// Sees that a node keeps it out, and says so wherever one looks.
    fn is_shown_as_banned(&self, cluster: &Cluster, node: usize) {
        let reason = self.banned_by(cluster, node).expect("banned");
        let seen = self.seen_by(cluster, node).expect("seen");
        assert!(seen.strikes >= 1, "{:?}", self.mode);
        let cli = cluster[node].cli();
        cli.run(&["peers"]).succeeds().says(&reason);
        let shown = cli.json(&["peers"]);
        let shown = shown.as_array().expect("a list").iter();
        let shown = { shown }.find(|peer| peer["node"] == *self.id);
        let shown = shown.expect("it is listed");
        assert_eq!(shown["state"], "banned");
        assert_eq!(shown["reason"], *reason);
        assert!(shown["banned_until"].as_u64() > Some(0), "{shown}");
    }
}

impl Drop for Villain {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            let outcome = process.kill();
            if std::thread::panicking() {
                eprintln!("--- {:?}, {}\n{outcome}", self.mode, self.id);
            }
        }
    }
}

fn metric(cluster: &Cluster, node: usize, name: &str) -> f64 {
    let name = format!("attic_node_mesh_{name}");
    let value = cluster[node].metric(&name);
    value.unwrap_or_else(|| panic!("no metric {name}"))
}

/// A member that is to get NARs of an upstream for others, and sends them what is something else: they see
/// it before a client does, and ask the upstream.
#[test]
fn c6_bytes_of_a_member_that_lies_about_upstreams_reach_no_client() {
    if !is_root("c6 upstream") {
        return;
    }
    let upstream = StaticCache::serve("upstream-1");
    let proxy = FaultProxy::clean(upstream.address());
    let config = upstream::config(&[(&proxy, &*upstream.key.public)]);
    let cluster = Cluster::on_loopback(2, &config).join_all();
    let villain = Villain::beside(&cluster, Mode::WrongPulls);
    eventually("the liar to be met", HEALED_MAX, || {
        villain.seen_by(&cluster, 1)
    });
    // One that the liar is the first to be asked for, before the node itself.
    let nodes = [cluster[0].id(), cluster[1].id(), villain.id.clone()];
    let mut paths = (0..).map(|number| path(&format!("c6-upstream-{number}"), 3 << 20));
    let is_asked = |path: &String| ranked(&nodes, path)[0] == 2;
    let path = paths.find(is_asked).expect("there are many");
    upstream.add(&[&path], "xz");
    let nix = upstream::nix(&cluster[1], &[&upstream]);
    let url = cluster[1].url("main");
    let log = nix.run("nix", &["copy", "--from", &url, &path]).succeeds();
    // No client had to ask again.
    assert!(!log.stderr.contains("retrying"), "{log}");
    nix.verify_store();
    assert_eq!(upstream::asked(&proxy, "/nar/").len(), 1);
    // It may have been given wrong bytes itself.
    assert_eq!(villain.banned_by(&cluster, 1), None);
}

/// One honest holder, and seven members that say to hold everything and send wrong bytes, wrong
/// lengths, one chunk for ever, no frames, an invented manifest, nothing found, nothing at all.
#[test]
fn c6_bytes_of_lying_members_reach_no_client() {
    if !is_root("c6 liars") {
        return;
    }
    let mut cluster = Cluster::joined_with_config(2, "[mesh]\nreplicas = 1\n");
    let liars = [
        Mode::WrongBytes,
        Mode::WrongLengths,
        Mode::Endless,
        Mode::GarbageFrames,
        Mode::WrongManifest,
    ];
    let useless = [Mode::NotFound, Mode::Silent];
    let villains = Villain::unleash_all(&mut cluster, &[&liars[..], &useless].concat());
    for villain in &villains {
        let met = format!("{:?} to be met", villain.mode);
        eventually(&met, HEALED_MAX, || villain.seen_by(&cluster, 1));
    }
    let mut rounds = 0;
    let mut caught = BTreeMap::new();
    while caught.len() < liars.len() {
        rounds += 1;
        assert!(rounds <= ROUNDS_MAX, "caught only {caught:#?}");
        let path = path(&format!("c6-liars-{rounds}"), 12 << 20);
        cluster[0].push(&[&path]).succeeds();
        all_answer(&cluster, &[1], &path, 200, (Instant::now(), VISIBLE_MAX));
        realise(&cluster, 1, &[&path]);
        for villain in villains.iter().filter(|v| liars.contains(&v.mode)) {
            if let Some(reason) = villain.banned_by(&cluster, 1) {
                caught.insert(villain.mode.word(), reason);
            }
        }
    }
    println!("=> all liars caught after {rounds} paths: {caught:#?}");
    for villain in &villains {
        match liars.contains(&villain.mode) {
            true => villain.is_shown_as_banned(&cluster, 1),
            // Not to have what one said to have is a stale view, and to be slow no lie.
            false => assert_eq!(villain.banned_by(&cluster, 1), None, "{:?}", villain.mode),
        }
    }
    assert!(metric(&cluster, 1, "bans_wrong_bytes") >= 3.0);
    assert!(metric(&cluster, 1, "bans_protocol") >= 1.0);
    assert!(metric(&cluster, 1, "banned") >= 5.0);
    assert_eq!(metric(&cluster, 1, "flights_failed"), 0.0);
    let status = cluster[1].cli().run(&["status"]).succeeds();
    status.says("kept out");
    cluster.wait_among(&[0, 1]);
}

/// Forged, foreign, replayed, rolled-back and oversized segments, by gossip and in answers: they
/// change nothing that anybody sees, and whoever made them up is kept out.
#[test]
fn c6_forged_records_change_nothing_and_are_seen() {
    if !is_root("c6 forgers") {
        return;
    }
    let mut cluster = Cluster::joined(2);
    let before = path("c6-forgers-before", 2 << 20);
    cluster[0].push(&[&before]).succeeds();
    all_answer(
        &cluster,
        &[0, 1],
        &before,
        200,
        (Instant::now(), VISIBLE_MAX),
    );
    let forgers = [
        Mode::GarbageGossip,
        Mode::ForgedGossip,
        Mode::StrangerGossip,
        Mode::GarbageSync,
        Mode::OversizedSync,
    ];
    // What these say may be said in good faith, or harms only themselves.
    let others = [Mode::Rollback, Mode::ForgedPath, Mode::ReplaySync];
    let villains = Villain::unleash_all(&mut cluster, &[&forgers[..], &others].concat());
    for villain in &villains {
        let mode = villain.mode;
        if forgers.contains(&mode) {
            // Whoever heard of it first keeps it out; to the other it may say nothing any more.
            eventually(&format!("{mode:?} to be kept out"), HEALED_MAX, || {
                let by = |node| villain.banned_by(&cluster, node);
                by(0).or_else(|| by(1))
            });
            let by = (0..2).find(|node| villain.banned_by(&cluster, *node).is_some());
            villain.is_shown_as_banned(&cluster, by.expect("just seen"));
        }
        if mode == Mode::Rollback {
            for node in 0..2 {
                // All of them at once keep the two busy.
                eventually("a second log to be noticed", HEALED_MAX * 2, || {
                    villain
                        .seen_by(&cluster, node)
                        .filter(|peer| peer.quarantined)
                });
                let shown = cluster[node].cli().run(&["peers"]).succeeds();
                shown.says("in quarantine");
            }
        }
    }
    let bans: f64 = (0..2)
        .map(|node| metric(&cluster, node, "bans_records"))
        .sum();
    assert!(bans >= forgers.len() as f64, "{bans}");
    let rejected: f64 = (0..2)
        .map(|node| metric(&cluster, node, "gossip_rejected"))
        .sum();
    assert!(rejected >= 3.0, "{rejected}");

    // The cluster goes on as if they were not there.
    let after = path("c6-forgers-after", 2 << 20);
    cluster[1].push(&[&after]).succeeds();
    all_answer(
        &cluster,
        &[0, 1],
        &after,
        200,
        (Instant::now(), VISIBLE_MAX),
    );
    for node in 0..2 {
        realise(&cluster, node, &[&before, &after]);
    }
    cluster.wait_among(&[0, 1]);
}

/// Gossip, requests, streams and half-sent frames without end: what a client of the node sees of it
/// is that it is a little slower.
#[test]
fn c6_floods_are_cut_off_and_localhost_is_served() {
    if !is_root("c6 floods") {
        return;
    }
    let mut cluster = Cluster::joined(2);
    let known = path("c6-floods-known", 2 << 20);
    cluster[0].push(&[&known]).succeeds();
    all_answer(
        &cluster,
        &[0, 1],
        &known,
        200,
        (Instant::now(), VISIBLE_MAX),
    );
    let quiet = latencies(&cluster, &known);
    let modes = [
        Mode::FloodGossip,
        Mode::FloodRequests,
        Mode::Streams,
        Mode::SlowLoris,
    ];
    let villains = Villain::unleash_all(&mut cluster, &modes);
    eventually("a flood of gossip", HEALED_MAX, || {
        let taken = metric(&cluster, 0, "gossip_received");
        let refused = metric(&cluster, 0, "gossip_limited");
        (taken + refused > FLOOD_MIN).then_some(())
    });
    let streams = { &villains }.iter().find(|v| v.mode == Mode::Streams);
    let streams = streams.expect("unleashed");
    eventually(
        "the one with the streams to be kept out",
        HEALED_MAX,
        || streams.banned_by(&cluster, 0),
    );
    streams.is_shown_as_banned(&cluster, 0);
    assert!(metric(&cluster, 0, "bans_flood") >= 1.0);
    assert!(metric(&cluster, 0, "streams_dropped") >= 1.0);

    let flooded = latencies(&cluster, &known);
    let counts = ["gossip_limited", "requests_limited", "streams_dropped"];
    let counts = counts.map(|name| (name, metric(&cluster, 0, name)));
    println!("=> narinfo p50, p99 in ms: quiet {quiet:?}, flooded {flooded:?}; {counts:?}");
    // Nobody who is honest is kept waiting for good: news arrive, and bytes.
    let fresh = path("c6-floods-fresh", 6 << 20);
    cluster[0].push(&[&fresh]).succeeds();
    all_answer(&cluster, &[1], &fresh, 200, (Instant::now(), HEALED_MAX));
    realise(&cluster, 1, &[&known, &fresh]);
    assert_eq!(metric(&cluster, 0, "network_restarts"), 0.0);
    for villain in villains.iter().filter(|v| v.mode == Mode::SlowLoris) {
        assert_eq!(villain.banned_by(&cluster, 0), None, "slow is no crime");
    }
    cluster.wait_among(&[0, 1]);
}

/// A member that says by all the rules more than anybody can keep is not heard beyond its share, and
/// nobody else notices.
#[test]
fn c6_a_member_that_says_without_end_fills_nobodys_disk() {
    if !is_root("c6 chatter") {
        return;
    }
    let mut cluster = Cluster::joined_with_config(2, "[mesh]\nlog-max = \"2 MiB\"\n");
    let villains = Villain::unleash_all(&mut cluster, &[Mode::Chatter]);
    for node in [0, 1] {
        eventually("the log to be too long", CHATTER_MAX, || {
            let seen = villains[0].seen_by(&cluster, node)?;
            seen.log_too_long.then_some(())
        });
        assert_eq!(metric(&cluster, node, "logs_too_long"), 1.0);
        let kept = metric(&cluster, node, "log_size_bytes");
        assert!(kept < f64::from(9 << 18), "{kept} bytes");
        let peers = cluster[node].cli().run(&["peers"]);
        peers.succeeds().says("more than is kept");
    }
    let fresh = path("c6-chatter", 2 << 20);
    cluster[0].push(&[&fresh]).succeeds();
    all_answer(&cluster, &[1], &fresh, 200, (Instant::now(), VISIBLE_MAX));
    realise(&cluster, 1, &[&fresh]);
    let kept = metric(&cluster, 0, "log_size_bytes");
    assert!(kept < f64::from(9 << 18), "{kept} bytes");
}

/// Median and 99th percentile of how long node 0 takes to answer for a path it has.
fn latencies(cluster: &Cluster, path: &str) -> (f64, f64) {
    let mut taken: Vec<f64> = (0..400)
        .map(|_| {
            let asked = Instant::now();
            assert_eq!(status(&cluster[0], path), 200);
            asked.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    taken.sort_by(f64::total_cmp);
    (taken[taken.len() / 2], taken[taken.len() * 99 / 100])
}

/// Until 2 MiB are said and heard on a busy machine.
const CHATTER_MAX: Duration = Duration::from_secs(120);
/// Paths that are read before all liars must have lied.
const ROUNDS_MAX: usize = 12;
/// Messages from which on it is one: no honest node of three sends as many, and a busy machine does
/// not let the villain send many more.
const FLOOD_MIN: f64 = 2000.0;
