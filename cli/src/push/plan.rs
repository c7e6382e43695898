//! Which paths to send, and why the others need not be: pure decisions over the node's answer.

use std::collections::BTreeSet;

use attic_node_core::api::PushSession;
use attic_store::narinfo::PathInfo;
use attic_store::signature::{PublicKey, Signature, TrustedKeys};
use attic_store::store_path::StoreDir;

use crate::nix::LocalPath;
use crate::push::Upstream;

/// A path and what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The path.
    pub path: LocalPath,
    /// What is to be done.
    pub verdict: Verdict,
}

/// What is to be done about a path, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it: the cache lacks it.
    Send {
        /// Key whose name is on one of its signatures, though none of this name is good: such a
        /// path is not known to be upstream.
        unproven: Option<String>,
    },
    /// The cache has it.
    Cached,
    /// The cache does not want what this key has signed.
    Upstream {
        /// Name of the key.
        key: String,
    },
    /// The node takes no NAR of this size.
    TooLarge {
        /// The largest it takes, in bytes.
        nar_size_max: u64,
    },
    /// A NAR of this size does not fit below the size cap of the node.
    NoRoom {
        /// The largest that does, in bytes.
        room: u64,
    },
}

/// Which of the missing paths the cache does not want.
#[derive(Clone, Debug)]
pub struct Filter {
    upstream: TrustedKeys,
    heeded: bool,
}

impl Filter {
    /// What the cache's settings say; `upstream` may overrule them. Keys that cannot be read filter
    /// nothing.
    pub fn new(session: &PushSession, upstream: Upstream) -> Filter {
        let keys = session.skip_signed_by.iter();
        Filter {
            upstream: keys
                .filter_map(|key| key.parse::<PublicKey>().ok())
                .collect(),
            heeded: upstream == Upstream::Skip && !session.cache_everything,
        }
    }

    /// Judges one path that the cache lacks: only a signature that verifies counts.
    fn judge(&self, path: &LocalPath, store_dir: &StoreDir) -> Verdict {
        let signatures = &path.info.signatures;
        match self
            .upstream
            .verify(&path.info.fingerprint(store_dir), signatures)
        {
            Some(key) if self.heeded => Verdict::Upstream {
                key: key.name().to_owned(),
            },
            Some(_) => Verdict::Send { unproven: None },
            None => {
                let named = signatures.iter().find(|signature| self.names(signature));
                let unproven = named.map(|signature| signature.key_name().to_owned());
                Verdict::Send { unproven }
            }
        }
    }

    /// Takes off the signatures that bear the name of an upstream key which did not make them.
    fn strip(&self, info: &mut PathInfo, store_dir: &StoreDir) {
        let fingerprint = info.fingerprint(store_dir);
        let good = |signature: &Signature| {
            let alone = std::slice::from_ref(signature);
            !self.names(signature) || self.upstream.verify(&fingerprint, alone).is_some()
        };
        info.signatures.retain(good);
    }

    /// Whether the signature bears the name of an upstream key.
    fn names(&self, signature: &Signature) -> bool {
        self.upstream
            .keys()
            .iter()
            .any(|key| key.name() == signature.key_name())
    }
}

/// Judges every path, keeping their order. Signatures that only bear an upstream key's name are
/// taken off: they are worth nothing to anybody.
pub fn decide(
    paths: Vec<LocalPath>,
    store_dir: &StoreDir,
    session: &PushSession,
    filter: &Filter,
) -> Vec<Planned> {
    let missing: BTreeSet<_> = session.missing.iter().collect();
    let (nar_size_max, room) = (session.nar_size_max, session.room.unwrap_or(u64::MAX));
    let judge = |path: &LocalPath| {
        if !missing.contains(path.info.path.hash()) {
            return Verdict::Cached;
        }
        match filter.judge(path, store_dir) {
            Verdict::Send { .. } if path.info.nar_size > nar_size_max => {
                Verdict::TooLarge { nar_size_max }
            }
            Verdict::Send { .. } if path.info.nar_size > room => Verdict::NoRoom { room },
            verdict => verdict,
        }
    };
    let plan = |mut path: LocalPath| {
        let verdict = judge(&path);
        filter.strip(&mut path.info, store_dir);
        Planned { path, verdict }
    };
    paths.into_iter().map(plan).collect()
}

/// How many paths got which verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// To be sent.
    pub send: u64,
    /// In the cache.
    pub cached: u64,
    /// Not wanted.
    pub upstream: u64,
    /// Not taken.
    pub too_large: u64,
}

impl Tally {
    /// Counts the verdicts of a plan.
    pub fn of(plan: &[Planned]) -> Tally {
        let mut tally = Tally::default();
        for planned in plan {
            *match planned.verdict {
                Verdict::Send { .. } => &mut tally.send,
                Verdict::Cached => &mut tally.cached,
                Verdict::Upstream { .. } => &mut tally.upstream,
                Verdict::TooLarge { .. } | Verdict::NoRoom { .. } => &mut tally.too_large,
            } += 1;
        }
        tally
    }
}
