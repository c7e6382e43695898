//! The plain NAR of a path, from whichever upstream can give it: what an import reads.
//!
//! A node of the cluster that has the NAR of an upstream, or is to fetch it there for others, is as good
//! as an upstream, and asked before.
//!
//! A download that breaks off is resumed where it broke. When that does not help, or what came is
//! not the file that was announced, the NAR is read again from another upstream that has the same
//! one, and what of it has been read before is skipped. So whoever reads sees one stream, or an error
//! when nobody is left. Only the whole is known to be right: the reader hashes it.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attic_p2p::ids::{CacheId, NodeId};
use attic_store::narinfo::Compression;
use attic_store::{FileHash, PathInfo};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::sleep;

use super::client::{FetchError, Resume};
use super::peer::{Delegates, PeerPump};
use super::{Found, Inner};
use crate::decode::{Decoder, Encoding};
use crate::http::error::chain;
use crate::http::ingest::{BodyReader, Piece};

/// Reads a NAR, each byte once. Blocks, and must be used on a thread that may.
pub(super) struct NarSource {
    parts: SourceParts,
    /// Other nodes to ask.
    delegates: Option<Delegates>,
    /// Upstreams that were tried.
    tried: BTreeSet<usize>,
    current: Option<Download>,
    /// What was read from in part before.
    earlier: Vec<Origin>,
    /// Bytes of the NAR that were read.
    read: u64,
    /// Whether a part came from a peer that gave no more: then all of it is read anew, so that it can be
    /// sent on while it comes.
    spoilt: bool,
    /// Why the last download failed.
    fault: Option<String>,
    /// To read from upstreams.
    turn: Option<OwnedSemaphorePermit>,
}

/// What a NAR is read with.
pub(super) struct SourceParts {
    pub(super) inner: Arc<Inner>,
    /// Where it is.
    pub(super) first: Arc<Found>,
    /// Turns true when nobody wants it any more.
    pub(super) stop: watch::Receiver<bool>,
    /// Bytes that came, from wherever.
    pub(super) received: Arc<AtomicU64>,
    /// Set before a byte that a peer gave is read.
    pub(super) guarded: Arc<AtomicBool>,
}

/// Where a file comes from.
#[derive(Clone)]
enum Origin {
    Upstream(Arc<Found>),
    Peer(NodeId, CacheId),
}

/// A file on its way, and what it is read through.
struct Download {
    origin: Origin,
    /// Bytes of the NAR that others gave before.
    begun_at: u64,
    decoder: Decoder<Hashed<BodyReader>>,
    broken: Broken,
    hash: Arc<Mutex<Sha256>>,
}

/// Why a download broke off, if it did.
#[derive(Clone)]
enum Broken {
    Upstream(Arc<Mutex<Option<FetchError>>>),
    Peer(Arc<Mutex<Option<String>>>),
}

impl NarSource {
    /// Of a NAR for which `delegates` are asked first. Without a `turn` to read from upstreams it takes one
    /// when it comes to that.
    pub(super) fn new(
        parts: SourceParts,
        delegates: Option<Delegates>,
        turn: Option<OwnedSemaphorePermit>,
    ) -> NarSource {
        NarSource {
            parts,
            delegates,
            tried: BTreeSet::new(),
            current: None,
            earlier: Vec::new(),
            read: 0,
            spoilt: false,
            fault: None,
            turn,
        }
    }

    /// Begins anew without the peers that were tried, if what was read is from such in part; whether it
    /// does.
    pub(super) fn begin_again(&mut self) -> bool {
        let parts = &self.parts;
        if !parts.guarded.load(Ordering::Relaxed) || *parts.stop.borrow() {
            return false;
        }
        (self.current, self.read, self.spoilt) = (None, 0, false);
        self.tried.clear();
        self.earlier.clear();
        true
    }

    /// Why the last download failed, if one did.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Whether all of it came from another node of the cluster.
    pub(super) fn came_from_peer(&self) -> bool {
        let origin = self.current.as_ref().map(|download| &download.origin);
        self.earlier.is_empty() && matches!(origin, Some(Origin::Peer(..)))
    }

