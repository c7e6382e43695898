//! Who holds which segments.

use std::collections::BTreeMap;
use std::time::Duration;

use attic_store::NarHash;

use super::random::mix;
use super::{SOURCES_MAX, Tier};
use crate::ids::NodeId;
use crate::placement;
use crate::wire::SegmentSet;

/// One peer that holds, or will hold, some of the NAR.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) tier: Tier,
    pub(super) have: SegmentSet,
    /// Holds everything: it fetches nothing itself.
    pub(super) complete: bool,
    /// Bytes this download asked of it and did not get.
    pub(super) owed: u64,
    /// When it last sent something, or began to owe.
    pub(super) heard: Duration,
    /// Not asked before.
    pub(super) retry_at: Duration,
    /// Asked only for what nobody else has.
    pub(super) demoted: bool,
    /// Since when it has been much slower than its like.
    pub(super) slow_since: Option<Duration>,
    errors: u32,
    /// Its weight in rendezvous, before the segment is mixed in.
    key: u64,
}

/// All sources of one NAR, at most [`SOURCES_MAX`].
#[derive(Debug)]
pub(super) struct Sources {
    nar: NarHash,
    map: BTreeMap<NodeId, Source>,
    /// Sources that hold each segment, demoted ones left out.
    holders: Vec<u16>,
    /// Of these, how many are fetching themselves.
    fetching: Vec<u16>,
    /// Changes with every change of who is a source.
    version: u64,
}

impl Sources {
    pub(super) fn new(nar: NarHash, segments: u32) -> Sources {
        Sources {
            nar,
            map: BTreeMap::new(),
            holders: vec![0; segments as usize],
            fetching: vec![0; segments as usize],
            version: 0,
        }
    }

    pub(super) fn set(&mut self, node: NodeId, tier: Tier, have: SegmentSet, complete: bool) {
        if self.map.len() >= SOURCES_MAX && !self.map.contains_key(&node) {
            return;
        }
        let key = placement::weight(self.nar.as_bytes(), &node);
        let source = self.map.entry(node).or_insert_with(|| Source {
            tier,
            have: SegmentSet::empty(0),
            complete,
            owed: 0,
            heard: Duration::ZERO,
            retry_at: Duration::ZERO,
            demoted: false,
            slow_since: None,
            errors: 0,
            key,
        });
        (source.tier, source.have, source.complete) = (tier, have, complete);
        self.recount();
    }

    pub(super) fn gain(&mut self, node: NodeId, segment: u32) {
        let Some(source) = self.map.get_mut(&node) else {
            return;
        };
        if source.have.insert(segment) && !source.demoted {
            self.holders[segment as usize] += 1;
            self.fetching[segment as usize] += u16::from(!source.complete);
        }
        if source.have.is_full() && !source.complete {
            // Done fetching, it no longer takes part in the crowd's choice.
            source.complete = true;
            self.recount();
        }
    }

    pub(super) fn lose(&mut self, node: NodeId, segment: u32) {
        if let Some(source) = self.map.get_mut(&node)
            && source.have.remove(segment)
        {
            self.recount();
        }
    }

    pub(super) fn remove(&mut self, node: NodeId) {
        if self.map.remove(&node).is_some() {
            self.recount();
        }
    }

    /// Notes who is avoided and who no longer is.
    pub(super) fn refresh(&mut self, demoted: impl Fn(&NodeId) -> bool) {
        let mut changed = false;
        for (node, source) in &mut self.map {
            let now = demoted(node);
            changed |= now != source.demoted;
            source.demoted = now;
        }
        if changed {
            self.recount();
        }
    }

    pub(super) fn get(&self, node: &NodeId) -> Option<&Source> {
        self.map.get(node)
    }

    pub(super) fn get_mut(&mut self, node: &NodeId) -> Option<&mut Source> {
        self.map.get_mut(node)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Source)> {
        self.map.iter()
    }

    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.map.keys().copied().collect()
    }

    /// A chunk came from it; returns its tier.
    pub(super) fn heard(&mut self, now: Duration, node: NodeId) -> Option<Tier> {
        let source = self.map.get_mut(&node)?;
        source.heard = now;
        source.errors = 0;
        Some(source.tier)
    }

    pub(super) fn owes_more(&mut self, now: Duration, node: NodeId, bytes: u64) {
        if let Some(source) = self.map.get_mut(&node) {
            if source.owed == 0 {
                source.heard = now;
            }
            source.owed += bytes;
        }
    }

    pub(super) fn owes_less(&mut self, node: NodeId, bytes: u64) {
        if let Some(source) = self.map.get_mut(&node) {
            source.owed = source.owed.saturating_sub(bytes);
        }
    }

    /// Does not ask it before `until`.
    pub(super) fn avoid(&mut self, node: NodeId, until: Duration) {
        if let Some(source) = self.map.get_mut(&node) {
            source.retry_at = source.retry_at.max(until);
        }
    }

    /// Counts an error; returns how many there were in a row.
    pub(super) fn erred(&mut self, node: NodeId) -> u32 {
        self.map.get_mut(&node).map_or(0, |source| {
            source.errors += 1;
            source.errors
        })
    }

    /// How many sources hold a segment, demoted ones left out.
    pub(super) fn usable_holders(&self, segment: u32) -> u16 {
        self.holders[segment as usize]
    }

    /// How many sources hold a segment.
    pub(super) fn holders(&self, segment: u32) -> usize {
        let holders = self.map.values();
        holders
            .filter(|source| source.have.contains(segment))
            .count()
    }

    /// Whether complete sources alone hold a segment.
    pub(super) fn is_scarce(&self, segment: u32) -> bool {
        self.fetching.get(segment as usize) == Some(&0)
    }

    /// How many sources hold everything, and how many are fetching no farther away than those.
    pub(super) fn census(&self) -> (usize, usize) {
        let usable = || self.map.values().filter(|source| !source.demoted);
        let complete = usable().filter(|source| source.complete);
        let nearest = complete.clone().map(|source| source.tier).min();
        let near = |source: &&Source| !source.complete && Some(source.tier) <= nearest;
        (complete.count(), usable().filter(near).count())
    }

    /// Changes with every change of who is a source.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// How many of the fetching sources come before `me` for each segment.
    pub(super) fn ranks(&self, me: &NodeId) -> Vec<u16> {
        let mine = placement::weight(self.nar.as_bytes(), me);
        let keys: Vec<u64> = self
            .map
            .values()
            .filter(|source| !source.complete && !source.demoted)
            .map(|source| source.key)
            .collect();
        let rank = |segment: u64| {
            let weight = |key: u64| mix(key ^ mix(segment));
            let own = weight(mine);
            keys.iter().filter(|key| weight(**key) > own).count() as u16
        };
        (0..self.holders.len() as u64).map(rank).collect()
    }

    fn recount(&mut self) {
        self.version += 1;
        let (_, _) = (self.holders.fill(0), self.fetching.fill(0));
        let nearest = self
            .map
            .values()
            .filter(|source| source.complete && !source.demoted);
        let nearest = nearest
            .map(|source| source.tier)
            .min()
            .unwrap_or(Tier::Origin);
        for source in self.map.values().filter(|source| !source.demoted) {
            let fetching = u16::from(!source.complete && source.tier <= nearest);
            for segment in source.have.iter() {
                self.holders[segment as usize] += 1;
                self.fetching[segment as usize] += fetching;
            }
        }
    }
}
