//! Who is connected to whom: every two hosts that can, once their gates agree.

use std::time::Duration;

use attic_p2p::dialer::PAUSE_LOST_MAX;
use attic_p2p::replica::Event;

use crate::sim::agenda::Note;
use crate::sim::door::Door;
use crate::sim::host::{Index, State};
use crate::sim::mutant::Mutant;
use crate::sim::world::{Happening, World};

impl World {
    /// Something changed for `at`: it looks for connections it has not.
    pub(crate) fn seek_all(&mut self, at: Index) {
        for other in 0..self.hosts.len() {
            if other != at {
                self.seek(at, other, RECONNECT_MAX);
            }
        }
    }

    /// The walls are gone: dialers notice by their next attempts, and try everybody when one succeeds.
    pub(crate) fn find_each_other(&mut self) {
        let spread = PAUSE_LOST_MAX * 3 / 2;
        self.parted_until = self.now() + spread;
        for at in 0..self.hosts.len() {
            for other in 0..at {
                self.seek(at, other, spread);
            }
        }
    }

    /// `at` tries everybody it is not connected to.
    fn hasten(&mut self, at: Index) {
        for other in (0..self.hosts.len()).filter(|other| *other != at) {
            let (one, other) = (at.min(other), at.max(other));
            if self.seeking.contains(&(one, other)) && !self.are_linked(one, other) {
                let after = Duration::from_nanos(self.random.below(HASTE.as_nanos() as u64 + 1));
                self.agenda.after(after, Happening::Dial { one, other });
            }
        }
    }

    /// Two hosts try to connect within `spread`, unless they are about to.
    pub(crate) fn seek(&mut self, one: Index, other: Index, spread: Duration) {
        let (one, other) = (one.min(other), one.max(other));
        let alive = |at: Index| matches!(self.hosts[at].state, State::Running | State::Asleep);
        if alive(one) && alive(other) && self.seeking.insert((one, other)) {
            let after = Duration::from_nanos(self.random.below(spread.as_nanos() as u64 + 1));
            self.agenda.after(after, Happening::Dial { one, other });
        }
    }

    pub(crate) fn dial(&mut self, one: Index, other: Index) {
        self.seeking.remove(&(one, other));
        let running = self.hosts[one].is_running() && self.hosts[other].is_running();
        if !running || !self.links.connects(one, other) {
            // Whatever ends this looks again.
            return;
        }
        if self.are_linked(one, other) {
            return;
        }
        if let Some(until) = self.banned_until(one, other) {
            self.seeking.insert((one, other));
            self.agenda.at(until, Happening::Dial { one, other });
            return;
        }
        if !self.admits(one, other) {
            self.seeking.insert((one, other));
            self.agenda
                .after(REFUSED_PAUSE, Happening::Dial { one, other });
            return;
        }
        let handshake = 3 * self.links.transit(&mut self.random);
        self.agenda
            .after(handshake, Happening::Connected { one, other });
    }

    /// Whether both have the same connection.
    fn are_linked(&self, one: Index, other: Index) -> bool {
        let of = |at: Index, to: Index| self.hosts[at].links.get(&to);
        of(one, other).is_some() && of(one, other) == of(other, one)
    }

    fn banned_until(&self, one: Index, other: Index) -> Option<Duration> {
        let now = self.now();
        let bans = [
            self.hosts[one].bans.get(&other),
            self.hosts[other].bans.get(&one),
        ];
        bans.into_iter()
            .flatten()
            .copied()
            .filter(|until| *until > now)
            .max()
    }

    /// Whether both gates let the other in.
    fn admits(&self, one: Index, other: Index) -> bool {
        let (dialer, listener) = (&self.hosts[one], &self.hosts[other]);
        for host in [dialer, listener] {
            host.door.set_now(host.clock.wall(self.now()));
        }
        Door::open((&dialer.door, dialer.node), (&listener.door, listener.node))
            || self.is(Mutant::AdmitsAnybody)
    }