    /// Notes that what was read is not the NAR, though it looked like one.
    ///
    /// Of several that gave a part, those before the last are not believed any more: whether the last
    /// one is at fault shows when the NAR is read from it alone.
    pub(super) fn disown(&mut self) {
        let last = self.current.take().map(|download| download.origin);
        let guilty = match self.earlier.is_empty() {
            true => last.into_iter().collect(),
            false => std::mem::take(&mut self.earlier),
        };
        let fault = "the NAR has another hash than its narinfo says";
        for origin in guilty {
            match origin {
                Origin::Upstream(found) => self.parts.inner.spoilt(&found, fault),
                // It may have got it from two upstreams, one of which is at fault.
                Origin::Peer(node, cache) => self.parts.inner.avoid(node, cache),
            }
        }
        self.fault = Some(fault.to_owned());
    }

    /// Looks at the hash of the file itself, once the NAR is known to be right: then the file did its
    /// service, and another hash is a sign of disorder at the upstream.
    pub(super) fn check_file(&self) {
        let Some(download) = &self.current else {
            return;
        };
        let Origin::Upstream(found) = &download.origin else {
            return;
        };
        let hash = download.hash.lock().expect("no panic under this lock");
        let hash = FileHash::from_bytes(hash.clone().finalize().into());
        if found.file_hash.is_some_and(|said| said != hash) {
            let fault = "a file has another hash than its narinfo says, and the right NAR";
            self.parts.inner.upstreams[found.upstream].odd(fault);
        }
    }

    /// Gives up the download under way, if there is one, because of what was read from it.
    fn give_up(&mut self, error: &io::Error) {
        let Some(download) = self.current.take() else {
            return;
        };
        if self.read > download.begun_at {
            self.spoilt |= matches!(download.origin, Origin::Peer(..));
            self.earlier.push(download.origin.clone());
        }
        let why = match &download.broken {
            Broken::Peer(broken) => broken.lock().expect("no panic under this lock").take(),
            Broken::Upstream(broken) => {
                let broken = broken.lock().expect("no panic under this lock");
                broken.as_ref().map(|broken| {
                    if let Origin::Upstream(found) = &download.origin
                        && broken.is_absence()
                    {
                        self.parts.inner.disbelieve(found);
                    }
                    chain(broken)
                })
            }
        };
        self.fault = Some(match why {
            Some(why) => why,
            None if *self.parts.stop.borrow() => "not wanted any more".to_owned(),
            None => {
                let fault = format!("a NAR cannot be decompressed: {error}");
                match &download.origin {
                    Origin::Upstream(found) => self.parts.inner.spoilt(found, &fault),
                    Origin::Peer(node, cache) => self.parts.inner.avoid(*node, *cache),
                }
                fault
            }
        });
    }

