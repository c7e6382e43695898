//! Takes out of the bucket what nothing needs any more, when somebody asks for it.
//!
//! The order of requests is the [`Collector`]'s; here it gets its answers. What it learnt of journals is
//! kept from one run to the next: their entries never change.
//!
//! A pack whose last record died is not condemned before it was seen dead for `s3.grace`, by this node's
//! clock: somebody may be reading it. That is kindness, and safety does not depend on it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attic_p2p::collector::{
    Blocked, Clocks, Collector, Fate, Life, Limits, Listed, Plan, PlanInput, References,
    ReferencesFull, Stop, outdated,
};
use attic_p2p::ids::{Dot, NodeId};
use attic_p2p::journal::{
    CONDEMNATIONS, Condemnations, JOURNALS, newest_condemnations, read_entry_key,
};
use attic_p2p::membership::time::UnixTime;
use attic_p2p::segment::Segment;
use attic_p2p::signed::Signed;
use attic_store::PackId;
use attic_store::bucket::pack::PACKS;
use attic_store::bucket::{BucketError, Object, each_object};
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

use super::write_behind::{WriteError, condemnations};
use super::{SharedBucket, keys, read_entry};
use crate::app::App;
use crate::auth::random;
use crate::clock::unix_now;
use crate::data_dir::{Secrecy, read_file, replace_file};
use crate::http::ingest::joined;
use crate::mesh::Mesh;

/// What is known of journals, between runs. One run at a time holds it.
#[derive(Default)]
pub(crate) struct Collection(Mutex<Known>);

#[derive(Default)]
struct Known {
    references: References,
    /// Entries that were read.
    read: HashSet<String>,
    /// Objects among them that are none.
    damaged: BTreeSet<String>,
    /// How far the logs go that they carry.
    carried: BTreeMap<NodeId, u64>,
}

/// What a run is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// Say what would go, and change nothing.
    pub(crate) dry_run: bool,
    /// Let more go than is plausible.
    pub(crate) force: bool,
}

/// What a run found and did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collected {
    /// Packs of the bucket, and their bytes.
    pub(crate) packs: (u64, u64),
    /// What goes.
    pub(crate) going: (u64, u64),
    /// Of what goes, what waits for the grace to be over.
    pub(crate) in_grace: (u64, u64),
    /// What went.
    pub(crate) deleted: (u64, u64),
    /// What was to go, and is needed again.
    pub(crate) saved: u64,
    /// Packs that stay because it is not known whether they are needed, or another keeper sees to them, or
    /// nobody named them and they are young.
    pub(crate) unknown: u64,
    pub(crate) elsewhere: u64,
    pub(crate) young: u64,
    /// Packs that are worth being written anew.
    pub(crate) sparse: u64,
    /// Why nothing went.
    pub(crate) stops: Vec<Stop>,
}

