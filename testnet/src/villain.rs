//! A member of a cluster that misbehaves: `testnet villain`.
//!
//! It joins with a real ticket, gets a real certificate, follows the logs like any node, and says
//! that it holds whatever anybody has. Then it does what its [`Mode`] says, until it is killed. It is
//! a process of its own that shares nothing with the nodes but the wire.

use std::error::Error;
use std::sync::Arc;

use attic_p2p::identity::Identity;
use attic_p2p::membership::gate::MemberGate;
use attic_p2p::membership::ticket::Ticket;
use attic_p2p::network::{Network, NetworkOptions, Topic};
use clap::{Args, ValueEnum};

use crate::villain::door::Door;
use crate::villain::member::Member;

mod bulk;
mod door;
mod forge;
mod member;
mod pull;
mod raw;
mod sync;

/// What a villain needs.
#[derive(Args, Clone, Debug)]
pub struct VillainArgs {
    /// Lets it in
    #[arg(long)]
    pub ticket: String,
    /// Decides its key, so that others know its id
    #[arg(long)]
    pub seed: u8,
    /// Where it listens
    #[arg(long, default_value = "/ip4/0.0.0.0/tcp/7746")]
    pub listen: libp2p::Multiaddr,
    /// What it does
    #[arg(value_enum)]
    pub mode: Mode,
}

/// What a villain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Sends other bytes than it was asked for, as many
    WrongBytes,
    /// Sends frames that are a byte too short
    WrongLengths,
    /// Sends one chunk for ever, credit or not
    Endless,
    /// Sends what is no frame
    GarbageFrames,
    /// Sends a manifest it made up
    WrongManifest,
    /// Says it holds everything, and then that it does not
    NotFound,
    /// Says it holds everything, and sends nothing
    Silent,
    /// Says it gets NARs of upstreams for others, and sends what is something else
    WrongPulls,
    /// Gossips what is no segment
    GarbageGossip,
    /// Gossips segments in another member's name
    ForgedGossip,
    /// Gossips the segments of somebody who is no member
    StrangerGossip,
    /// Gossips a second log of its own, from the beginning
    Rollback,
    /// Gossips a path that no key of the cache signed
    ForgedPath,
    /// Answers questions about logs with what is no answer
    GarbageSync,
    /// Answers with segments that are too long
    OversizedSync,
    /// Answers with the oldest segments it has, whatever is asked, and boasts of others it has not
    ReplaySync,
    /// Gossips segments without end
    FloodGossip,
    /// Asks without end
    FloodRequests,
    /// Opens 1,000 streams, again and again
    Streams,
    /// Begins everything and ends nothing
    SlowLoris,
    /// Says by the rules that it holds NARs, and says more and more
    Chatter,
}

impl Mode {
    /// Every mode.
    pub fn all() -> &'static [Mode] {
        Mode::value_variants()
    }

    /// Its name on the command line.
    pub fn word(self) -> String {
        let value = self.to_possible_value();
        value
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// The key of the villain with this seed.
pub fn identity(seed: u8) -> Identity {
    Identity::from_seed([seed; 32])
}

/// Joins and misbehaves. Ends only when it cannot join, or its network ends.
pub async fn run(args: VillainArgs) -> Result<(), Box<dyn Error>> {
    let ticket: Ticket = args.ticket.trim().parse()?;
    let identity = identity(args.seed);
    let cluster = ticket.genesis().cluster_id();
    let topic = Topic::new(format!("attic-node/{cluster}/log"));
    let door = Door::new(&identity, &ticket);
    let addresses: Vec<libp2p::Multiaddr> = { ticket.addresses() }
        .iter()
        .filter_map(|address| address.multiaddr().parse().ok())
        .collect();
    let options = NetworkOptions {
        listen: vec![args.listen],
        peers: addresses.clone(),
        mdns: true,
        topics: vec![topic.clone()],
        agent: format!("attic-node/6.6.6 villain-{}", args.mode.word()),
        seed: args.seed.into(),
        ..NetworkOptions::default()
    };
    let gate = Arc::new(MemberGate::new(door.clone()));
    let (network, events) = Network::start(options, gate.clone(), identity.clone())?;
    let certificate = door.certificate().await;
    println!("joined as {}", identity.node_id());
    let mut member = Member::new(
        &identity,
        &ticket,
        certificate,
        (network, events),
        topic,
        args.mode,
    )?;
    match args.mode {
        Mode::Streams | Mode::SlowLoris => {
            member.until_known().await?;
            member.network().shutdown().await;
            raw::run(args.mode, &identity, gate, &addresses).await
        }
        _ => member.run().await,
    }
}
