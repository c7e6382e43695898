//! Buckets: what is asked of an object store, and two that answer.
//!
//! [`Bucket`] is all that the durable floor needs of S3: whole objects that are written once, read in
//! ranges, listed and deleted. No conditional write, no multipart upload, no version. [`s3`] is a real
//! server's; [`memory`] is its twin for tests, which fails as it is told to. [`conformance`] is what
//! both are held to, [`check`] what a server is tried for before its bucket is collected.
//!
//! Objects are *written once*: a name is never reused, so an upload whose answer was lost is not
//! repeated, and a late one overwrites nothing.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::time::SystemTime;

use bytes::Bytes;
use thiserror::Error;

pub mod check;
pub mod conformance;
pub mod memory;
pub mod pack;
pub mod s3;

mod index;

pub use index::BucketIndex;

/// What a bucket answers, some time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, BucketError>> + Send + 'a>>;

/// Objects under one prefix of one bucket.
///
/// **Keys** are relative to that prefix, and made as [`is_key`] says; another key is
/// [`BucketError::Key`] and asks nobody.
///
/// **Order**: requests under way at once take effect in any order. An answer that came is followed by
/// every request that starts after it, as far as the server keeps its promises ([`check`]).
///
/// **Cancellation**: dropping an answer of a read does nothing. A write whose answer is dropped is in
/// the state of [`BucketError::Unclear`].
pub trait Bucket: Send + Sync {
    /// Writes an object in one attempt, which is never repeated.
    ///
    /// **Errors**: [`Unclear`](BucketError::Unclear) when it may or may not have been written, or may
    /// yet be: the name is burnt. [`Unreachable`](BucketError::Unreachable) when nothing was sent.
    /// With any other the server said that it did not write it.
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> Answer<'a, ()>;

    /// Exactly these bytes of an object; tried again by policy. An empty range asks nobody.
    ///
    /// **Errors**: [`Truncated`](BucketError::Truncated) when the object ends before the range does.
    fn get_range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes>;

    /// A whole object of at most `len_max` bytes; tried again by policy.
    ///
    /// **Errors**: [`TooLong`](BucketError::TooLong) when it has more; they are not read.
    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> Answer<'a, Bytes>;

    /// The length of an object in bytes, `None` if there is none; tried again by policy.
    ///
    /// A server that has no such bucket at all may say `None` as well.
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<u64>>;

    /// One page of the objects whose keys begin with `prefix` and are greater than `after`, ascending
    /// by the bytes of their keys; tried again by policy.
    ///
    /// `prefix` need not end at a slash; empty, it is all of them.
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> Answer<'a, Page>;

    /// Deletes an object; that there is none is success. Tried again by policy.
    ///
    /// **Errors**: [`Unclear`](BucketError::Unclear) when it may or may not be gone, or may yet go.
    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()>;

    /// What was asked and answered since the start.
    fn counters(&self) -> Counters;

    /// How the server does.
    fn health(&self) -> Health;
}

/// Looks at all objects whose keys begin with `prefix` and are greater than `after`, in order.
///
/// **Errors**: the bucket's; some were looked at then.
pub async fn each_object(
    bucket: &dyn Bucket,
    prefix: &str,
    after: Option<String>,
    mut look: impl FnMut(Object),
) -> Result<(), BucketError> {
    let mut after = after;
    loop {
        let page = bucket.list(prefix, after.as_deref()).await?;
        let last = page.objects.last().map(|object| object.key.clone());
        page.objects.into_iter().for_each(&mut look);
        if page.is_last || last.is_none() {
            return Ok(());
        }
        after = last;
    }
}

/// Part of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Objects by ascending key.
    pub objects: Vec<Object>,
    /// Whether nothing follows. Otherwise the next page begins after the last key of this one, which
    /// then has at least one.
    pub is_last: bool,
}

/// An object, as a listing names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its key below the prefix of the bucket. Whoever else writes there need not keep to [`is_key`].
    pub key: String,
    /// Its length in bytes.
    pub len: u64,
    /// When it was written, by the server's clock, to the second.
    pub modified: SystemTime,
}

/// A request of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Writes an object.
    Put,
    /// Reads one, or a part.
    Get,
    /// Asks for a length.
    Head,
    /// Asks for a page of a listing.
    List,
    /// Deletes an object.
    Delete,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 5] = [
        Operation::Put,
        Operation::Get,
        Operation::Head,
        Operation::List,
        Operation::Delete,
    ];
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::Head => "head",
            Operation::List => "list",
            Operation::Delete => "delete",
        })
    }
}

/// What was asked and answered since the start, by operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of [`Bucket::put`].
    pub put: OperationCounters,
    /// Of [`Bucket::get`] and [`Bucket::get_range`].
    pub get: OperationCounters,
    /// Of [`Bucket::head`].
    pub head: OperationCounters,
    /// Of [`Bucket::list`].
    pub list: OperationCounters,
    /// Of [`Bucket::delete`].
    pub delete: OperationCounters,
}

impl Counters {
    /// Those of an operation.
    pub fn of(&self, operation: Operation) -> &OperationCounters {
        match operation {
            Operation::Put => &self.put,
            Operation::Get => &self.get,
            Operation::Head => &self.head,
            Operation::List => &self.list,
            Operation::Delete => &self.delete,
        }
    }

    pub(crate) fn of_mut(&mut self, operation: Operation) -> &mut OperationCounters {
        match operation {
            Operation::Put => &mut self.put,
            Operation::Get => &mut self.get,
            Operation::Head => &mut self.head,
            Operation::List => &mut self.list,
            Operation::Delete => &mut self.delete,
        }
    }
}

