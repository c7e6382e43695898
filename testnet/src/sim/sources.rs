//! Who has what, as far as a host knows: whom it asks, what it tells, and who keeps copies.

use attic_p2p::placement::choose;
use attic_p2p::record::NarTag;
use attic_p2p::wire::{Frame, Priority};

use crate::sim::content::{ThingIndex, Truth};
use crate::sim::exchange::{HAVE, number};
use crate::sim::host::Index;
use crate::sim::world::{Message, World};

impl World {
    /// Tells everybody connected that a download begins or is over.
    pub(crate) fn announce(&mut self, at: Index, thing: ThingIndex, begun: bool) {
        for to in self.hosts[at].links.keys().copied().collect::<Vec<_>>() {
            self.send(at, to, Message::Fetching { thing, begun });
        }
    }

    pub(crate) fn heard_of_fetch(
        &mut self,
        from: Index,
        at: Index,
        thing: ThingIndex,
        begun: bool,
    ) {
        let fetching = &mut self.hosts[at].fetching;
        if begun {
            if fetching.len() < FETCHING_MAX || fetching.contains_key(&thing) {
                fetching.entry(thing).or_default().insert(from);
            }
            if self.hosts[at].flights.contains_key(&thing) {
                self.ask_what_is_held(at, from, thing);
            }
        } else if let Some(who) = fetching.get_mut(&thing) {
            who.remove(&from);
            if who.is_empty() {
                fetching.remove(&thing);
            }
        }
    }

    /// Two hosts are connected: each may have what the other is fetching.
    pub(crate) fn meet_again(&mut self, at: Index, other: Index) {
        for thing in self.hosts[at].flights.keys().copied().collect::<Vec<_>>() {
            self.send(at, other, Message::Fetching { thing, begun: true });
            let tag = self.content.thing(thing).tag();
            let node = self.hosts[other].node;
            let directory = self.hosts[at].directory();
            if directory.is_some_and(|directory| directory.holders(tag).contains(&node)) {
                self.ask_what_is_held(at, other, thing);
            }
        }
    }

    /// Asks all that are known to hold or to fetch a thing.
    pub(crate) fn find_sources(&mut self, at: Index, thing: ThingIndex) {
        let host = &self.hosts[at];
        let tag = self.content.thing(thing).tag();
        let holders = host.directory().map(|directory| directory.holders(tag));
        let holders = holders.unwrap_or_default();
        let mut sources: Vec<Index> = holders
            .into_iter()
            .filter_map(|node| self.index(node))
            .collect();
        sources.extend(host.fetching.get(&thing).into_iter().flatten());
        sources.sort_unstable();
        sources.dedup();
        sources.retain(|source| *source != at && host.links.contains_key(source));
        for source in sources {
            self.ask_what_is_held(at, source, thing);
        }
    }

    pub(crate) fn holders_changed(&mut self, at: Index, tag: NarTag) {
        let thing = self.content.by_tag(&tag);
        let Some(thing) = thing.filter(|thing| self.hosts[at].flights.contains_key(thing)) else {
            return;
        };
        self.find_sources(at, thing);
    }

    fn ask_what_is_held(&mut self, at: Index, of: Index, thing: ThingIndex) {
        let Some(flight) = self.hosts[at].flights.get_mut(&thing) else {
            return;
        };
        flight.watched.insert(of);
        let frame = Frame::HaveQuery {
            req: number(flight.slot, HAVE),
            object: self.content.thing(thing).object,
        };
        self.send_frame(at, of, frame, Truth::Junk);
    }

    /// Has others keep copies of what was pushed here.
    pub(crate) fn replicate(&mut self, at: Index, thing: ThingIndex, copies: usize) {
        let host = &self.hosts[at];
        let tag = self.content.thing(thing).tag();
        let holders = host
            .directory()
            .map_or(0, |directory| directory.holders(tag).len());
        let missing = copies.saturating_sub(holders.max(1));
        let members = host.links.keys().map(|other| self.hosts[*other].node);
        let object = self.content.thing(thing).object;
        let chosen = choose(object.nar.as_bytes(), members, copies.saturating_sub(1));
        for node in chosen.into_iter().take(missing) {
            if let Some(to) = self.index(node) {
                self.send(at, to, Message::Keep { thing });
            }
        }
    }

    pub(crate) fn asked_to_keep(&mut self, at: Index, thing: ThingIndex) {
        let host = &self.hosts[at];
        let has = host.store.held.contains(&thing) || host.flights.contains_key(&thing);
        if !has && !host.disk_is_full() && host.flights.len() < self.jobs {
            self.begin(at, thing, Priority::Background);
        }
    }
}

/// Things others are known to fetch; as many as may be announced.
pub(crate) const FETCHING_MAX: usize = 1024;
