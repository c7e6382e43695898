//! Many nodes fetching the same NAR from few: who takes what from those who hold it.

use std::time::Duration;

use super::Fetch;
use super::sources::Source;

/// What a node knows of the crowd it is part of.
#[derive(Debug)]
pub(super) struct Crowd {
    /// When a scarce segment last came into circulation, or the crowd changed.
    moved: Duration,
    /// Version of the sources the ranks are of.
    version: u64,
    /// How many fetching nodes come before this one for each segment.
    ranks: Vec<u16>,
    rule: Rule,
    /// Whether this node comes first for some scarce segment.
    has_own: bool,
}

/// What may be asked of sources that hold everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Anything: there is no crowd, or everything is in circulation.
    Anything,
    /// Scarce segments for which at most so many nodes come before this one.
    Scarce {
        /// See above.
        rank_max: u16,
    },
}

impl Crowd {
    pub(super) fn new(now: Duration) -> Crowd {
        Crowd {
            moved: now,
            version: u64::MAX,
            ranks: Vec::new(),
            rule: Rule::Anything,
            has_own: false,
        }
    }

    /// Whether the crowd waits for this node to take something from those who hold everything.
    pub(super) fn counts_on_us(&self) -> bool {
        self.has_own
    }

    /// A scarce segment came into circulation, or the crowd changed.
    pub(super) fn moved(&mut self, now: Duration) {
        self.moved = now;
    }
}

impl Fetch {
    /// Decides what may be asked of sources that hold everything. Before every choice.
    pub(super) fn judge_crowd(&mut self, now: Duration) {
        (self.crowd.rule, self.crowd.has_own) = (Rule::Anything, false);
        let (complete, fetching) = self.sources.census();
        if complete == 0 || fetching < complete {
            return;
        }
        if self.crowd.version != self.sources.version() {
            self.crowd.version = self.sources.version();
            self.crowd.ranks = self.sources.ranks(&self.me);
        }
        let idle = now.saturating_sub(self.crowd.moved);
        let own = |segment: &u32| self.crowd.ranks[*segment as usize] == 0;
        let mut scarce = self.scarce().peekable();
        if scarce.peek().is_none() {
            return;
        }
        // Whoever has work of its own left does not take over the work of others.
        let has_own = scarce.any(|segment| own(&segment));
        let rank_max = match has_own {
            true => 0,
            false => idle.as_millis() / TURN.as_millis(),
        };
        drop(scarce);
        self.crowd.has_own = has_own;
        // A node that got nothing at all for so long is not served by its crowd.
        let outcast = now.saturating_sub(self.progressed) >= OUTCAST_AFTER;
        if !outcast {
            let rank_max = u16::try_from(rank_max).unwrap_or(u16::MAX);
            self.crowd.rule = Rule::Scarce { rank_max };
        }
    }

    /// Whether the crowd lets this node ask `source` for `segment`.
    pub(super) fn crowd_allows(&self, source: &Source, segment: u32) -> bool {
        match self.crowd.rule {
            Rule::Scarce { rank_max } if source.complete => {
                let rank = self.crowd.ranks[segment as usize];
                self.sources.is_scarce(segment) && rank <= rank_max
            }
            Rule::Anything | Rule::Scarce { .. } => true,
        }
    }

    /// Missing segments that complete sources alone hold.
    fn scarce(&self) -> impl Iterator<Item = u32> + '_ {
        let missing = (0..self.layout.segments()).filter(|s| !self.held().contains(*s));
        missing.filter(|segment| self.sources.is_scarce(*segment))
    }
}

/// How long the next in rank waits for something to move.
const TURN: Duration = Duration::from_millis(150);
/// Without a chunk for so long, a node asks anyone for anything.
const OUTCAST_AFTER: Duration = Duration::from_millis(1_500);
