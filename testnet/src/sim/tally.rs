//! What is measured in a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::sim::content::ThingIndex;
use crate::sim::exchange::Landing;
use crate::sim::host::{Index, Traffic};

/// Names of all figures there are. Times are virtual.
pub(crate) const FIGURES: [&str; 20] = [
    // Of each host that fetches: time it took, by what its line alone would take.
    "completion_p50",
    "completion_p99",
    "completion_max",
    // Chunks sent by host 0, by the bytes of all that was pushed.
    "first_holder_sent",
    // From the push of a path until a host shows it, milliseconds, over all pairs.
    "visible_p50_ms",
    "visible_p99_ms",
    "visible_max_ms",
    // From its removal until a host does not show it any more, milliseconds.
    "hidden_p99_ms",
    // Gossip that a host sends, by paths pushed.
    "gossip_bytes_per_path",
    // Gossip and log comparison that a host sends, with the pings of its connections.
    "control_bytes_per_second",
    // From the last step until all is as it should be.
    "settled_seconds",
    // From the end of a partition until all is as it should be.
    "heal_seconds",
    // Bytes sent since the end of a partition, by those that hosts lacked.
    "heal_bytes",
    // Bytes sent since the end of a partition beyond twice what hosts lacked, for each, KiB.
    "heal_excess_kib",
    // Bytes asked for twice, by bytes that arrived.
    "hedged_share",
    // The longest wait of a client that reads in order, milliseconds.
    "reader_wait_p99_ms",
    // Downloads that were given up.
    "failed_fetches",
    // Peers that were kept out.
    "bans",
    // Gossiped messages that came again, by those that came.
    "gossip_duplicates",
    // Chunks that hosts sent, by bytes that arrived and were needed.
    "sent_by_needed",
];

/// Counters and samples.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    hosts: usize,
    pub(crate) duplicates: u64,
    pub(crate) requests: u64,
    pub(crate) bans: u64,
    pub(crate) log_failures: u64,
    pub(crate) gossiped: u64,
    pushed_at: BTreeMap<ThingIndex, Duration>,
    removed_at: BTreeMap<ThingIndex, Duration>,
    /// Which hosts have shown a thing.
    shown: BTreeMap<ThingIndex, Vec<bool>>,
    visible: Vec<Duration>,
    hidden: Vec<Duration>,
    orders: BTreeMap<Index, Order>,
    pub(crate) landings: Vec<(Index, Landing)>,
    failed: u64,
    measured_from: Duration,
    /// Hosts' traffic when measuring began, and when the last partition ended.
    base: Vec<Traffic>,
    heal: Option<Heal>,
    pub(crate) settled: Option<(Duration, Duration)>,
}

/// All that the clients of one host wanted.
#[derive(Debug)]
struct Order {
    since: Duration,
    left: BTreeSet<ThingIndex>,
    things: Vec<ThingIndex>,
    ended: Option<Duration>,
}

#[derive(Debug)]
struct Heal {
    at: Duration,
    /// What each host lacked that another had.
    missing: Vec<u64>,
    base: Vec<Traffic>,
}

/// What the figures are made of beside the tally.
pub(crate) struct Sums<'a> {
    pub(crate) now: Duration,
    pub(crate) traffic: &'a [Traffic],
    /// Connections of each host.
    pub(crate) links: &'a [usize],
    /// Bytes of each thing.
    pub(crate) lens: &'a [u64],
    /// Bytes per second a host can receive.
    pub(crate) rate: u64,
}

impl Tally {
    pub(crate) fn new(hosts: usize) -> Tally {
        Tally {
            hosts,
            base: vec![Traffic::default(); hosts],
            ..Tally::default()
        }
    }

    pub(crate) fn measure_from(&mut self, now: Duration, traffic: Vec<Traffic>) {
        self.measured_from = now;
        self.base = traffic;
        self.visible.clear();
        self.hidden.clear();
        self.orders.clear();
        self.landings.clear();
        self.failed = 0;
    }

