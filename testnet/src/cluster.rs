//! Real clusters: nodes as processes, each on a host of its own.
//!
//! As root, hosts are network namespaces on one switch ([`Network`]): they have addresses, find each
//! other, and can be cut off. Otherwise they are loopback addresses, where only processes can fail.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::{Index, IndexMut};
use std::time::Duration;

use attic_node_core::api::{ClusterView, PeerState, PeerView};
use rustix::process::geteuid;

pub use self::network::{Family, Network};
pub use self::sites::Sites;
use crate::netns::{Namespace, Place};
use crate::nix::NixClient;
use crate::node::TestNode;
use crate::program::{self, Outcome, eventually};

mod network;
mod sites;

/// Nodes on one network, numbered from 0. Killed and cleaned up when dropped.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: no process is left when its namespace goes.
    nodes: Vec<TestNode>,
    hosts: Hosts,
    config: String,
}

#[derive(Debug)]
enum Hosts {
    Namespaces(Network),
    Sites(Sites),
    /// Host `i` is 127.`a`.`b`.`i+1`.
    Loopback {
        a: u8,
        b: u8,
    },
}

impl Cluster {
    /// `count` nodes with the default configuration, ready, in no cluster yet.
    #[track_caller]
    pub fn new(count: usize) -> Cluster {
        Cluster::with_config(count, "")
    }

    /// `count` nodes with this configuration file, ready, in no cluster yet.
    #[track_caller]
    pub fn with_config(count: usize, config: &str) -> Cluster {
        let hosts = if geteuid().is_root() {
            Hosts::Namespaces(Network::new())
        } else {
            free_loopback()
        };
        Cluster::on(hosts, count, config)
    }

    /// `count` nodes with this configuration file: the first in the open, every other in a site of
    /// its own ([`Sites`]), ready, in no cluster yet. Needs root and `nft`.
    #[track_caller]
    pub fn in_sites(count: usize, config: &str) -> Cluster {
        Cluster::on(Hosts::Sites(Sites::new()), count, config)
    }

    /// `count` nodes on a network that is there, as [`with_config`](Cluster::with_config).
    #[track_caller]
    pub fn on_network(network: Network, count: usize, config: &str) -> Cluster {
        Cluster::on(Hosts::Namespaces(network), count, config)
    }

    /// `count` nodes on loopback addresses, whoever runs this.
    #[track_caller]
    pub fn on_loopback(count: usize, config: &str) -> Cluster {
        Cluster::on(free_loopback(), count, config)
    }

    #[track_caller]
    fn on(hosts: Hosts, count: usize, config: &str) -> Cluster {
        let mut cluster = Cluster {
            nodes: Vec::new(),
            hosts,
            config: config.to_owned(),
        };
        for _ in 0..count {
            cluster.add();
        }
        cluster
    }

    /// `count` nodes in one cluster, which node 0 made, all connected and allowed everything.
    #[track_caller]
    pub fn joined(count: usize) -> Cluster {
        Cluster::new(count).join_all()
    }

    /// As [`joined`](Cluster::joined), with this configuration file.
    #[track_caller]
    pub fn joined_with_config(count: usize, config: &str) -> Cluster {
        Cluster::with_config(count, config).join_all()
    }

    /// Makes a cluster on node 0, lets all others in, and waits until all are connected.
    #[track_caller]
    pub fn join_all(self) -> Cluster {
        let ticket = self.invite(0, &["--write", "*", "--uses", "1000"]);
        for node in 1..self.len() {
            self.join(node, &ticket).succeeds();
        }
        let all: Vec<usize> = (0..self.len()).collect();
        self.wait_connected(&all);
        for node in all {
            self.wait_writable(node, "main");
        }
        self
    }

    /// Adds a node, in no cluster yet, and gives its number.
    #[track_caller]
    pub fn add(&mut self) -> usize {
        let number = self.nodes.len();
        let node = match &mut self.hosts {
            Hosts::Namespaces(network) => {
                let host = network.add_host();
                TestNode::on_host(network.place(host), &self.config, &[])
            }
            Hosts::Sites(sites) => {
                let host = sites.add_host();
                TestNode::on_host(sites.place(host), &self.config, &[])
            }
            Hosts::Loopback { a, b } => {
                let part = u8::try_from(number + 1).expect("at most 255 nodes on loopback");
                let listen = format!("{}:{MESH_PORT}", Ipv4Addr::new(127, *a, *b, part));
                let env = [
                    ("ATTIC_NODE_MESH_LISTEN", &*listen),
                    // Interfaces of this machine are not this node's.
                    ("ATTIC_NODE_MESH_MDNS", "false"),
                ];
                TestNode::on_host(Place::machine(), &self.config, &env)
            }
        };
        self.nodes.push(node);
        number
    }

    /// How many nodes there are, running or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// `attic-node invite args…` on a node: the ticket.
    #[track_caller]
    pub fn invite(&self, node: usize, args: &[&str]) -> String {
        let args = [&["invite"], args].concat();
        let printed = self[node].cli().run(&args).succeeds();
        printed.stdout.trim().to_owned()
    }

    /// `attic-node join ticket` on a node.
    #[track_caller]
    pub fn join(&self, node: usize, ticket: &str) -> Outcome {
        self[node].cli().run(&["join", ticket])
    }

