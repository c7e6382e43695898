//! What a node between Nix and a binary cache elsewhere costs.

use crate::corpus::Closure;
use crate::node::TestNode;

use super::copy::{StaticCache, time_copy};
use super::{Against, Bound, Figure, Row, median, say};

/// `nix copy --from` of L1 by way of a node that has nothing, then of the same node again, against the
/// upstream itself.
pub(super) fn upstream(repeat: u32) -> Vec<Row> {
    let closure = Closure::load("L1");
    let measure = |compression| {
        let cache = StaticCache::of(&closure, compression);
        let (mut cold, mut warm, mut direct) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=repeat {
            say(&format!(
                "copy L1 from each in turn, {compression}, {round} of {repeat}"
            ));
            let node = TestNode::with_config(&format!(
                "[[upstream]]\nurl = \"{}\"\npublic-keys = [\"{}\"]\n",
                cache.nginx.url(),
                cache.key
            ));
            direct.push(time_copy(&cache.nginx.url(), &cache.key, &closure));
            cold.push(time_copy(&node.url("main"), &cache.key, &closure));
            warm.push(time_copy(&node.url("main"), &cache.key, &closure));
        }
        let direct = median(direct);
        let row = |what: String, ours: f64, wanted| Row {
            what,
            ours: Figure {
                value: ours,
                unit: "s",
            },
            against: Some(Against {
                name: "the upstream itself".into(),
                figure: Figure {
                    value: direct,
                    unit: "s",
                },
            }),
            wanted,
        };
        let what = format!("`nix copy --from` of L1 that only an upstream has, {compression}");
        [
            row(what, median(cold), Some(Bound::AtMost(1.1))),
            row("… again, from the node".into(), median(warm), None),
        ]
    };
    ["xz", "zstd"].into_iter().flat_map(measure).collect()
}