    pub(crate) fn pushed(&mut self, now: Duration, thing: ThingIndex) {
        self.pushed_at.insert(thing, now);
        self.shown.insert(thing, vec![false; self.hosts]);
    }

    pub(crate) fn removed(&mut self, now: Duration, thing: ThingIndex) {
        self.removed_at.entry(thing).or_insert(now);
    }

    pub(crate) fn shown(
        &mut self,
        now: Duration,
        at: Index,
        thing: Option<ThingIndex>,
        shows: bool,
    ) {
        let Some(thing) = thing else {
            return;
        };
        match shows {
            true => {
                let Some(shown) = self.shown.get_mut(&thing) else {
                    return;
                };
                if !std::mem::replace(&mut shown[at], true)
                    && let Some(pushed) = self.pushed_at.get(&thing)
                    && *pushed >= self.measured_from
                {
                    self.visible.push(now - *pushed);
                }
            }
            false => {
                if let Some(removed) = self.removed_at.get(&thing) {
                    self.hidden.push(now - *removed);
                }
            }
        }
    }

    pub(crate) fn ordered(&mut self, at: Duration, by: Index, things: &[ThingIndex]) {
        let order = Order {
            since: at,
            left: things.iter().copied().collect(),
            things: things.to_vec(),
            ended: None,
        };
        self.orders.entry(by).or_insert(order);
    }

    pub(crate) fn landed(&mut self, at: Index, landing: Landing) {
        match landing.complete {
            true => self.has(landing.ended, at, landing.thing),
            false => self.failed += 1,
        }
        self.landings.push((at, landing));
    }

    /// A host has what its client wanted.
    pub(crate) fn has(&mut self, now: Duration, at: Index, thing: ThingIndex) {
        if let Some(order) = self.orders.get_mut(&at) {
            order.left.remove(&thing);
            if order.left.is_empty() {
                order.ended.get_or_insert(now);
            }
        }
    }

    pub(crate) fn healed(&mut self, at: Duration, missing: Vec<u64>, base: Vec<Traffic>) {
        self.heal = Some(Heal { at, missing, base });
    }

    /// Times from pushes until a host showed the path, milliseconds, ascending.
    pub(crate) fn visible_millis(&self) -> Vec<f64> {
        sorted(self.visible.iter().map(millis))
    }

    /// Of each host that fetched and finished: its time by the ideal one, ascending.
    pub(crate) fn completions(&self, sums: &Sums<'_>) -> Vec<f64> {
        let finished = self.orders.values().filter_map(|order| {
            let took = order.ended?.saturating_sub(order.since);
            let bytes: u64 = order.things.iter().map(|thing| sums.lens[*thing]).sum();
            let ideal = bytes as f64 / sums.rate as f64;
            (ideal > 0.0).then(|| took.as_secs_f64() / ideal)
        });
        sorted(finished)
    }