/// Why a run ended early. What it began the next one goes on with.
#[derive(Debug, Error)]
pub(crate) enum CollectError {
    #[error("this node is no keeper of the bucket, or it is not known yet what is there")]
    NotReady,
    /// What lives is not known here then: what was removed may have come back.
    #[error("the bucket has more of the log of {0} than this node has heard")]
    Behind(NodeId),
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Full(#[from] ReferencesFull),
    #[error("when packs died cannot be noted")]
    Noted(#[source] crate::data_dir::FileError),
    #[error("{0} packs are still there after they were deleted")]
    Left(usize),
}

/// Collects, or says what would be.
///
/// **Errors**: any [`CollectError`].
pub(crate) async fn collect(
    app: &Arc<App>,
    mesh: &Arc<Mesh>,
    shared: &Arc<SharedBucket>,
    order: Order,
) -> Result<Collected, CollectError> {
    let mut known = mesh.collection.0.lock().await;
    if !mesh.is_writing_behind() || !mesh.carry(shared).await? {
        return Err(CollectError::NotReady);
    }
    let run = Run {
        app,
        mesh,
        shared,
        grace: app.config.s3.as_ref().map_or(Duration::ZERO, |s3| s3.grace),
        dead_file: mesh.announcer.files.bucket().join("dead"),
    };
    let (others, own) = run.all_condemnations().await?;
    run.read_journals(&mut known).await?;
    let plan = run.plan(&known, &others, order).await?;
    // So that none of the removals on which the plan relies is lost with this node.
    mesh.carry(shared).await?;
    let mut collected = summary(&plan);
    let ripe = run.ripe(&plan, order.dry_run, &mut collected)?;
    if order.dry_run {
        return Ok(collected);
    }
    let going = match plan.going() {
        Ok(_) => ripe,
        // What was begun is ended all the same: it was safe to begin it.
        Err(_) => BTreeSet::new(),
    };
    let lens: HashMap<PackId, u64> = plan
        .packs
        .iter()
        .map(|(listed, _)| (listed.pack, listed.len))
        .collect();
    run.drive(own, going, &lens, &mut known, &mut collected)
        .await?;
    run.clear_away().await?;
    Ok(collected)
}

struct Run<'a> {
    app: &'a Arc<App>,
    mesh: &'a Arc<Mesh>,
    shared: &'a Arc<SharedBucket>,
    grace: Duration,
    /// Since when packs are known to be dead.
    dead_file: PathBuf,
}

impl Run<'_> {
    /// What other keepers condemn, and where this one's collector stands.
    async fn all_condemnations(
        &self,
    ) -> Result<(Vec<(NodeId, Condemnations)>, Collector), CollectError> {
        let keys = keys(&*self.shared.remote, CONDEMNATIONS).await?;
        let (mut others, mut own) = (Vec::new(), Collector::resume(0, []));
        for (keeper, newest) in newest_condemnations(keys.iter().map(String::as_str)) {
            let mut sets = Vec::new();
            for key in newest.keys {
                sets.push(condemnations(self.shared, &keeper, key).await?);
            }
            if keeper == self.mesh.me {
                own = Collector::resume(newest.version, &sets);
            } else if self.mesh.view.is_keeper(keeper) {
                others.extend(sets.into_iter().map(|sets| (keeper, sets)));
            }
        }
        Ok((others, own))
    }

    /// Reads what journals have that was not read yet, by a listing that begins now.
    async fn read_journals(&self, known: &mut Known) -> Result<(), CollectError> {
        let keys = keys(&*self.shared.remote, JOURNALS).await?;
        // Somebody may have seen to what was damaged.
        known.damaged.clear();
        // Tools that show directories make objects for them.
        let is_new = |key: &String| !known.read.contains(key) && !key.ends_with('/');
        let mut keys = { keys.into_iter() }
            .filter(is_new)
            .collect::<Vec<_>>()
            .into_iter();
        let mut reading = JoinSet::new();
        loop {
            while reading.len() < READS_MAX
                && let Some(key) = keys.next()
            {
                let shared = Arc::clone(self.shared);
                reading.spawn(async move {
                    let entry = match read_entry_key(&key) {
                        Some((keeper, _)) => {
                            let cluster = &shared.cluster;
                            read_entry(&*shared.remote, cluster, &keeper, &key).await
                        }
                        None => Ok(None),
                    };
                    (key, entry)
                });
            }
            let Some(read) = reading.join_next().await else {
                return Ok(());
            };
            let (key, entry) = joined(read);
            match entry? {
                Some(entry) => {
                    for reference in &entry.references {
                        known.references.add(reference)?;
                    }
                    // Who is no keeper could make up logs, to stop all collection.
                    if self.mesh.view.is_keeper(entry.keeper) {
                        let segments = entry.segments.into_iter();
                        let segments =
                            segments.filter_map(|bytes| Segment::decode(bytes.into()).ok());
                        for segment in segments {
                            let head = segment.head();
                            let seq = known.carried.entry(head.node).or_default();
                            *seq = head.seq.max(*seq);
                        }
                    }
                    known.read.insert(key);
                }
                None => drop(known.damaged.insert(key)),
            }
        }
    }

    async fn plan(
        &self,
        known: &Known,
        others: &[(NodeId, Condemnations)],
        order: Order,
    ) -> Result<Plan, CollectError> {
        let mut listed = Vec::new();
        let look = |object: Object| {
            if let Some(pack) = PackId::of_object_key(&object.key) {
                listed.push(Listed {
                    pack,
                    len: object.len,
                    modified: unix_time(object.modified),
                });
            }
        };
        each_object(&*self.shared.remote, PACKS, None, look).await?;
        let server = self.server_time().await?;
        let mut limits = Limits::default();
        if order.force {
            limits.share_max_percent = 100;
        }
        let lives = self.lives(known).await?;
        let damaged: Vec<String> = known.damaged.iter().cloned().collect();
        let input = PlanInput {
            listed: &listed,
            references: &known.references,
            damaged: &damaged,
            others,
            now: Clocks {
                server,
                own: unix_time(SystemTime::now()),
            },
            limits,
        };
        Ok(tokio::task::block_in_place(|| {
            Plan::new(input, |dot| lives.of(dot))
        }))
    }

