//! What lies between hosts: latency, rates, loss, and walls.
//!
//! A *stream* (requests, frames) loses nothing and stays in order; loss makes it late, as it makes
//! TCP late. A *gossiped* message may be lost, come twice, or overtake another.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::seed::Seed;
use crate::sim::host::Index;

/// What a network is like. Shares are of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Weather {
    /// One way.
    pub(crate) latency: Duration,
    /// By how much of itself the latency varies.
    pub(crate) jitter: f64,
    /// Packets lost: streams are late, gossip is gone.
    pub(crate) loss: f64,
    /// Gossiped messages lost beside that.
    pub(crate) gossip_loss: f64,
    /// Gossiped messages that come twice.
    pub(crate) twice: f64,
}

/// One direction of a host's line: what does not fit waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pipe {
    rate: u64,
    free_at: Duration,
}

impl Pipe {
    /// `rate` in bytes per second.
    pub(crate) fn new(rate: u64) -> Pipe {
        Pipe {
            rate,
            free_at: Duration::ZERO,
        }
    }

    /// When `bytes` that come at `now` have passed.
    pub(crate) fn pass(&mut self, now: Duration, bytes: u64) -> Duration {
        let time = Duration::from_nanos(bytes * 1_000_000_000 / self.rate);
        self.free_at = self.free_at.max(now) + time;
        self.free_at
    }
}

/// The network between all hosts.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) weather: Weather,
    hosts: usize,
    /// By sender and receiver: whether nothing gets through.
    walls: Vec<bool>,
    /// When the last small frame of a stream arrives: none overtakes another.
    last: BTreeMap<(Index, Index), Duration>,
}

impl Links {
    pub(crate) fn new(hosts: usize, weather: Weather) -> Links {
        Links {
            weather,
            hosts,
            walls: vec![false; hosts * hosts],
            last: BTreeMap::new(),
        }
    }

    /// Whether what `from` sends can reach `to`.
    pub(crate) fn reaches(&self, from: Index, to: Index) -> bool {
        !self.walls[from * self.hosts + to]
    }

    /// Whether two hosts can have a connection.
    pub(crate) fn connects(&self, one: Index, other: Index) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    pub(crate) fn set_wall(&mut self, from: Index, to: Index, stands: bool) {
        self.walls[from * self.hosts + to] = stands;
    }

    pub(crate) fn tear_down_walls(&mut self) {
        self.walls.fill(false);
    }

    /// How long a large part of a stream is on its way, queues apart.
    pub(crate) fn transit(&self, random: &mut Seed) -> Duration {
        let mut transit = self.latency(random);
        let mut wait = RETRANSMIT;
        while self.weather.loss > 0.0 && wait < RETRANSMIT_MAX && random.chance(self.weather.loss) {
            transit += wait;
            wait *= 2;
        }
        transit
    }

    /// When a small part of a stream that is sent `now` arrives: behind those before it.
    pub(crate) fn arrival(
        &mut self,
        now: Duration,
        (from, to): (Index, Index),
        random: &mut Seed,
    ) -> Duration {
        let at = now + self.transit(random);
        let last = self.last.entry((from, to)).or_default();
        *last = at.max(*last);
        *last
    }

    /// After how long each copy of a gossiped message arrives; none if it is lost.
    pub(crate) fn gossip(&self, random: &mut Seed) -> Vec<Duration> {
        let weather = &self.weather;
        let lost = |random: &mut Seed, share: f64| share > 0.0 && random.chance(share);
        if lost(random, weather.loss) || lost(random, weather.gossip_loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(lost(random, weather.twice));
        (0..copies).map(|_| self.latency(random)).collect()
    }

    fn latency(&self, random: &mut Seed) -> Duration {
        let Weather {
            latency, jitter, ..
        } = self.weather;
        let spread = latency.mul_f64(jitter).as_nanos() as u64;
        latency + Duration::from_nanos(random.below(spread + 1))
    }
}

/// What TCP waits before it sends a lost packet again, each time twice as long.
const RETRANSMIT: Duration = Duration::from_millis(200);
const RETRANSMIT_MAX: Duration = Duration::from_secs(6);

#[cfg(test)]
mod tests {
    use super::*;

    fn links(loss: f64) -> Links {
        let weather = Weather {
            latency: Duration::from_millis(1),
            jitter: 0.5,
            loss,
            gossip_loss: 0.0,
            twice: 0.1,
        };
        Links::new(3, weather)
    }

    #[test]
    fn a_stream_stays_in_order_and_gossip_does_not() {
        let (mut links, mut random) = (links(0.2), Seed::new(1));
        let mut last = Duration::ZERO;
        let mut gossiped = Vec::new();
        for sent in 0..1000 {
            let now = Duration::from_micros(100 * sent);
            let at = links.arrival(now, (0, 1), &mut random);
            assert!(at >= last);
            last = at;
            gossiped.extend(links.gossip(&mut random).iter().map(|after| now + *after));
        }
        assert!(!gossiped.is_sorted());
        assert!((750..1_000).contains(&gossiped.len()), "{}", gossiped.len());
    }

    #[test]
    fn a_wall_may_stand_one_way() {
        let mut links = links(0.0);
        links.set_wall(0, 1, true);
        assert!(!links.reaches(0, 1) && links.reaches(1, 0));
        assert!(!links.connects(0, 1) && links.connects(0, 2));
        links.tear_down_walls();
        assert!(links.connects(1, 0));
    }

    #[test]
    fn a_pipe_passes_one_thing_after_the_other() {
        let mut pipe = Pipe::new(1_000);
        let second = Duration::from_secs(1);
        assert_eq!(pipe.pass(second, 500), second * 3 / 2);
        assert_eq!(pipe.pass(second, 500), second * 2);
        assert_eq!(pipe.pass(second * 9, 500), second * 19 / 2);
    }
}
