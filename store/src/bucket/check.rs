//! What a server really guarantees: tried, not believed.
//!
//! A bucket may be collected only if whoever asks after an answer sees what was answered: a written
//! object is read and listed, a deleted one is not, from every connection. [`check`] writes, lists and
//! deletes under `check/<random>/` from several clients at once, and says what held.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use tokio::task::JoinSet;

use super::{Bucket, BucketError};

/// What was tried, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// What all keys of the check begin with.
    pub folder: String,
    /// One line each, in the order of [`Guarantee::ALL`].
    pub steps: Vec<Step>,
    /// Why objects may be left in the folder.
    pub left_behind: Option<String>,
}

/// A guarantee that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub guarantee: Guarantee,
    /// How often it was tried.
    pub tries: u32,
    /// How it ended.
    pub verdict: Verdict,
}

/// How the trial of a guarantee ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It held each time.
    Holds,
    /// It did not hold at least once.
    Violated {
        /// The first time.
        reason: String,
    },
    /// It held whenever the server answered, which it did not always, or never.
    Unknown {
        /// What came first instead of an answer.
        reason: String,
    },
}

/// What a server must guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guarantee {
    /// A written object is read, whole and in ranges.
    PutThenGet,
    /// A written object has its length.
    PutThenHead,
    /// A written object is listed.
    PutThenList,
    /// Pages are in the order of keys, and leave nothing out.
    Paging,
    /// A deleted object cannot be read.
    DeleteThenGet,
    /// A deleted object has no length.
    DeleteThenHead,
    /// A deleted object is not listed.
    DeleteThenList,
    /// The server's clock is within an hour of this machine's.
    Clock,
}

impl Guarantee {
    /// All of them.
    pub const ALL: [Guarantee; 8] = [
        Guarantee::PutThenGet,
        Guarantee::PutThenHead,
        Guarantee::PutThenList,
        Guarantee::Paging,
        Guarantee::DeleteThenGet,
        Guarantee::DeleteThenHead,
        Guarantee::DeleteThenList,
        Guarantee::Clock,
    ];
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Guarantee::PutThenGet => "put, then get",
            Guarantee::PutThenHead => "put, then head",
            Guarantee::PutThenList => "put, then list",
            Guarantee::Paging => "pages of a listing",
            Guarantee::DeleteThenGet => "delete, then get",
            Guarantee::DeleteThenHead => "delete, then head",
            Guarantee::DeleteThenList => "delete, then list",
            Guarantee::Clock => "clock",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Holds => f.write_str("holds"),
            Verdict::Violated { reason } => write!(f, "VIOLATED: {reason}"),
            Verdict::Unknown { reason } => write!(f, "unknown: {reason}"),
        }
    }
}

impl CheckReport {
    /// Whether everything held each time.
    pub fn holds(&self) -> bool {
        self.steps.iter().all(|step| step.verdict == Verdict::Holds)
    }
}

/// Tries every guarantee `rounds` times, each time from all `clients` at once, and deletes what it
/// wrote.
///
/// The clients are of one bucket. Give several, so that several connections are asked, and one of each
/// address that the server has; with pages of at most four objects, or paging is not tried.
///
/// **Cancellation**: leaves objects under `check/`, which do no harm.
pub async fn check(clients: &[Arc<dyn Bucket>], rounds: u32) -> CheckReport {
    let folder = format!("check/{}", random_name());
    let mut findings = Findings::default();
    if !clients.is_empty() {
        for round in 0..rounds as usize {
            let folder = format!("{folder}/{round}");
            try_round(clients, round, &folder, &mut findings).await;
        }
    }
    let left_behind = match clients.first() {
        Some(client) => sweep(client.as_ref(), &folder).await.err(),
        None => None,
    };
    clients
        .iter()
        .for_each(|client| findings.clock(client.as_ref()));
    CheckReport {
        steps: findings.steps(),
        folder,
        left_behind: left_behind.map(|error| error.to_string()),
    }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<(Guarantee, Result<(), Finding>)>);

#[derive(Debug)]
enum Finding {
    Violation(String),
    NoAnswer(String),
}