    /// Which records live, by all that journals carry and more.
    ///
    /// **Errors**: [`CollectError::Behind`].
    async fn lives(&self, known: &Known) -> Result<Lives, CollectError> {
        let view = self.mesh.view.clone();
        if let Some(node) = view.behind(&known.carried) {
            return Err(CollectError::Behind(node));
        }
        let looking = view.clone();
        let living = joined(spawn_blocking(move || looking.living()).await);
        Ok(Lives { view, living })
    }

    /// What time the server has: it dates what it is given.
    async fn server_time(&self) -> Result<UnixTime, CollectError> {
        let number = u64::from_le_bytes(random());
        let key = format!("check/clock-{number:016x}");
        self.shared.remote.put(&key, Vec::new().into()).await?;
        let mut modified = None;
        let look = |object: Object| modified = Some(object.modified);
        each_object(&*self.shared.remote, &key, None, look).await?;
        // It does no harm there.
        let _ = self.shared.remote.delete(&key).await;
        let gone = BucketError::NotFound { key };
        Ok(unix_time(modified.ok_or(gone)?))
    }

    /// Which of the packs that would go have been dead for long enough. Notes since when the others are,
    /// unless it is a dry run.
    fn ripe(
        &self,
        plan: &Plan,
        dry_run: bool,
        collected: &mut Collected,
    ) -> Result<BTreeSet<PackId>, CollectError> {
        let now = unix_now();
        let before = read_dead(&self.dead_file);
        let (mut dead, mut ripe) = (BTreeMap::new(), BTreeSet::new());
        let going = plan.packs.iter().filter(|(_, fate)| fate.goes());
        for (listed, _) in going {
            let since = before
                .get(&listed.pack)
                .map_or(now, |since| now.min(*since));
            dead.insert(listed.pack, since);
            match now - since >= self.grace.as_secs() {
                true => drop(ripe.insert(listed.pack)),
                false => add(&mut collected.in_grace, listed.len),
            }
        }
        if !dry_run && dead != before {
            note_dead(&self.dead_file, &dead).map_err(CollectError::Noted)?;
        }
        Ok(ripe)
    }

    /// Takes the collector through all its states until it rests and nothing is left to condemn.
    async fn drive(
        &self,
        mut collector: Collector,
        going: BTreeSet<PackId>,
        lens: &HashMap<PackId, u64>,
        known: &mut Known,
        collected: &mut Collected,
    ) -> Result<(), CollectError> {
        let mut going = going.into_iter().peekable();
        let mut looks = 0;
        loop {
            collector = match collector {
                Collector::Idle(idle) => {
                    if going.peek().is_none() {
                        return Ok(());
                    }
                    idle.condemn(&mut going)
                }
                Collector::Write(write) => {
                    if !self.mesh.is_writing_behind() {
                        return Err(CollectError::NotReady);
                    }
                    let key = write.key(&self.mesh.me, u32::from_le_bytes(random()));
                    let sets = write.condemnations().clone();
                    let bytes = Signed::new(sets, &self.app.identity()).encode();
                    self.shared.remote.put(&key, bytes.into()).await?;
                    write.written()
                }
                Collector::Look(look) => {
                    self.read_journals(known).await?;
                    let lives = self.lives(known).await?;
                    let condemned = look.condemned();
                    let referred = match known.damaged.is_empty() {
                        true => tokio::task::block_in_place(|| {
                            known.references.referred(condemned, |dot| lives.of(dot))
                        }),
                        // It may refer to any of them.
                        false => condemned.clone(),
                    };
                    collected.saved += referred.len() as u64;
                    // As before: what is dead must be so for whoever has nothing but the bucket.
                    self.mesh.carry(self.shared).await?;
                    look.looked(&referred)
                }
                Collector::Delete(delete) => {
                    looks += 1;
                    if looks > LOOKS_MAX {
                        return Err(CollectError::Left(delete.left().len()));
                    }
                    if looks > 1 {
                        sleep(LOOK_AGAIN).await;
                    }
                    self.delete(delete.left()).await?;
                    let there = self.listed(delete.left()).await?;
                    if there.is_empty() {
                        looks = 0;
                        for pack in delete.doomed() {
                            add(
                                &mut collected.deleted,
                                lens.get(pack).copied().unwrap_or_default(),
                            );
                            self.shared.index().forget(*pack);
                        }
                    }
                    delete.looked(|pack| there.contains(pack))
                }
            };
        }
    }