    pub(crate) fn connected(&mut self, one: Index, other: Index) {
        let running = self.hosts[one].is_running() && self.hosts[other].is_running();
        if !running || !self.links.connects(one, other) {
            return self.seek(one, other, RECONNECT_MAX);
        }
        if self.are_linked(one, other) {
            return;
        }
        // A side that has not noticed yet that an old connection is gone sees so now.
        self.drop_link(one, other);
        self.drop_link(other, one);
        self.seeking.remove(&(one, other));
        self.next_session += 1;
        let session = self.next_session;
        self.note(Note::Connected, [one as u64, other as u64, session]);
        for (at, to) in [(one, other), (other, one)] {
            self.hosts[at].links.insert(to, session);
        }
        if self.now() < self.parted_until {
            self.hasten(one);
            self.hasten(other);
        }
        self.mesh_gained(one, other);
        for (at, to) in [(one, other), (other, one)] {
            let node = self.hosts[to].node;
            self.tell_replica(at, Event::PeerUp(node));
            self.meet_again(at, to);
        }
    }

    /// `at` ends its connection, or notices that it is gone.
    pub(crate) fn drop_link(&mut self, at: Index, other: Index) {
        let Some(session) = self.hosts[at].links.remove(&other) else {
            return;
        };
        self.note(Note::Disconnected, [at as u64, other as u64, session]);
        self.mesh_lost(at, other);
        let node = self.hosts[other].node;
        self.tell_replica(at, Event::PeerDown(node));
        self.lost_peer(at, other);
        if self.hosts[other].links.get(&at) == Some(&session) {
            let after = match self.links.reaches(at, other) {
                true => self.links.weather.latency,
                false => self.ping_timeout(),
            };
            self.plan_notice(other, at, session, after);
        }
        self.seek(at, other, RECONNECT_MAX);
    }

    /// The other end of every connection of `at` will notice that it does not answer any more: soon
    /// if its system closes them, after some pings if it just falls silent.
    pub(crate) fn fall_away(&mut self, at: Index, silently: bool) {
        for other in 0..self.hosts.len() {
            let Some(session) = self.hosts[other].links.get(&at).copied() else {
                continue;
            };
            let after = match silently || !self.links.reaches(at, other) {
                true => self.ping_timeout(),
                false => self.links.weather.latency,
            };
            self.plan_notice(other, at, session, after);
        }
    }

    /// Both ends of connections through a wall that was just put up notice after some pings.
    pub(crate) fn notice_walls(&mut self) {
        for at in 0..self.hosts.len() {
            let links: Vec<(Index, u64)> = self.hosts[at].links.clone().into_iter().collect();
            for (other, session) in links {
                if !self.links.connects(at, other) {
                    let after = self.ping_timeout();
                    self.plan_notice(at, other, session, after);
                }
            }
        }
    }

    fn plan_notice(&mut self, at: Index, other: Index, session: u64, after: Duration) {
        let notice = Happening::Notice { at, other, session };
        self.agenda.after(after, notice);
    }

    /// Pings went unanswered, or an end of the connection came: if it is still like that, it is gone.
    pub(crate) fn notice(&mut self, at: Index, other: Index, session: u64) {
        let host = &self.hosts[at];
        let stands = host.links.get(&other) == Some(&session);
        if !stands || !host.is_running() {
            return;
        }
        let answers = self.hosts[other].is_running()
            && self.hosts[other].links.get(&at) == Some(&session)
            && self.links.connects(at, other);
        if !answers {
            self.drop_link(at, other);
        }
    }

    fn ping_timeout(&mut self) -> Duration {
        let spread = (PINGS_MAX - PINGS_MIN).as_nanos() as u64;
        PINGS_MIN + Duration::from_nanos(self.random.below(spread))
    }

    /// `at` wants nothing to do with `other` for a while.
    pub(crate) fn ban(&mut self, at: Index, other: Index, time: Duration) {
        let until = self.now() + time;
        self.hosts[at].bans.insert(other, until);
        self.tally.bans += 1;
        self.drop_link(at, other);
    }
}

/// Within so long a dialer tries everybody when one who was lost is back.
const HASTE: Duration = Duration::from_millis(250);
/// A dialer that was told of the other or has just lost it tries within so long.
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// How long a dialer rests that was refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// When two unanswered pings are noticed.
const PINGS_MIN: Duration = Duration::from_secs(20);
const PINGS_MAX: Duration = Duration::from_secs(60);
