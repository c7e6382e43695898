//! A node in a temporary directory, a small HTTP client, and store paths to play with.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use attic_node_core::config::{Config, Sources};
use attic_node_core::node::Node;
use attic_store::nar::NarWriter;
use attic_store::narinfo::{Compression, PathInfo};
use attic_store::{FileHash, NarHash, NarInfo, StoreDir, StorePath, StorePathHash};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A running node with its directory.
pub(crate) struct TestNode {
    pub(crate) node: Option<Node>,
    dir: TempDir,
    flags: Vec<(&'static str, String)>,
    address: SocketAddr,
    token: String,
}

impl TestNode {
    /// A fresh node with default settings.
    pub(crate) async fn start() -> TestNode {
        TestNode::with(&[]).await
    }

    /// A fresh node with some settings.
    pub(crate) async fn with(flags: &[(&'static str, &str)]) -> TestNode {
        TestNode::with_file("", flags).await
    }

    /// A fresh node with this configuration file, and some settings beside it.
    pub(crate) async fn with_file(file: &str, flags: &[(&'static str, &str)]) -> TestNode {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), file).unwrap();
        let mut all: Vec<_> = flags
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned()))
            .collect();
        all.push(("http.listen", "127.0.0.1:0".to_owned()));
        all.push(("data-dir", dir.path().join("data").display().to_string()));
        let mut test = TestNode {
            node: None,
            dir,
            flags: all,
            address: ([0; 4], 0).into(),
            token: String::new(),
        };
        test.boot().await;
        test
    }

    pub(crate) fn config(&self) -> Config {
        let sources = Sources {
            file: Some(self.dir.path().join("config.toml")),
            ..Sources::only(self.flags.clone())
        };
        Config::load(&sources).unwrap()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// Stops cleanly.
    pub(crate) async fn stop(&mut self) {
        self.node.take().unwrap().shutdown().await.unwrap();
    }

    /// Starts again in the same directory.
    pub(crate) async fn boot(&mut self) {
        let node = Node::start(self.config()).await.unwrap();
        self.address = node.tcp_address();
        self.node = Some(node);
        let token = std::fs::read_to_string(self.data_dir().join("admin-token")).unwrap();
        self.token = token.trim().to_owned();
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.boot().await;
    }

    /// A request without a token.
    pub(crate) fn request(&self, method: Method, target: &str) -> Call<'_> {
        let head = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, "localhost");
        Call {
            node: self,
            head,
            body: None,
        }
    }

    pub(crate) async fn get(&self, target: &str) -> Reply {
        self.request(Method::GET, target).send().await
    }

    pub(crate) async fn head(&self, target: &str) -> Reply {
        self.request(Method::HEAD, target).send().await
    }

    /// A `PUT` with the token.
    pub(crate) async fn put(&self, target: &str, body: impl Into<Bytes>) -> Reply {
        self.request(Method::PUT, target)
            .admin()
            .body(body)
            .send()
            .await
    }

    /// A request of the admin API.
    pub(crate) fn api(&self, method: Method, route: &str) -> Call<'_> {
        self.request(method, &format!("/_node/v1/{route}")).admin()
    }

    /// Uploads a NAR as it is and its narinfo; the path is visible afterwards.
    pub(crate) async fn publish(&self, cache: &str, sample: &Sample) {
        let put = self
            .put(&format!("/{cache}/{}", sample.url()), sample.nar.clone())
            .await;
        assert_eq!(put.status, 201, "{}", put.text());
        let put = self
            .put(
                &format!("/{cache}/{}", sample.narinfo_name()),
                sample.narinfo(),
            )
            .await;
        assert_eq!(put.status, 201, "{}", put.text());
    }

    /// The parsed narinfo of a path that must be there.
    pub(crate) async fn narinfo(&self, cache: &str, sample: &Sample) -> NarInfo {
        let reply = self
            .get(&format!("/{cache}/{}", sample.narinfo_name()))
            .await;
        assert_eq!(reply.status, 200);
        NarInfo::parse(&reply.body, &StoreDir::default()).unwrap()
    }

    /// Sends bytes as they are and reads until the node closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The node may answer and close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Value of a series of `/metrics`.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}"))
            .parse()
            .unwrap()
    }
}

/// A request being made.
pub(crate) struct Call<'a> {
    node: &'a TestNode,
    head: hyper::http::request::Builder,
    body: Option<Bytes>,
}