    async fn delete(&self, packs: &BTreeSet<PackId>) -> Result<(), CollectError> {
        let mut packs = packs.iter().copied();
        let mut deleting = JoinSet::new();
        loop {
            while deleting.len() < DELETES_MAX
                && let Some(pack) = packs.next()
            {
                let remote = Arc::clone(&self.shared.remote);
                deleting.spawn(async move { remote.delete(&pack.object_key()).await });
            }
            let Some(deleted) = deleting.join_next().await else {
                return Ok(());
            };
            joined(deleted)?;
        }
    }

    /// Which of these packs a listing shows.
    async fn listed(&self, packs: &BTreeSet<PackId>) -> Result<BTreeSet<PackId>, CollectError> {
        let mut there = BTreeSet::new();
        let look = |object: Object| {
            let pack = PackId::of_object_key(&object.key);
            there.extend(pack.filter(|pack| packs.contains(pack)));
        };
        each_object(&*self.shared.remote, PACKS, None, look).await?;
        Ok(there)
    }

    /// Deletes versions that nobody looks at any more.
    async fn clear_away(&self) -> Result<(), CollectError> {
        let keys = keys(&*self.shared.remote, CONDEMNATIONS).await?;
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        for key in outdated(&self.mesh.me, &keys) {
            self.shared.remote.delete(key).await?;
        }
        Ok(())
    }
}

/// Which records live.
struct Lives {
    view: crate::mesh::view::DirectoryView,
    /// All that do, and whether they are durable.
    living: HashMap<Dot, bool>,
}

impl Lives {
    fn of(&self, dot: &Dot) -> Life {
        match self.living.get(dot) {
            Some(true) => Life::Durable,
            Some(false) => Life::Live,
            None => self.view.life(*dot),
        }
    }
}

fn summary(plan: &Plan) -> Collected {
    let totals = plan.totals;
    let mut collected = Collected {
        packs: (totals.packs as u64, totals.bytes),
        going: (totals.going as u64, totals.freed),
        sparse: plan.repack().count() as u64,
        stops: plan.stops.clone(),
        ..Collected::default()
    };
    for (_, fate) in &plan.packs {
        match fate {
            Fate::Stays(Blocked::Unknown) => collected.unknown += 1,
            Fate::Stays(Blocked::Condemned(_)) => collected.elsewhere += 1,
            Fate::Stays(Blocked::Young) => collected.young += 1,
            Fate::Stays(Blocked::Live { .. } | Blocked::Lingering) | Fate::Dead | Fate::Unnamed => {
            }
        }
    }
    collected
}

fn add(sum: &mut (u64, u64), len: u64) {
    *sum = (sum.0 + 1, sum.1 + len);
}

fn unix_time(at: SystemTime) -> UnixTime {
    UnixTime(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// Since when packs are dead. If that was lost they have died just now.
fn read_dead(file: &Path) -> BTreeMap<PackId, u64> {
    let text = read_file(file).unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let (pack, since) = line.split_once(' ')?;
        Some((pack.parse().ok()?, since.parse().ok()?))
    });
    lines.collect()
}

fn note_dead(file: &Path, dead: &BTreeMap<PackId, u64>) -> Result<(), crate::data_dir::FileError> {
    let lines = { dead.iter() }.map(|(pack, since)| format!("{pack} {since}\n"));
    replace_file(file, &lines.collect::<String>(), Secrecy::Public)
}

/// Entries of journals that are read at once.
const READS_MAX: usize = 16;
/// Packs that are deleted at once.
const DELETES_MAX: usize = 16;
/// Times it is looked whether doomed packs are gone.
const LOOKS_MAX: u32 = 10;
const LOOK_AGAIN: Duration = Duration::from_secs(1);