impl From<BucketError> for Finding {
    fn from(error: BucketError) -> Finding {
        let reason = error.to_string();
        match error {
            // Whoever contradicts itself has answered.
            BucketError::Lied { .. }
            | BucketError::NotFound { .. }
            | BucketError::TooLong { .. }
            | BucketError::Truncated { .. } => Finding::Violation(reason),
            _ => Finding::NoAnswer(reason),
        }
    }
}

impl Findings {
    fn add(&mut self, guarantee: Guarantee, finding: Result<(), Finding>) {
        self.0.push((guarantee, finding));
    }

    fn clock(&mut self, client: &dyn Bucket) {
        let finding = match client.health().clock_ahead_seconds {
            Some(ahead) if ahead.unsigned_abs() > CLOCK_SECONDS_MAX => {
                let reason = format!("the server's is {ahead} s ahead of this machine's");
                Err(Finding::Violation(reason))
            }
            _ => Ok(()),
        };
        self.add(Guarantee::Clock, finding);
    }

    fn steps(&self) -> Vec<Step> {
        let step = |guarantee| {
            let mine = self.0.iter().filter(|(of, _)| *of == guarantee);
            let findings: Vec<&Result<(), Finding>> = mine.map(|(_, finding)| finding).collect();
            Step {
                guarantee,
                tries: u32::try_from(findings.len()).unwrap_or(u32::MAX),
                verdict: verdict(&findings),
            }
        };
        Guarantee::ALL.into_iter().map(step).collect()
    }
}

fn verdict(findings: &[&Result<(), Finding>]) -> Verdict {
    let mut errors = findings.iter().filter_map(|finding| finding.as_ref().err());
    let violation = errors.clone().find_map(|error| match error {
        Finding::Violation(reason) => Some(reason.clone()),
        Finding::NoAnswer(_) => None,
    });
    match (violation, errors.next()) {
        (Some(reason), _) => Verdict::Violated { reason },
        (None, Some(Finding::NoAnswer(reason) | Finding::Violation(reason))) => Verdict::Unknown {
            reason: reason.clone(),
        },
        (None, None) if findings.is_empty() => Verdict::Unknown {
            reason: "it could not be tried".to_owned(),
        },
        (None, None) => Verdict::Holds,
    }
}

/// Writes a few objects through one client, looks from all, deletes them through another, looks again.
async fn try_round(
    clients: &[Arc<dyn Bucket>],
    round: usize,
    folder: &str,
    findings: &mut Findings,
) {
    let client = |number: usize| Arc::clone(&clients[number % clients.len()]);
    let mut present = BTreeSet::new();
    // Not in their order, and around what sorts below, between and above a slash and digits.
    for name in ["m", "a-b", "a/b", "z_", "a.b", "B0", "a0"] {
        let key = format!("{folder}/{name}");
        if let Err(error) = client(round).put(&key, body_of(&key)).await {
            findings.add(Guarantee::PutThenGet, Err(error.into()));
            continue;
        }
        present.insert(key.clone());
        look(clients, folder, &key, &present, findings).await;
    }
    page_through(clients, folder, &present, findings).await;
    for key in present.clone() {
        if let Err(error) = client(round + 1).delete(&key).await {
            findings.add(Guarantee::DeleteThenGet, Err(error.into()));
            return;
        }
        present.remove(&key);
        look(clients, folder, &key, &present, findings).await;
    }
}

/// Looks from all clients at once whether `key` is there exactly if it is among `present`.
async fn look(
    clients: &[Arc<dyn Bucket>],
    folder: &str,
    key: &str,
    present: &BTreeSet<String>,
    findings: &mut Findings,
) {
    let is_there = present.contains(key);
    let (get, head, list) = match is_there {
        true => (
            Guarantee::PutThenGet,
            Guarantee::PutThenHead,
            Guarantee::PutThenList,
        ),
        false => (
            Guarantee::DeleteThenGet,
            Guarantee::DeleteThenHead,
            Guarantee::DeleteThenList,
        ),
    };
    let looks = clients.iter().map(|client| {
        let (client, key, folder) = (Arc::clone(client), key.to_owned(), format!("{folder}/"));
        async move {
            (
                look_by_get(client.as_ref(), &key, is_there).await,
                look_by_head(client.as_ref(), &key, is_there).await,
                look_by_list(client.as_ref(), &folder, &key, is_there).await,
            )
        }
    });
    for (by_get, by_head, by_list) in all(looks).await {
        findings.add(get, by_get);
        findings.add(head, by_head);
        findings.add(list, by_list);
    }
}