impl Call<'_> {
    pub(crate) fn admin(self) -> Self {
        let bearer = self.node.bearer();
        self.header(AUTHORIZATION.as_str(), &bearer)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.head = self.head.header(name, value);
        self
    }

    /// Replaces the `Host` header.
    pub(crate) fn host(mut self, host: &str) -> Self {
        self.head
            .headers_mut()
            .unwrap()
            .insert(HOST, host.parse().unwrap());
        self
    }

    pub(crate) fn body(self, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let call = self.header("content-length", &body.len().to_string());
        Call {
            body: Some(body),
            ..call
        }
    }

    pub(crate) fn json(self, body: &impl Serialize) -> Self {
        self.body(serde_json::to_vec(body).unwrap())
    }

    pub(crate) async fn send(self) -> Reply {
        let stream = TcpStream::connect(self.node.address).await.unwrap();
        send_over(
            stream,
            self.head
                .body(Full::new(self.body.unwrap_or_default()))
                .unwrap(),
        )
        .await
    }

    /// Sends, expects success, and reads the JSON.
    pub(crate) async fn ok<T: DeserializeOwned>(self) -> T {
        let reply = self.send().await;
        assert!(
            reply.status.is_success(),
            "{} {}",
            reply.status,
            reply.text()
        );
        serde_json::from_slice(&reply.body).unwrap()
    }
}

/// One request over a fresh stream.
pub(crate) async fn send_over<S>(stream: S, request: Request<Full<Bytes>>) -> Reply
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.map(|body| body.to_bytes());
    driver.abort();
    let complete = body.is_ok();
    Reply {
        status: head.status,
        headers: head.headers,
        body: body.unwrap_or_default(),
        complete,
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether the body came to its end.
    pub(crate) complete: bool,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A store path with its NAR.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) path: StorePath,
    pub(crate) nar: Vec<u8>,
    pub(crate) references: BTreeSet<StorePath>,
    pub(crate) deriver: Option<StorePath>,
}

impl Sample {
    /// A path called `name` that is one file of `contents`.
    pub(crate) fn file(name: &str, contents: &[u8]) -> Sample {
        Sample {
            path: store_path(name),
            nar: nar(contents),
            references: BTreeSet::new(),
            deriver: None,
        }
    }

    /// A path that is one file of `len` bytes which do not compress.
    pub(crate) fn noise(name: &str, len: usize) -> Sample {
        Sample::file(name, &noise(name, len))
    }

    pub(crate) fn referring_to(mut self, others: &[&Sample]) -> Sample {
        self.references
            .extend(others.iter().map(|other| other.path.clone()));
        self
    }

    pub(crate) fn hash(&self) -> StorePathHash {
        *self.path.hash()
    }

    pub(crate) fn nar_hash(&self) -> NarHash {
        NarHash::of(&self.nar)
    }

    pub(crate) fn narinfo_name(&self) -> String {
        format!("{}.narinfo", self.hash())
    }

    pub(crate) fn info(&self) -> PathInfo {
        PathInfo {
            path: self.path.clone(),
            nar_hash: self.nar_hash(),
            nar_size: self.nar.len() as u64,
            references: self.references.clone(),
            deriver: self.deriver.clone(),
            ca: None,
            signatures: Vec::new(),
        }
    }

    /// Where Nix uploads the plain NAR.
    pub(crate) fn url(&self) -> String {
        upload_url(&self.nar, "")
    }

    /// The narinfo Nix sends after the plain NAR.
    pub(crate) fn narinfo(&self) -> String {
        self.narinfo_for(&self.nar, "", Compression::None)
            .print(&StoreDir::default())
    }

    /// The narinfo Nix sends after `file`.
    pub(crate) fn narinfo_for(
        &self,
        file: &[u8],
        suffix: &str,
        compression: Compression,
    ) -> NarInfo {
        NarInfo {
            info: self.info(),
            url: upload_url(file, suffix),
            compression,
            file_hash: Some(FileHash::of(file)),
            file_size: Some(file.len() as u64),
        }
    }
}

/// Where Nix uploads a file.
pub(crate) fn upload_url(file: &[u8], suffix: &str) -> String {
    format!("nar/{}.nar{suffix}", FileHash::of(file).nix32())
}

/// A store path whose hash part follows from its name.
pub(crate) fn store_path(name: &str) -> StorePath {
    let digest = FileHash::of(name.as_bytes());
    let hash = StorePathHash::from_bytes(*digest.as_bytes().first_chunk().unwrap());
    StorePath::new(hash, name).unwrap()
}

/// The NAR of one file.
pub(crate) fn nar(contents: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = NarWriter::new(|bytes: &[u8]| out.extend_from_slice(bytes));
    writer.regular(false, contents.len() as u64).unwrap();
    writer.contents(contents).unwrap();
    writer.finish().unwrap();
    out
}

/// Bytes that look random and follow from `seed`.
pub(crate) fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(seed.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// All files below a directory.
pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path)
            } else {
                files.push(path)
            }
        }
    }
    files.sort();
    files
}

/// Polls all at once, in one task.
pub(crate) async fn all<F: Future>(calls: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut calls: Vec<_> = calls.map(Box::pin).collect();
    let mut done: Vec<_> = calls.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (call, done) in calls.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(output) = call.as_mut().poll(cx)
            {
                *done = Some(output);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}
