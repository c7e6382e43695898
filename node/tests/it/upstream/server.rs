//! A binary cache in this process that behaves as badly as a test wants.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attic_store::narinfo::Compression;
use attic_store::{NarInfo, SecretKey, StoreDir};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::harness::Sample;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// It is answered.
    Serve,
    Status(u16),
    /// There is no answer.
    Hang,
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// After so many bytes, the others come a few at a time until [`Server::open`].
    DripAfter(usize),
    /// The file is sent whole whatever range is asked for.
    IgnoreRange,
    /// The same file is said to be elsewhere: under its name with a query.
    Redirect,
}

/// A running upstream, ended when dropped.
pub(crate) struct Server {
    address: SocketAddr,
    key: SecretKey,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// What becomes of requests whose target contains a text, in the order of the requests; the last
    /// one stays.
    conduct: Mutex<HashMap<&'static str, Vec<Conduct>>>,
    log: Mutex<Vec<Asked>>,
    open: watch::Sender<bool>,
}

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) target: String,
    pub(crate) range: Option<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// An empty cache that signs with a key of this name.
    pub(crate) async fn start(key: &str) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Server {
            address,
            key: SecretKey::generate(key, *blake3::hash(key.as_bytes()).as_bytes()).unwrap(),
            shared,
            task,
        }
    }

    /// Its table in a configuration file.
    pub(crate) fn config(&self, more: &str) -> String {
        let (address, key) = (self.address, self.key.public());
        format!(
            "[[upstream]]\nurl = \"http://{address}/c\"\npublic-keys = [\"{key}\"]\n\
             timeout = \"4s\"\n{more}\n"
        )
    }

    /// Its URL, as the node writes it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/c/", self.address)
    }

    /// Holds a path from now on, compressed like this.
    pub(crate) fn add(&self, sample: &Sample, compression: Compression) {
        self.add_as(sample, &sample.nar, compression);
    }

    /// Says that it holds a path, and holds another NAR in its place.
    pub(crate) fn add_as(&self, sample: &Sample, nar: &[u8], compression: Compression) {
        let file = compress(nar, compression);
        let narinfo = self.narinfo(sample, &file, compression);
        self.put(&narinfo.url, file);
        let text = narinfo.print(&StoreDir::default());
        self.put(&sample.narinfo_name(), text.into_bytes());
    }

    /// What it says of a path.
    pub(crate) fn narinfo(
        &self,
        sample: &Sample,
        file: &[u8],
        compression: Compression,
    ) -> NarInfo {
        let mut narinfo = sample.narinfo_for(file, "", compression);
        narinfo.url = format!("nar/{}.file", sample.hash());
        let fingerprint = narinfo.info.fingerprint(&StoreDir::default());
        narinfo
            .info
            .add_signature(self.key.sign(fingerprint.as_ref()));
        narinfo
    }

    /// Holds a file.
    pub(crate) fn put(&self, name: &str, contents: Vec<u8>) {
        let mut files = self.shared.files.lock().unwrap();
        files.insert(format!("/c/{name}"), contents);
    }

    /// From now on requests whose target contains `text` meet this, one after the other.
    pub(crate) fn conduct(&self, text: &'static str, conduct: &[Conduct]) {
        let mut all = self.shared.conduct.lock().unwrap();
        all.insert(text, conduct.iter().rev().copied().collect());
    }

    /// Lets everything that drips flow.
    pub(crate) fn open(&self) {
        self.shared.open.send_replace(true);
    }

    /// The requests so far whose target contains a text.
    pub(crate) fn asked(&self, text: &str) -> Vec<Asked> {
        let log = self.shared.log.lock().unwrap();
        let of = log.iter().filter(|asked| asked.target.contains(text));
        of.cloned().collect()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let shared = Arc::clone(&shared);
        // An error is a client that has gone.
        tokio::spawn(async move { drop(answer(stream, &shared).await) });
    }
}

async fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap().to_owned();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_owned())
    };
    let range = header("range");
    shared.log.lock().unwrap().push(Asked {
        target: target.clone(),
        range: range.clone(),
    });
    let conduct = shared.next_conduct(&target);
    let name = target.split('?').next().unwrap();
    let file = shared.files.lock().unwrap().get(name).cloned();
    let (status, whole) = match (conduct, file) {
        (Conduct::Redirect, _) => (302, Vec::new()),
        (Conduct::Hang, _) => std::future::pending().await,
        (Conduct::Status(status), _) => (status, Vec::new()),
        (_, Some(file)) => (200, file),
        (_, None) => (404, Vec::new()),
    };
    let etag = format!("\"{}\"", blake3::hash(&whole).to_hex());
    let begin = range
        .filter(|_| conduct != Conduct::IgnoreRange)
        .filter(|_| header("if-range").is_none_or(|tag| tag == etag))
        .map(|range| range["bytes=".len()..range.len() - 1].parse().unwrap());
    let (status, extra) = match begin {
        Some(begin) => {
            let (last, len): (usize, usize) = (whole.len() - 1, whole.len());
            let begin: usize = begin;
            (
                206,
                format!("Content-Range: bytes {begin}-{last}/{len}\r\n"),
            )
        }
        None if conduct == Conduct::Redirect => (status, format!("Location: {target}?moved\r\n")),
        None => (status, String::new()),
    };
    let body = &whole[begin.unwrap_or(0)..];
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {len}\r\nETag: {etag}\r\nConnection: close\r\n{extra}\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    match conduct {
        Conduct::CutAfter(bytes) => stream.write_all(&body[..bytes.min(len)]).await?,
        Conduct::DripAfter(bytes) => drip(&mut stream, body, bytes, &shared.open).await?,
        _ => stream.write_all(body).await?,
    }
    stream.shutdown().await
}

async fn drip(
    stream: &mut TcpStream,
    body: &[u8],
    at: usize,
    open: &watch::Sender<bool>,
) -> std::io::Result<()> {
    stream.write_all(&body[..at]).await?;
    let mut rest = body[at..].chunks(1);
    while !*open.borrow() {
        let Some(drop) = rest.next() else {
            // It never ends before it is opened.
            let _ = open.subscribe().wait_for(|open| *open).await;
            break;
        };
        stream.write_all(drop).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let left: Vec<u8> = rest.flatten().copied().collect();
    stream.write_all(&left).await
}

impl Shared {
    fn next_conduct(&self, target: &str) -> Conduct {
        let mut all = self.conduct.lock().unwrap();
        let found = all.iter_mut().find(|(text, _)| target.contains(**text));
        let Some((_, left)) = found else {
            return Conduct::Serve;
        };
        match left.len() {
            0 | 1 => left.last().copied().unwrap_or(Conduct::Serve),
            _ => left.pop().unwrap(),
        }
    }
}

pub(crate) fn compress(plain: &[u8], compression: Compression) -> Vec<u8> {
    let mut out = Vec::new();
    match compression {
        Compression::None => out.extend_from_slice(plain),
        Compression::Zstd => out = zstd::encode_all(plain, 1).unwrap(),
        Compression::Xz => {
            let mut encoder = liblzma::read::XzEncoder::new(plain, 1);
            encoder.read_to_end(&mut out).unwrap();
        }
        Compression::Bzip2 => {
            let mut encoder = bzip2::read::BzEncoder::new(plain, bzip2::Compression::fast());
            encoder.read_to_end(&mut out).unwrap();
        }
        Compression::Gzip => {
            let mut encoder = flate2::read::GzEncoder::new(plain, flate2::Compression::fast());
            encoder.read_to_end(&mut out).unwrap();
        }
        Compression::Br => {
            let mut encoder = brotli::CompressorReader::new(plain, 4096, 1, 20);
            encoder.read_to_end(&mut out).unwrap();
        }
    }
    out
}
