//! How much a peer may make this node do, and beyond what it is no honest one.
//!
//! Everything a peer does without being asked is paid for out of two buckets that fill with time.
//! When the small one is empty, the act is not taken on; when the large one is empty as well, no
//! honest peer acts like this, and the node is told. The accounts outlive connections, so that it
//! does not help to connect anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::ids::NodeId;
use crate::network::Misbehaviour;

/// What a peer does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    /// Gives us a gossip message.
    Gossip,
    /// Asks something.
    Request,
    /// Opens a bulk stream beyond its share.
    Surplus,
    /// Connects.
    Connection,
}

/// What becomes of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// It is taken on.
    Fine,
    /// It is one too many, for now.
    TooMany,
    /// It is one of so many that the node must know.
    Misbehaves(Misbehaviour),
}

/// So much at once, and so much a second.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    burst: f64,
    per_second: f64,
}

impl Act {
    /// Beyond it, acts are not taken on.
    fn allowance(self) -> Allowance {
        let (burst, per_second) = match self {
            Act::Gossip => (1024.0, 256.0),
            Act::Request => (2048.0, 1024.0),
            // The caller has refused it already.
            Act::Surplus => (0.0, 0.0),
            Act::Connection => (f64::MAX, 0.0),
        };
        Allowance { burst, per_second }
    }

    /// Beyond it, the peer is no honest one. An honest one passes on no more gossip than it takes
    /// from its eight neighbours, has no more to ask than a fast client of its own, and is back at
    /// most once a second when it is cut off again and again.
    fn patience(self) -> Allowance {
        let (burst, per_second) = match self {
            Act::Gossip => (8192.0, 2048.0),
            Act::Request => (65_536.0, 4096.0),
            Act::Surplus => (256.0, 8.0),
            Act::Connection => (120.0, 1.0),
        };
        Allowance { burst, per_second }
    }

    fn misbehaviour(self) -> Misbehaviour {
        match self {
            Act::Gossip => Misbehaviour::GossipFlood,
            Act::Request => Misbehaviour::RequestFlood,
            Act::Surplus => Misbehaviour::StreamFlood,
            Act::Connection => Misbehaviour::ConnectionFlood,
        }
    }
}

/// What peers may still do. Accounts that are full again are forgotten, so that there are about as
/// many as there are busy peers; at most [`ACCOUNTS_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Conduct {
    accounts: BTreeMap<(NodeId, Act), Account>,
}

/// Two buckets, as of `then`.
#[derive(Clone, Copy, Debug)]
struct Account {
    allowance: f64,
    patience: f64,
    then: Instant,
}

impl Conduct {
    /// Charges a peer for an act.
    pub(crate) fn judge(&mut self, now: Instant, node: NodeId, act: Act) -> Ruling {
        if self.accounts.len() >= ACCOUNTS_MAX && !self.accounts.contains_key(&(node, act)) {
            self.forget_full(now);
        }
        let full = Account::full(act, now);
        let account = self.accounts.entry((node, act)).or_insert(full);
        account.fill(act, now);
        let fine = take(&mut account.allowance);
        match take(&mut account.patience) {
            false => Ruling::Misbehaves(act.misbehaviour()),
            true if fine => Ruling::Fine,
            true => Ruling::TooMany,
        }
    }

    /// The node knows that a peer misbehaves: it is told again only after as much again.
    pub(crate) fn told(&mut self, now: Instant, node: NodeId, act: Act) {
        if let Some(account) = self.accounts.get_mut(&(node, act)) {
            account.patience = Account::full(act, now).patience;
        }
    }

    /// Forgets accounts that say nothing; all of them if there is no other way to make room.
    fn forget_full(&mut self, now: Instant) {
        self.accounts.retain(|(_, act), account| {
            account.fill(*act, now);
            account.patience < act.patience().burst
        });
        if self.accounts.len() >= ACCOUNTS_MAX {
            self.accounts.clear();
        }
    }
}

impl Account {
    fn full(act: Act, then: Instant) -> Account {
        Account {
            allowance: act.allowance().burst,
            patience: act.patience().burst,
            then,
        }
    }

    fn fill(&mut self, act: Act, now: Instant) {
        let passed = now.saturating_duration_since(self.then);
        self.allowance = filled(self.allowance, act.allowance(), passed);
        self.patience = filled(self.patience, act.patience(), passed);
        self.then = now;
    }
}

fn filled(level: f64, of: Allowance, passed: Duration) -> f64 {
    (level + passed.as_secs_f64() * of.per_second).min(of.burst)
}

fn take(level: &mut f64) -> bool {
    let enough = *level >= 1.0;
    if enough {
        *level -= 1.0;
    }
    enough
}

/// Four for each connection there can be, and as many for peers that have gone.
const ACCOUNTS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_bytes([1; 32]);

    fn count(conduct: &mut Conduct, now: Instant, act: Act, acts: usize) -> [usize; 3] {
        let mut counts = [0; 3];
        for _ in 0..acts {
            let ruling = match conduct.judge(now, PEER, act) {
                Ruling::Fine => 0,
                Ruling::TooMany => 1,
                Ruling::Misbehaves(_) => 2,
            };
            counts[ruling] += 1;
        }
        counts
    }

    #[test]
    fn a_burst_is_fine_more_is_dropped_and_a_flood_is_told() {
        let mut conduct = Conduct::default();
        let start = Instant::now();
        let counts = count(&mut conduct, start, Act::Gossip, 8193);
        assert_eq!(counts, [1024, 7168, 1]);
        conduct.told(start, PEER, Act::Gossip);
        assert_eq!(
            conduct.judge(start, PEER, Act::Gossip),
            Ruling::TooMany,
            "it is told once"
        );
        let later = start + Duration::from_secs(2);
        let counts = count(&mut conduct, later, Act::Gossip, 600);
        assert_eq!(counts, [512, 88, 0]);
    }

    /// Two thirds of what every limit allows, for an hour.
    #[test]
    fn who_keeps_below_the_limits_is_never_told() {
        for (act, per_second) in [
            (Act::Gossip, 170),
            (Act::Request, 680),
            (Act::Connection, 1),
        ] {
            let mut conduct = Conduct::default();
            let start = Instant::now();
            for second in 0..3600 {
                let now = start + Duration::from_secs(second);
                let counts = count(&mut conduct, now, act, per_second);
                assert_eq!(counts, [per_second, 0, 0], "{act:?}");
            }
        }
    }

    #[test]
    fn a_thousand_surplus_streams_are_misbehaviour() {
        let mut conduct = Conduct::default();
        let counts = count(&mut conduct, Instant::now(), Act::Surplus, 1000);
        assert_eq!(counts, [0, 256, 744]);
    }

    #[test]
    fn the_accounts_are_bounded_and_busy_ones_are_kept() {
        let mut conduct = Conduct::default();
        let now = Instant::now();
        count(&mut conduct, now, Act::Surplus, 256);
        let later = now + Duration::from_secs(1);
        for number in 0..3 * ACCOUNTS_MAX as u64 {
            let mut bytes = [2; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            let now = later + Duration::from_millis(number);
            conduct.judge(now, NodeId::from_bytes(bytes), Act::Connection);
            assert!(conduct.accounts.len() <= ACCOUNTS_MAX);
        }
        assert!(conduct.accounts.contains_key(&(PEER, Act::Surplus)));
    }
}
