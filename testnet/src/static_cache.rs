//! A binary cache as `nix copy --to file://` writes it, served over HTTP.
//!
//! It does what any web server does with files, and nothing else: what goes wrong on the way is for
//! the [`FaultProxy`](crate::proxy::FaultProxy) before it, and what is wrong in the files for whoever
//! writes them.

use std::fs;
use std::io::{BufRead, BufReader, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use tempfile::TempDir;

use crate::nix::{KeyPair, NixClient};
use crate::served::hash_part;

/// A cache in a directory of its own. Its server ends with the process.
#[derive(Debug)]
pub struct StaticCache {
    dir: TempDir,
    /// What its paths are signed with.
    pub key: KeyPair,
    address: SocketAddr,
}

impl StaticCache {
    /// An empty cache that signs with a key of this name.
    #[track_caller]
    pub fn serve(key: &str) -> StaticCache {
        let dir = TempDir::new().expect("make a directory");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let root = dir.path().to_owned();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let root = root.clone();
                // An error is a client that has gone.
                thread::spawn(move || drop(answer(stream, &root)));
            }
        });
        StaticCache {
            dir,
            key: KeyPair::generate(key),
            address,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes paths of the machine's store into it, with all that they refer to, compressed like
    /// this.
    #[track_caller]
    pub fn add(&self, paths: &[&str], compression: &str) {
        let (dir, key) = (self.dir.path().display(), self.key.secret_file());
        let url = format!("file://{dir}?compression={compression}&secret-key={key}");
        let args = [&["copy", "--to", url.as_str()][..], paths].concat();
        NixClient::host().run("nix", &args).succeeds();
    }

    /// The file of the NAR of a path that it holds.
    #[track_caller]
    pub fn nar_file(&self, path: &str) -> PathBuf {
        let narinfo = self.dir.path().join(format!("{}.narinfo", hash_part(path)));
        let text = fs::read_to_string(narinfo).expect("read a narinfo");
        let mut lines = text.lines();
        let url = lines.find_map(|line| line.strip_prefix("URL: "));
        self.dir.path().join(url.expect("a narinfo has a URL"))
    }
}

fn answer(stream: TcpStream, root: &Path) -> Result<()> {
    let mut head = Vec::new();
    let mut lines = BufReader::new(&stream).lines();
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        head.push(line);
    }
    let target = head.first().and_then(|line| line.split(' ').nth(1));
    let name = target.unwrap_or("/").trim_start_matches('/');
    let file = match name.contains("..") {
        false => fs::read(root.join(name)).ok(),
        true => None,
    };
    let range = head.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let begin = value.strip_prefix("bytes=")?.strip_suffix('-')?;
        name.eq_ignore_ascii_case("range")
            .then(|| begin.parse().ok())?
    });
    let (status, extra, body) = match (file, range) {
        (None, _) => ("404 Not Found", String::new(), Vec::new()),
        (Some(file), Some(begin)) if begin < file.len() => {
            let (last, len) = (file.len() - 1, file.len());
            let extra = format!("Content-Range: bytes {begin}-{last}/{len}\r\n");
            ("206 Partial Content", extra, file[begin..].to_vec())
        }
        (Some(file), _) => ("200 OK", String::new(), file),
    };
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nAccept-Ranges: bytes\r\n\
         Connection: close\r\n{extra}\r\n"
    );
    (&stream).write_all(head.as_bytes())?;
    (&stream).write_all(&body)
}
