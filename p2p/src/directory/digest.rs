//! Comparing the states of two nodes.
//!
//! Numbers given to nodes and caches differ from node to node and so does the order of rows; each
//! row is therefore hashed under its full names, and the hashes are added up. This finds
//! differences that damage or a bug made; against who makes rows for it, it proves nothing.
//!
//! Nor do all nodes have the same keys. What an author says of a cache under a seal is therefore left
//! out, with all it says of that cache: which these are everybody sees. So nodes with different keys
//! compare, and nobody learns sealed rows by guessing them.

use crate::directory::{Directory, PathRow};
#[cfg(test)]
use crate::ids::NodeId;
use crate::ids::{CacheId, Dot};

/// Number of parts that are compared one by one.
pub const SHARDS: usize = 256;

/// What two nodes must agree on, besides the ends of their logs, for their digests to be equal:
/// the rules of the fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms(pub u64);

impl Directory {
    /// Equal on two nodes that folded the same logs. Looks at everything.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for tip in self.tips() {
            hasher.update(tip.node.as_bytes());
            hasher.update(&tip.seq.to_le_bytes());
            hasher.update(tip.id.as_bytes());
        }
        for shard in 0..=u8::MAX {
            hasher.update(&self.shard_digest(shard).to_le_bytes());
        }
        hasher.update(&self.statements_sum().to_le_bytes());
        *hasher.finalize().as_bytes()
    }

    /// Of the paths whose hash part, and the holders of the NARs whose tag, begins with this byte
    /// in the order in which rows lie. Looks at those alone.
    pub fn shard_digest(&self, shard: u8) -> u128 {
        let mut sum = 0u128;
        for cache in 0..self.cache_numbers.names.len() {
            let Ok(cache) = u16::try_from(cache) else {
                break;
            };
            let mut first = [0; 20];
            first[0] = shard;
            let rows = self.paths.from(&PathRow::first_of(cache, first));
            let rows = rows.take_while(|row| row.cache == cache && row.hash[0] == shard);
            let name = self.cache_numbers.name(cache);
            let open = rows.filter(|row| !self.is_sealed(row.author, &name));
            open.for_each(|row| sum = sum.wrapping_add(self.path_hash(row)));
        }
        for (tag, numbers) in self.holders.beginning_with(shard) {
            for number in numbers {
                let node = self.nodes.name(*number);
                sum = sum.wrapping_add(of("holder", (tag, node)));
            }
        }
        sum
    }

    /// What must be equal on a peer for its digests to mean anything.
    pub fn terms(&self) -> Terms {
        Terms(RULES)
    }

    /// Whether `author` speaks of `cache` under a seal.
    fn is_sealed(&self, author: u16, cache: &CacheId) -> bool {
        let author = self.authors.get(&author);
        author.is_some_and(|author| author.sealed_caches.contains(cache))
    }

    fn path_hash(&self, row: &PathRow) -> u128 {
        let cache = self.cache_numbers.name(row.cache);
        let dot = self.dot(row.author, row.spot);
        of("path", (cache, row.hash, dot, row.tag))
    }

    fn statements_sum(&self) -> u128 {
        let name = |number: &u16| self.nodes.name(*number);
        let mut sum = 0u128;
        let mut add = |hash: u128| sum = sum.wrapping_add(hash);
        for removal in self.removals.iter() {
            let dot: Dot = self.dot(removal.author, removal.spot);
            add(of("removal", (dot, name(&removal.by))));
        }
        for durable in self.durable.iter() {
            let dot: Dot = self.dot(durable.author, durable.spot);
            add(of("durable", (dot, name(&durable.by))));
        }
        for (node, rank, _) in self.members.iter() {
            add(of("member", (node, rank)));
        }
        for (cache, rank, carried) in self.caches.iter() {
            for carrier in &carried.carriers {
                if self.is_sealed(*carrier, cache) {
                    continue;
                }
                add(of("cache", (cache, rank, name(carrier))));
            }
        }
        for (subject, rank, _) in self.grants.iter() {
            add(of("grant", (subject, rank)));
        }
        for ((author, spot), pin) in &self.pins {
            if self.is_sealed(*author, &pin.cache) {
                continue;
            }
            add(of("pin", (self.dot(*author, *spot), pin)));
        }
        // Two finders may hold different proofs against one node.
        for (node, _) in self.forks.iter() {
            add(of("fork", node));
        }
        for ((_, id), _) in self.revocations.iter() {
            add(of("revocation", id));
        }
        sum
    }

    /// Changes what is folded, and nothing else, in the shard of `tag`: as memory that fails would.
    #[cfg(test)]
    pub(crate) fn bend(&mut self, tag: crate::record::NarTag, node: NodeId) {
        let number = self.nodes.number(&node).expect("a node that wrote");
        if !self.holders.remove(tag, number) {
            self.holders.insert(tag, number);
        }
    }
}

fn of(kind: &str, row: impl serde::Serialize) -> u128 {
    let encoded = postcard::to_stdvec(&(kind, row)).expect("plain data");
    let hash = blake3::hash(&encoded);
    let first = hash.as_bytes().first_chunk().expect("16 of 32 bytes");
    u128::from_le_bytes(*first)
}

/// Of the fold: to be raised when the same logs come to other rows than before.
const RULES: u64 = 2;