/// What was asked and answered of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationCounters {
    /// Requests sent, those that were repeated included.
    pub requests: u64,
    /// Bytes of objects written or read.
    pub bytes: u64,
    /// Requests that repeated one.
    pub retries: u64,
    /// Operations that ended in an error; that there is no such object is none.
    pub failures: u64,
    /// Requests that the server refused because it was busy.
    pub throttled: u64,
}

/// How the server does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The last error, in words.
    pub last_error: Option<String>,
    /// Since when every operation has failed; `None` after one that the server did its part in.
    pub failing_since: Option<SystemTime>,
    /// Until when the breaker is open: nothing is asked, since nothing was answered lately.
    pub breaker_open_until: Option<SystemTime>,
    /// How far the server's clock was from this machine's at its last answer, in seconds: positive
    /// when it is ahead. `None` before the first.
    pub clock_ahead_seconds: Option<i64>,
}

/// A bucket did not do what was asked. No text holds credentials.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BucketError {
    /// There is no such object.
    #[error("no object {key}")]
    NotFound {
        /// Its key.
        key: String,
    },
    /// The server knows these credentials not, or not for this.
    #[error(
        "bucket {bucket} refuses access: {reason}\nhint: check the key id, the secret, the region and the rights on the bucket"
    )]
    Denied {
        /// The bucket.
        bucket: String,
        /// What the server said.
        reason: String,
    },
    /// The server has no bucket of that name.
    #[error("there is no bucket {bucket}")]
    NoBucket {
        /// The bucket.
        bucket: String,
    },
    /// The clocks of this machine and of the server are too far apart for signatures.
    #[error(
        "bucket {bucket} refuses signatures by this machine's clock, which is {ahead}\nhint: set the clock"
    )]
    ClockSkew {
        /// The bucket.
        bucket: String,
        /// How far apart the clocks are, in words.
        ahead: String,
    },
    /// The server asked for patience at every attempt. Nothing was changed.
    #[error("bucket {bucket} is busy")]
    Busy {
        /// The bucket.
        bucket: String,
    },
    /// The server cannot be reached, or does not answer. Nothing was changed.
    #[error("bucket {bucket} cannot be reached: {reason}")]
    Unreachable {
        /// The bucket.
        bucket: String,
        /// Why.
        reason: String,
    },
    /// The answer to a write or a deletion was lost: it may or may not have been applied, or may yet
    /// be.
    #[error("no answer to {operation} {key}: {reason}")]
    Unclear {
        /// What was asked.
        operation: Operation,
        /// Of which object.
        key: String,
        /// What came instead of an answer.
        reason: String,
    },
    /// An object is shorter than it must be.
    #[error("object {key} ends at {len} bytes, wanted {wanted}")]
    Truncated {
        /// Its key.
        key: String,
        /// Its length in bytes.
        len: u64,
        /// The bytes up to which it was asked for.
        wanted: u64,
    },
    /// The server contradicts itself.
    #[error("bucket answers {operation} {key} with a contradiction: {reason}")]
    Lied {
        /// What was asked.
        operation: Operation,
        /// Of which object or prefix.
        key: String,
        /// What does not fit.
        reason: String,
    },
    /// An object is longer than was asked for.
    #[error("object {key} has {len} bytes, more than {len_max}")]
    TooLong {
        /// Its key.
        key: String,
        /// Its length in bytes.
        len: u64,
        /// The most that was asked for, in bytes.
        len_max: u64,
    },
    /// Not a key that every server takes.
    #[error("{key:?} is no key of an object")]
    Key {
        /// The text.
        key: String,
    },
    /// The server refused for a reason that has no variant. Nothing was changed.
    #[error("bucket refuses {operation} {key}: {reason}")]
    Other {
        /// What was asked.
        operation: Operation,
        /// Of which object or prefix.
        key: String,
        /// What the server said.
        reason: String,
    },
}

impl BucketError {
    /// Whether the server did its part, and the object is what is wrong.
    pub fn is_of_object(&self) -> bool {
        matches!(
            self,
            BucketError::NotFound { .. }
                | BucketError::Truncated { .. }
                | BucketError::TooLong { .. }
        )
    }

    /// Whether the same may well succeed later, with nobody changing anything.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            BucketError::Busy { .. }
                | BucketError::Unreachable { .. }
                | BucketError::Unclear { .. }
        )
    }
}

/// Whether `text` is a key that every server takes as it is.
///
/// **Shape**: 1 to 512 of the characters `a`–`z`, `A`–`Z`, `0`–`9`, `-`, `.`, `_` and `/`; between
/// slashes, and before and after them, something other than `.` and `..`.
pub fn is_key(text: &str) -> bool {
    let is_segment = |segment: &str| !matches!(segment, "" | "." | "..");
    text.len() <= KEY_LEN_MAX && is_key_text(text) && text.split('/').all(is_segment)
}

/// Whether keys may begin with `text`.
pub(crate) fn is_key_prefix(text: &str) -> bool {
    text.len() <= KEY_LEN_MAX && is_key_text(text)
}

fn is_key_text(text: &str) -> bool {
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'/');
    text.bytes().all(is_plain)
}

/// S3 takes 1,024 bytes; the prefix of the bucket may have as many.
const KEY_LEN_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_every_server_takes() {
        for good in [
            "a",
            "pack/0f/0f",
            "log/12D3Koo/7-ab",
            "gc/K/1.2_x",
            &"k".repeat(512),
        ] {
            assert!(is_key(good), "{good:?}");
        }
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            "a/../b",
            ".",
            "a b",
            "ä",
            "a\n",
            "a%",
            &"k".repeat(513),
        ] {
            assert!(!is_key(bad), "{bad:?}");
        }
    }
}