    /// What a node knows of the others.
    #[track_caller]
    pub fn peers(&self, node: usize) -> Vec<PeerView> {
        self[node].ask("peers")
    }

    /// The cluster as a node sees it. Panics when it is in none.
    #[track_caller]
    pub fn view(&self, node: usize) -> ClusterView {
        self[node].ask("cluster")
    }

    /// Ids of the nodes that a node is connected to, sorted.
    #[track_caller]
    pub fn connected(&self, node: usize) -> Vec<String> {
        let peers = self.peers(node);
        let connected = peers
            .iter()
            .filter(|peer| peer.state == PeerState::Connected);
        let mut ids: Vec<_> = connected.map(|peer| peer.node.to_string()).collect();
        ids.sort();
        ids
    }

    /// Waits until each of `nodes` is connected to all others of them and to nobody else.
    #[track_caller]
    pub fn wait_connected(&self, nodes: &[usize]) {
        let ids: Vec<String> = nodes.iter().map(|node| self[*node].id()).collect();
        for (node, id) in nodes.iter().zip(&ids) {
            let mut others: Vec<_> = ids.iter().filter(|other| *other != id).cloned().collect();
            others.sort();
            let what = format!("node {node} to be connected to exactly {nodes:?}");
            eventually(&what, CONNECT_MAX, || {
                (self.connected(*node) == others).then_some(())
            });
        }
    }

    /// Waits until each of `nodes` is connected to all others of them, whoever else there is.
    #[track_caller]
    pub fn wait_among(&self, nodes: &[usize]) {
        for node in nodes {
            let what = format!("node {node} to be connected to {nodes:?}");
            eventually(&what, CONNECT_MAX, || {
                let connected = self.connected(*node);
                let others = nodes.iter().filter(|other| *other != node);
                { others }
                    .all(|other| connected.contains(&self[*other].id()))
                    .then_some(())
            });
        }
    }

    /// Waits until a node may write a cache of the cluster.
    #[track_caller]
    pub fn wait_writable(&self, node: usize, cache: &str) {
        let what = format!("node {node} to be handed the key of {cache}");
        eventually(&what, CONNECT_MAX, || {
            let view = self.view(node);
            let found = view.caches.iter().find(|c| c.name.as_str() == cache)?;
            found.writable.then_some(())
        });
    }

    /// Where its nodes are, as a table for people, and how to talk to one.
    pub fn table(&self) -> String {
        let mut table = format!(
            "{:<5}{:<40}{:<30}{:<9}data directory\n",
            "node", "namespace", "url", "pid"
        );
        for (number, node) in self.nodes.iter().enumerate() {
            let namespace = node.place().namespace().map_or("-", Namespace::name);
            let (url, pid) = (node.url("main"), node.pid().as_raw_nonzero());
            let data_dir = node.data_dir().display();
            table += &format!("{number:<5}{namespace:<40}{url:<30}{pid:<9}{data_dir}\n");
        }
        let last = self.nodes.last().expect("a cluster has a node");
        let peers = [
            "peers",
            "--data-dir",
            &last.data_dir().display().to_string(),
        ];
        let mut words = last.place().command(program::attic_node());
        words.args(peers);
        table + &format!("\n$ {}", program::describe(&words))
    }

    /// A Nix with an empty store beside a node, which substitutes from one of its caches.
    #[track_caller]
    pub fn nix(&self, node: usize, cache: &str) -> NixClient {
        NixClient::fresh(&self[node], cache)
    }

    /// The sites in which the nodes are. Panics if they are not in any.
    #[track_caller]
    pub fn sites(&self) -> &Sites {
        match &self.hosts {
            Hosts::Sites(sites) => sites,
            Hosts::Namespaces(_) | Hosts::Loopback { .. } => panic!("no sites"),
        }
    }

    /// The network between the nodes, to be broken. Panics on loopback, which has none.
    #[track_caller]
    pub fn network(&mut self) -> &mut Network {
        match &mut self.hosts {
            Hosts::Namespaces(network) => network,
            Hosts::Sites(_) => panic!("sites cannot be broken"),
            Hosts::Loopback { .. } => panic!("loopback cannot be broken; run as root"),
        }
    }
}

impl Index<usize> for Cluster {
    type Output = TestNode;

    fn index(&self, node: usize) -> &TestNode {
        &self.nodes[node]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, node: usize) -> &mut TestNode {
        &mut self.nodes[node]
    }
}

/// Loopback addresses on whose mesh port nobody listens now.
#[track_caller]
fn free_loopback() -> Hosts {
    let start = std::process::id();
    let ranges = (0..1000).map(|step| {
        let [.., high, low] = start.wrapping_add(step * 257).to_be_bytes();
        (high | 0x80, low)
    });
    let free =
        |(a, b): &(u8, u8)| TcpListener::bind((Ipv4Addr::new(127, *a, *b, 1), MESH_PORT)).is_ok();
    let (a, b) = { ranges }.find(free).expect("some loopback range is free");
    Hosts::Loopback { a, b }
}

/// Port for other nodes, unless configured otherwise.
const MESH_PORT: u16 = 7746;
/// Longest that connecting may take: two lost first tries and their backoff.
const CONNECT_MAX: Duration = Duration::from_secs(30);
