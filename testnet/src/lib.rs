//! Everything that tests and benchmarks need around a real `attic-node` process.
//!
//! The end-to-end tests of this crate start the program a user would start, fill it and read it
//! with Debian's Nix, and break what stands between and beneath: connections, disks, processes.
//! Words to know:
//!
//! - a [`TestNode`](node::TestNode) is a running `attic-node up` with a data directory of its own,
//!   which can be killed, restarted and asked;
//! - a [`Cluster`](cluster::Cluster) is several of them, each on a host of its own, on a network that
//!   can be cut;
//! - a [`NixClient`](nix::NixClient) is Debian's Nix with a configuration, a cache of narinfos and,
//!   unless it is the machine's own, a store of its own;
//! - a [`FaultProxy`](proxy::FaultProxy) stands in front of a node, counts what passes and breaks
//!   what it is told to break;
//! - a [`Garage`](garage::Garage) is a real S3 server, and [`Moto`](moto::Moto) another, where the
//!   machine has them;
//! - an [`Upload`](upload::Upload) is a store path made of bytes, for requests that no Nix would
//!   send;
//! - [`Secrets`](knowledge::Secrets) are what a node must not know, and are looked for in its files
//!   and in its memory;
//! - a [`Scenario`](sim::Scenario) is what happens to a simulated cluster;
//! - a [`Closure`](corpus::Closure) is a set of real store paths, made from Debian packages.
//!
//! ```no_run
//! use testnet::{nix::NixClient, node::TestNode};
//!
//! let node = TestNode::start();
//! let path = NixClient::host().add_file("hello", b"hello");
//! node.push(&[&path]).succeeds();
//!
//! let nix = NixClient::fresh(&node, "main");
//! nix.run("nix-store", &["--realise", &path]).succeeds();
//! assert_eq!(nix.read(&path), b"hello");
//! ```
//!
//! Nothing here sleeps to let something happen, uses a fixed port, or depends on order between
//! tests. What is random comes from a printed [`Seed`](seed::Seed).

pub mod bench;
pub mod cli;
pub mod cluster;
pub mod corpus;
pub mod garage;
pub mod http;
pub mod knowledge;
pub mod moto;
pub mod mount;
pub mod nar;
pub mod native;
pub mod netns;
pub mod nginx;
pub mod nix;
pub mod node;
pub mod odd_paths;
pub mod program;
pub mod proxy;
pub mod s3;
pub mod seed;
pub mod served;
pub mod sim;
pub mod static_cache;
pub mod upload;
pub mod villain;