    /// Everything that was measured, by name; what there is nothing to say of is left out.
    pub(crate) fn figures(&self, sums: &Sums<'_>) -> BTreeMap<String, f64> {
        let mut figures = BTreeMap::new();
        let mut put = |name: &str, value: Option<f64>| {
            debug_assert!(FIGURES.contains(&name));
            if let Some(value) = value {
                figures.insert(name.to_owned(), value);
            }
        };
        let completions = self.completions(sums);
        put("completion_p50", percentile(&completions, 0.5));
        put("completion_p99", percentile(&completions, 0.99));
        put("completion_max", completions.last().copied());
        let pushed: u64 = sums.lens.iter().sum();
        if !self.landings.is_empty() {
            let pairs = sums.traffic.iter().zip(&self.base);
            let chunks: Vec<u64> = pairs.map(|(now, base)| now.chunks - base.chunks).collect();
            put("first_holder_sent", ratio(chunks[0], pushed));
            let arrived = self
                .landings
                .iter()
                .map(|(_, landing)| landing.stats.arrived);
            let arrived: u64 = arrived.sum();
            let hedged = self
                .landings
                .iter()
                .map(|(_, landing)| landing.stats.hedged);
            put("hedged_share", ratio(hedged.sum(), arrived));
            put("sent_by_needed", ratio(chunks.iter().sum(), arrived));
            let waits = self
                .landings
                .iter()
                .map(|(_, landing)| millis(&landing.reader_wait));
            put("reader_wait_p99_ms", percentile(&sorted(waits), 0.99));
            put("failed_fetches", Some(self.failed as f64));
        }
        let visible = self.visible_millis();
        put("visible_p50_ms", percentile(&visible, 0.5));
        put("visible_p99_ms", percentile(&visible, 0.99));
        put("visible_max_ms", visible.last().copied());
        let hidden = sorted(self.hidden.iter().map(millis));
        put("hidden_p99_ms", percentile(&hidden, 0.99));
        let gossip = self.since_base(sums, |traffic| traffic.gossip);
        let measured = self
            .pushed_at
            .values()
            .filter(|at| **at >= self.measured_from);
        let paths = measured.count() as u64 * self.hosts as u64;
        put("gossip_bytes_per_path", ratio(gossip, paths));
        put("control_bytes_per_second", self.control(sums));
        put("bans", Some(self.bans as f64));
        let came = self.gossiped.max(1);
        put("gossip_duplicates", ratio(self.duplicates, came));
        if let Some((from, settled)) = self.settled {
            put("settled_seconds", Some((settled - from).as_secs_f64()));
            if let Some(heal) = &self.heal {
                let took = settled.saturating_sub(heal.at);
                put("heal_seconds", Some(took.as_secs_f64()));
                let (sent, missing) = heal.bytes(sums);
                put("heal_bytes", ratio(sent, missing));
                let excess = sent as f64 - 2.0 * missing as f64;
                put("heal_excess_kib", Some(excess / self.hosts as f64 / 1024.0));
            }
        }
        figures
    }

    /// Bytes per second and host that are not the exchange's.
    fn control(&self, sums: &Sums<'_>) -> Option<f64> {
        let seconds = sums.now.saturating_sub(self.measured_from).as_secs_f64();
        let sent = self.since_base(sums, |traffic| traffic.gossip + traffic.sync);
        let links = sums.links.iter().sum::<usize>() as f64 / self.hosts as f64;
        let pings = links * PING_BYTES / PING_EVERY.as_secs_f64();
        (seconds > 0.0).then(|| sent as f64 / seconds / self.hosts as f64 + pings)
    }

    fn since_base(&self, sums: &Sums<'_>, what: impl Fn(&Traffic) -> u64) -> u64 {
        let pairs = sums.traffic.iter().zip(&self.base);
        pairs.map(|(now, base)| what(now) - what(base)).sum()
    }
}

impl Heal {
    /// Bytes that were sent since, and that were lacking.
    fn bytes(&self, sums: &Sums<'_>) -> (u64, u64) {
        let pairs = sums.traffic.iter().zip(&self.base);
        let sent = pairs.map(|(now, base)| now.gossip + now.sync - base.gossip - base.sync);
        (sent.sum(), self.missing.iter().sum())
    }
}

fn millis(time: &Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// The value that this share of them, which ascend, does not exceed.
pub(crate) fn percentile(ascending: &[f64], share: f64) -> Option<f64> {
    let last = ascending.len().checked_sub(1)?;
    let at = (ascending.len() as f64 * share).ceil() as usize;
    Some(ascending[at.saturating_sub(1).min(last)])
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// A ping and its answer, as one host sends them to another every time: payload, noise, yamux, TCP
/// and IP.
const PING_BYTES: f64 = 2.0 * 120.0;
const PING_EVERY: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        for (share, value) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)] {
            assert_eq!(percentile(&hundred, share), Some(value));
        }
        assert_eq!(percentile(&[7.0], 0.5), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
