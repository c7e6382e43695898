//! Comparing the states of two nodes.
//!
//! Numbers given to nodes and caches differ from node to node and so does the order of rows; each
//! row is therefore hashed under its full names, and the hashes are added up. This finds
//! differences that damage or a bug made; against who makes rows for it, it proves nothing.
//!
//! Nor do all nodes have the same keys. What an author says of a cache under a seal is therefore left
//! out, with all it says of that cache: which these are everybody sees.

use crate::directory::{Directory, PathRow};
use crate::ids::{CacheId, Dot};

/// Number of parts that are compared one by one.
pub const SHARDS: usize = 256;

impl Directory {
    /// Equal on two nodes that folded the same logs. Looks at everything.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for tip in self.tips() {
            hasher.update(tip.node.as_bytes());
            hasher.update(&tip.seq.to_le_bytes());
            hasher.update(tip.id.as_bytes());
        }
        for sum in self.shard_digests() {
            hasher.update(&sum.to_le_bytes());
        }
        hasher.update(&self.statements_sum().to_le_bytes());
        *hasher.finalize().as_bytes()
    }

    /// One number for each part of the index: paths by the first byte of their hash part, holders
    /// by that of the NAR's tag. Looks at everything.
    pub fn shard_digests(&self) -> [u128; SHARDS] {
        let mut sums = [0u128; SHARDS];
        let mut add = |shard: u8, row: u128| {
            let sum = &mut sums[usize::from(shard)];
            *sum = sum.wrapping_add(row);
        };
        for row in self.paths.iter() {
            if self.is_sealed(row.author, &self.cache_numbers.name(row.cache)) {
                continue;
            }
            add(row.store_path_hash().as_bytes()[0], self.path_hash(row));
        }
        for (tag, numbers) in self.holders.iter() {
            for number in numbers {
                let node = self.nodes.name(*number);
                add(tag.as_bytes()[0], of("holder", (tag, node)));
            }
        }
        sums
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
}

fn of(kind: &str, row: impl serde::Serialize) -> u128 {
    let encoded = postcard::to_stdvec(&(kind, row)).expect("plain data");
    let hash = blake3::hash(&encoded);
    let first = hash.as_bytes().first_chunk().expect("16 of 32 bytes");
    u128::from_le_bytes(*first)
}
