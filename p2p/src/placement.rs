//! Which nodes: rendezvous hashing.
//!
//! Every node that knows the same candidates makes the same choice without a word, and a candidate
//! that comes or goes moves only what it gains or loses.

use crate::ids::NodeId;

/// The `count` nodes that are first in rank for `key`, best first; fewer if there are fewer.
///
/// Duplicates among `nodes` count once; their order does not matter.
pub fn choose(key: &[u8], nodes: impl IntoIterator<Item = NodeId>, count: usize) -> Vec<NodeId> {
    let mut ranked = rank(key, nodes);
    ranked.truncate(count);
    ranked
}

/// All nodes in the order in which they answer for `key`.
pub fn rank(key: &[u8], nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let mut weighed: Vec<_> = nodes
        .into_iter()
        .map(|node| (weight(key, &node), node))
        .collect();
    weighed.sort_unstable_by(|one, other| other.cmp(one));
    weighed.dedup();
    weighed.into_iter().map(|(_, node)| node).collect()
}

/// How strongly `node` answers for `key`: the highest weight is first in rank.
pub fn weight(key: &[u8], node: &NodeId) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(node.as_bytes());
    hasher.update(key);
    let hash = hasher.finalize();
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

const CONTEXT: &str = "attic-node placement 1";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    #[test]
    fn keys_spread_evenly() {
        let mut first = [0u32; 8];
        for key in 0u32..8_000 {
            let chosen = choose(&key.to_le_bytes(), (0..8).map(node), 1);
            first[chosen[0].as_bytes()[0] as usize] += 1;
        }
        assert!(
            first.iter().all(|count| (850..1_150).contains(count)),
            "{first:?}"
        );
    }

    proptest! {
        #[test]
        fn a_leaver_moves_only_its_own(key: [u8; 8], count in 2u8..20, leaver in 0u8..20) {
            let all = rank(&key, (0..count).map(node));
            let rest = rank(&key, (0..count).rev().filter(|n| *n != leaver).map(node));
            let kept: Vec<_> = all.into_iter().filter(|n| *n != node(leaver)).collect();
            prop_assert_eq!(rest, kept);
        }

        #[test]
        fn a_node_is_chosen_once(key: [u8; 8], count in 0u8..9, wanted in 0usize..12) {
            let twice = (0..count).chain(0..count).map(node);
            prop_assert_eq!(choose(&key, twice, wanted).len(), wanted.min(count.into()));
        }
    }
}