async fn look_by_get(client: &dyn Bucket, key: &str, is_there: bool) -> Result<(), Finding> {
    let expected = body_of(key);
    let len = expected.len() as u64;
    if !is_there {
        return match client.get(key, len).await {
            Err(BucketError::NotFound { .. }) => Ok(()),
            Ok(_) => Err(violation(key, "is read after it was deleted")),
            Err(error) => Err(error.into()),
        };
    }
    let whole = client.get(key, len).await?;
    let (first, last) = tokio::join!(
        client.get_range(key, 0..len / 2),
        client.get_range(key, len / 2..len)
    );
    let (first, last) = (first?, last?);
    match whole == expected && [first, last].concat() == expected {
        true => Ok(()),
        false => Err(violation(key, "is not read as it was written")),
    }
}

async fn look_by_head(client: &dyn Bucket, key: &str, is_there: bool) -> Result<(), Finding> {
    let expected = is_there.then(|| body_of(key).len() as u64);
    match client.head(key).await? {
        found if found == expected => Ok(()),
        Some(_) if !is_there => Err(violation(key, "has a length after it was deleted")),
        Some(_) => Err(violation(key, "has another length than was written")),
        None => Err(violation(key, "has no length after it was written")),
    }
}

async fn look_by_list(
    client: &dyn Bucket,
    folder: &str,
    key: &str,
    is_there: bool,
) -> Result<(), Finding> {
    let keys = keys(client, folder).await?.0;
    match (keys.iter().any(|listed| listed == key), is_there) {
        (true, false) => Err(violation(key, "is listed after it was deleted")),
        (false, true) => Err(violation(key, "is not listed after it was written")),
        _ => Ok(()),
    }
}

/// Lists from all clients at once, and compares with what is there.
async fn page_through(
    clients: &[Arc<dyn Bucket>],
    folder: &str,
    present: &BTreeSet<String>,
    findings: &mut Findings,
) {
    let listings = clients.iter().map(|client| {
        let (client, folder) = (Arc::clone(client), format!("{folder}/"));
        async move { keys(client.as_ref(), &folder).await }
    });
    for listing in all(listings).await {
        let finding = match listing {
            Ok((_, pages)) if pages < 2 => continue,
            Ok((keys, _)) if keys.iter().eq(present) => Ok(()),
            Ok((keys, _)) => {
                let reason = format!("listed {keys:?} where {present:?} are");
                Err(Finding::Violation(reason))
            }
            Err(error) => Err(error.into()),
        };
        findings.add(Guarantee::Paging, finding);
    }
}

/// All keys that begin with `prefix`, as listed, and on how many pages.
async fn keys(client: &dyn Bucket, prefix: &str) -> Result<(Vec<String>, usize), BucketError> {
    let mut keys: Vec<String> = Vec::new();
    for pages in 1..=PAGES_MAX {
        let page = client.list(prefix, keys.last().map(String::as_str)).await?;
        keys.extend(page.objects.into_iter().map(|object| object.key));
        if page.is_last {
            return Ok((keys, pages));
        }
    }
    Ok((keys, PAGES_MAX))
}

/// Deletes what is listed below the folder, until nothing is.
async fn sweep(client: &dyn Bucket, folder: &str) -> Result<(), BucketError> {
    let (keys, _) = keys(client, &format!("{folder}/")).await?;
    for key in keys {
        client.delete(&key).await?;
    }
    Ok(())
}

/// Runs these at once, and gives their results in their order.
async fn all<T: Send + 'static>(
    futures: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut tasks = JoinSet::new();
    for (number, future) in futures.enumerate() {
        tasks.spawn(async move { (number, future.await) });
    }
    let mut results = tasks.join_all().await;
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// What is written under a key: its own name and every byte there is, so that no object is like another.
fn body_of(key: &str) -> Bytes {
    key.bytes().chain(0..=255).collect()
}

fn violation(key: &str, what: &str) -> Finding {
    Finding::Violation(format!("{key} {what}"))
}

fn random_name() -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system's random source works");
    HEXLOWER.encode(&bytes)
}

/// Beyond it retention, which uses the server's dates, is not safe.
const CLOCK_SECONDS_MAX: u64 = 3600;
/// Far more than the objects of a check have.
const PAGES_MAX: usize = 1000;