    /// Goes on with the next node or upstream.
    ///
    /// **Errors**: there is none.
    fn go_on(&mut self) -> io::Result<()> {
        loop {
            if self.spoilt {
                let fault = self.fault.clone().unwrap_or_default();
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, fault));
            }
            let handle = Handle::current();
            let origin = match self.next_peer() {
                Some(peer) => peer,
                None => {
                    let Some(found) = handle.block_on(self.next_found()) else {
                        let fault = self.fault.clone().unwrap_or_default();
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, fault));
                    };
                    self.tried.insert(found.upstream);
                    if self.turn.is_none() {
                        self.turn = handle.block_on(self.take_turn());
                    }
                    Origin::Upstream(found)
                }
            };
            let mut download = self.begin(origin)?;
            let skipped = io::copy(
                &mut (&mut download.decoder).take(self.read),
                &mut io::sink(),
            );
            self.current = Some(download);
            match skipped {
                Ok(skipped) if skipped == self.read => return Ok(()),
                Ok(_) => self.give_up(&io::ErrorKind::UnexpectedEof.into()),
                Err(error) => self.give_up(&error),
            }
        }
    }

    /// Waits until it may read from upstreams; `None` if nobody wants it any more.
    async fn take_turn(&self) -> Option<OwnedSemaphorePermit> {
        let mut stop = self.parts.stop.clone();
        let downloads = Arc::clone(&self.parts.inner.downloads);
        tokio::select! {
            turn = downloads.acquire_owned() => turn.ok(),
            _ = stop.wait_for(|stop| *stop) => None,
        }
    }

    /// Which node is asked next; `None` if none is, or a part is here: nodes give NARs from their beginning.
    fn next_peer(&mut self) -> Option<Origin> {
        if self.read > 0 || *self.parts.stop.borrow() {
            return None;
        }
        let delegates = self.delegates.as_mut()?;
        let node = delegates.next()?;
        Some(Origin::Peer(node, delegates.cache()))
    }

    /// Where the NAR is tried next; `None` if there is nowhere left.
    async fn next_found(&mut self) -> Option<Arc<Found>> {
        if *self.parts.stop.borrow() {
            return None;
        }
        if self.tried.is_empty() {
            let is_sound = self.parts.inner.is_sound(&self.parts.first, Instant::now());
            if is_sound && self.parts.inner.upstreams[self.parts.first.upstream].admits_download() {
                return Some(Arc::clone(&self.parts.first));
            }
            self.tried.insert(self.parts.first.upstream);
        }
        let mut stop = self.parts.stop.clone();
        let wanted = (
            self.parts.first.info.nar_hash,
            self.parts.first.info.nar_size,
        );
        let is_it = |info: &PathInfo| (info.nar_hash, info.nar_size) == wanted;
        tokio::select! {
            found = self.parts.inner.another(&self.parts.first, &self.tried, is_it) => found,
            _ = stop.wait_for(|stop| *stop) => None,
        }
    }

    fn begin(&self, origin: Origin) -> io::Result<Download> {
        let (pieces, body) = BodyReader::channel();
        let hash = Arc::new(Mutex::new(Sha256::new()));
        let inner = Arc::clone(&self.parts.inner);
        let (stop, received) = (self.parts.stop.clone(), Arc::clone(&self.parts.received));
        let (broken, encoding) = match &origin {
            Origin::Upstream(found) => {
                let broken = Arc::default();
                let pump = Pump {
                    inner,
                    found: Arc::clone(found),
                    pieces,
                    stop,
                    received,
                    broken: Arc::clone(&broken),
                };
                tokio::spawn(pump.run());
                (Broken::Upstream(broken), encoding(found.compression))
            }
            Origin::Peer(node, cache) => {
                let broken = Arc::default();
                let pump = PeerPump {
                    inner,
                    node: *node,
                    cache: *cache,
                    found: Arc::clone(&self.parts.first),
                    pieces,
                    stop,
                    received,
                    broken: Arc::clone(&broken),
                };
                tokio::spawn(pump.run());
                (Broken::Peer(broken), Encoding::Zstd)
            }
        };
        let file = Hashed {
            input: body,
            hash: Arc::clone(&hash),
        };
        Ok(Download {
            decoder: Decoder::new(encoding, file)?,
            begun_at: self.read,
            origin,
            broken,
            hash,
        })
    }
}

impl Read for NarSource {
    /// **Errors**: no upstream is left; the NAR is longer than was announced.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(download) = &mut self.current else {
                self.go_on()?;
                continue;
            };
            match download.decoder.read(buffer) {
                Ok(0) if self.read < self.parts.first.info.nar_size => {
                    let short = io::Error::new(io::ErrorKind::UnexpectedEof, "it is too short");
                    self.give_up(&short);
                }
                Ok(len) => {
                    if matches!(download.origin, Origin::Peer(..)) {
                        self.parts.guarded.store(true, Ordering::Release);
                    }
                    self.read += len as u64;
                    return match self.read <= self.parts.first.info.nar_size {
                        true => Ok(len),
                        false => {
                            let long = io::Error::new(io::ErrorKind::InvalidData, "it is too long");
                            self.give_up(&long);
                            Err(long)
                        }
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.give_up(&error),
            }
        }
    }
}

