//! The attic-node service: where the local store meets HTTP, configuration and background work.
//!
//! Words to know:
//!
//! - a **node** is one process with one data directory ([`data_dir`]), started by [`node::Node`] from
//!   a checked [`config::Config`];
//! - a **cache** is a named set of store paths with its own signing key, priority and visibility,
//!   served to Nix under `/<name>/`;
//! - a path is **published** when its narinfo is visible: after its NAR is stored, the claims about it
//!   are checked against the bytes, and the cache has signed them;
//! - a **push session** holds what a client uploads until it is published, and challenges the
//!   client to prove that it has what it did not upload ([`api`]);
//! - an **upstream** is a binary cache elsewhere that is asked for what is not here;
//! - the **admin token**, made at the first start, is what every write takes.
//!
//! ```
//! use attic_node_core::config::{Config, Sources};
//! use attic_node_core::node::Node;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let data_dir = dir.path().display().to_string();
//! let flags = vec![("data-dir", data_dir), ("http.listen", "127.0.0.1:0".to_owned())];
//! let node = Node::start(Config::load(&Sources::only(flags))?).await?;
//! println!("serving on {}", node.addresses().join(", "));
//! node.shutdown().await?;
//! # Ok(())
//! # }
//! ```

pub mod api;
mod app;
mod auth;
mod caches;
mod clock;
mod collect;
pub mod config;
mod content_path;
pub mod data_dir;
mod decode;
mod http;
mod mesh;
mod metrics;
mod nar_file;
mod narinfo_memory;
pub mod node;
pub mod offline;
mod publish;
mod push;
mod recent;
mod report;
mod resign;
mod retire;
mod s3;
mod upstream;
mod worker;

pub use caches::CacheError;
pub use mesh::MeshError;
pub use mesh::files::ClusterFileError;
pub use s3::S3Error;