/// Brings a file from an upstream to its reader.
struct Pump {
    inner: Arc<Inner>,
    found: Arc<Found>,
    pieces: Sender<Piece>,
    stop: watch::Receiver<bool>,
    received: Arc<AtomicU64>,
    broken: Arc<Mutex<Option<FetchError>>>,
}

impl Pump {
    /// Until the file is there, its reader has gone, or nobody wants it any more.
    async fn run(mut self) {
        let mut stop = self.stop.clone();
        let outcome = tokio::select! {
            outcome = self.all() => outcome,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let upstream = &self.inner.upstreams[self.found.upstream];
        match outcome {
            Ok(()) => upstream.recovered(),
            Err(error) => {
                upstream.failed(&error);
                // Before the channel ends: the reader looks for it then.
                *self.broken.lock().expect("no panic under this lock") = Some(error);
            }
        }
    }

    /// The whole file, in as many requests as it takes.
    ///
    /// Whoever has not sent a byte is not asked twice: others may have it, and somebody waits.
    async fn all(&mut self) -> Result<(), FetchError> {
        let (mut resume, mut failures) = (Resume::default(), 0);
        loop {
            let before = resume.at;
            let error = match self.rest(&mut resume).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if resume.at - before >= PROGRESS_MIN {
                failures = 0;
            }
            if resume.at == 0 || failures == RETRIES_MAX || !error.is_passing() {
                return Err(error);
            }
            let upstream = &self.inner.upstreams[self.found.upstream];
            upstream.odd(&format!("a download is resumed: {}", chain(&error)));
            sleep(RETRY_AFTER * failures).await;
            failures += 1;
        }
    }

    /// What follows [`Resume::at`]. Ends well when the reader has gone.
    async fn rest(&self, resume: &mut Resume) -> Result<(), FetchError> {
        let upstream = &self.inner.upstreams[self.found.upstream];
        let client = &upstream.client;
        let opened = client.open(&self.found.url, resume).await?;
        let mut skip = resume.at - opened.at;
        (resume.etag, resume.len) = (opened.etag, opened.len);
        // A compressed NAR is hardly longer than a plain one.
        let len_max = self.found.info.nar_size.saturating_mul(2) + LEN_SLACK;
        let mut body = opened.body;
        while let Some(mut piece) = client.next_piece(&mut body).await? {
            self.received
                .fetch_add(piece.len() as u64, Ordering::Relaxed);
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            let piece = piece.split_off(skipped as usize);
            upstream.metrics.bytes.inc_by(piece.len() as u64);
            resume.at += piece.len() as u64;
            if resume.at > len_max {
                return Err(FetchError::TooLong(len_max));
            }
            if !piece.is_empty() && self.pieces.send(Piece::Data(piece)).await.is_err() {
                return Ok(());
            }
        }
        let _ = self.pieces.send(Piece::End).await;
        Ok(())
    }
}

/// A reader that hashes what is read through it.
struct Hashed<R> {
    input: R,
    hash: Arc<Mutex<Sha256>>,
}

impl<R: BufRead> BufRead for Hashed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let Ok(buffer) = self.input.fill_buf() {
            let taken = &buffer[..amount];
            let mut hash = self.hash.lock().expect("no panic under this lock");
            hash.update(taken);
        }
        self.input.consume(amount);
    }
}

impl<R: BufRead> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let len = available.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

fn encoding(compression: Compression) -> Encoding {
    match compression {
        Compression::None => Encoding::Identity,
        Compression::Zstd => Encoding::Zstd,
        Compression::Xz => Encoding::Xz,
        Compression::Bzip2 => Encoding::Bzip2,
        Compression::Gzip => Encoding::Gzip,
        Compression::Br => Encoding::Br,
    }
}

/// Requests in a row for the rest of a file that bring less than [`PROGRESS_MIN`] of it.
const RETRIES_MAX: u32 = 3;
const PROGRESS_MIN: u64 = 256 << 10;
/// After the first of them; then twice as long, and so on.
const RETRY_AFTER: Duration = Duration::from_millis(250);
const LEN_SLACK: u64 = 1 << 20;
