//! The node's key pair and the file it lives in.
//!
//! **Shape** of the file: one line of base64, the private key in libp2p's protobuf encoding (what
//! other libp2p programs call `PrivKey`). **Source**: libp2p specification, `peer-ids`.

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;

use data_encoding::BASE64;
use libp2p_identity::{DecodingError, KeyType, Keypair, PeerId};
use thiserror::Error;

use crate::ids::NodeId;
use crate::signed::Signer;

/// A node's key pair. `Debug` shows the public name only.
#[derive(Clone)]
pub struct Identity {
    keypair: Keypair,
}

impl Identity {
    /// Reads the identity in `file`, or makes one there when the file does not exist.
    ///
    /// A new identity is durable before this returns, and an existing file is never replaced: of
    /// two processes that start at once, one creates and both read the same key.
    ///
    /// **Errors**: as [`Identity::load`], and [`IdentityError::Io`] when it cannot be written.
    pub fn load_or_create(file: &Path) -> Result<Identity, IdentityError> {
        match Identity::load(file) {
            Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                create(file).map_err(|source| IdentityError::io("create", file, source))?;
                Identity::load(file)
            }
            loaded => loaded,
        }
    }

    /// A new identity, which is in no file yet.
    pub fn generate() -> Identity {
        Identity {
            keypair: Keypair::generate_ed25519(),
        }
    }

    /// Puts this identity into `file` in the place of the one there, durably.
    ///
    /// **Errors**: [`IdentityError::Io`]; the file is as before, unless only its name was not synced.
    pub fn replace(&self, file: &Path) -> Result<(), IdentityError> {
        let draft = draft_path(file);
        let replaced = encode(&self.keypair)
            .and_then(|text| write_new(&draft, &text))
            .and_then(|()| fs::rename(&draft, file))
            .and_then(|()| sync_dir_of(file));
        replaced.map_err(|source| IdentityError::io("replace", file, source))
    }

    /// Reads the identity in `file`.
    ///
    /// **Errors**: [`IdentityError::Mode`] when other users may open the file,
    /// [`IdentityError::Key`] when it holds anything but one ed25519 key, [`IdentityError::Io`]
    /// when it cannot be read. The file is never changed.
    pub fn load(file: &Path) -> Result<Identity, IdentityError> {
        let text = read_private(file)?;
        let keypair = decode(&text).map_err(|reason| IdentityError::Key {
            file: file.to_owned(),
            reason,
        })?;
        Ok(Identity { keypair })
    }

    /// The node's public name.
    pub fn peer_id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    /// The key pair, for the transport that proves this identity to peers.
    pub fn keypair(&self) -> &Keypair {
        &self.keypair
    }

    /// The identity with this key pair; `None` unless it is an ed25519 one.
    pub fn from_keypair(keypair: Keypair) -> Option<Identity> {
        (keypair.key_type() == KeyType::Ed25519).then_some(Identity { keypair })
    }

    /// The identity that follows from `seed`, for tests and simulations.
    pub fn from_seed(seed: [u8; 32]) -> Identity {
        let keypair = Keypair::ed25519_from_bytes(seed).expect("every 32 bytes are a seed");
        Identity { keypair }
    }

    /// The node's id in records.
    pub fn node_id(&self) -> NodeId {
        NodeId::from_peer_id(&self.peer_id()).expect("the key is an ed25519 one")
    }

    /// A secret of 32 bytes that follows from the key and `context`, for keys of other kinds.
    ///
    /// Whoever learns it learns nothing of the key. `context` is a constant of the program.
    pub fn derive_secret(&self, context: &str) -> [u8; 32] {
        let pair = self.keypair.clone().try_into_ed25519();
        let secret = pair.expect("the key is an ed25519 one").secret();
        blake3::derive_key(context, secret.as_ref())
    }
}

impl Signer for Identity {
    fn public(&self) -> NodeId {
        self.node_id()
    }

    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        let signature = self.keypair.sign(bytes).expect("ed25519 signs everything");
        signature
            .try_into()
            .expect("ed25519 signatures are 64 bytes")
    }
}

impl Debug for Identity {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_tuple("Identity").field(&self.peer_id()).finish()
    }
}

/// Why there is no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The file cannot be opened, read or written.
    #[error("{action} identity {}", file.display())]
    Io {
        /// `read`, `create` or `replace`.
        action: &'static str,
        /// The identity file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Other users may read or write the file: the key must be taken as known to them.
    #[error("identity {} has mode {mode:04o}, wanted 0600", file.display())]
    Mode {
        /// The identity file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold an ed25519 key.
    #[error("identity {} holds no usable key: {reason}", file.display())]
    Key {
        /// The identity file.
        file: PathBuf,
        /// What is wrong. Never contains key material.
        reason: &'static str,
    },
}

impl IdentityError {
    fn io(action: &'static str, file: &Path, source: io::Error) -> IdentityError {
        IdentityError::Io {
            action,
            file: file.to_owned(),
            source,
        }
    }
}

/// Reads the small file `file` after checking that it is its owner's alone.
fn read_private(file: &Path) -> Result<String, IdentityError> {
    let io = |source| IdentityError::io("read", file, source);
    let opened = File::open(file).map_err(io)?;
    let mode = opened.metadata().map_err(io)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Mode {
            file: file.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    match opened.take(FILE_LEN_MAX).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(String::new()),
        Err(error) => Err(io(error)),
    }
}

fn decode(text: &str) -> Result<Keypair, &'static str> {
    let bytes = BASE64
        .decode(text.trim_end().as_bytes())
        .map_err(|_| "not one line of base64")?;
    let keypair = Keypair::from_protobuf_encoding(&bytes)
        .map_err(|_: DecodingError| "not a libp2p private key")?;
    match keypair.key_type() {
        KeyType::Ed25519 => Ok(keypair),
        _ => Err("not an ed25519 key"),
    }
}

fn encode(keypair: &Keypair) -> io::Result<String> {
    let bytes = keypair.to_protobuf_encoding().map_err(io::Error::other)?;
    Ok(BASE64.encode(&bytes) + "\n")
}

/// Puts a fresh key at `file`, whole or not at all. A file that exists by then is success.
fn create(file: &Path) -> io::Result<()> {
    let draft = draft_path(file);
    let written =
        write_new(&draft, &encode(&Keypair::generate_ed25519())?).and_then(|()| link(&draft, file));
    let removed = fs::remove_file(&draft);
    written.and(removed)?;
    sync_dir_of(file)
}

fn sync_dir_of(file: &Path) -> io::Result<()> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
}

/// Linking, unlike renaming, fails when the name is taken.
fn link(draft: &Path, file: &Path) -> io::Result<()> {
    match fs::hard_link(draft, file) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    }
}

fn write_new(file: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()
}

/// A name beside `file` that no other live process drafts under.
fn draft_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.tmp", process::id()));
    name.into()
}

/// An ed25519 key takes 93 bytes; a file that is longer holds something else.
const FILE_LEN_MAX: u64 = 4096;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn file_with(text: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.key");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        (dir, file)
    }

    #[test]
    fn a_created_identity_is_private_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.key");
        let first = Identity::load_or_create(&file).unwrap();
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "drafts are removed");
        let again = Identity::load_or_create(&file).unwrap();
        assert_eq!(first.peer_id(), again.peer_id());
        assert!(first.peer_id().to_string().starts_with("12D3KooW"));
    }

    #[test]
    fn an_identity_takes_the_place_of_another() {
        let (dir, file) = file_with(b"x", 0o600);
        for _ in 0..2 {
            let identity = Identity::generate();
            identity.replace(&file).unwrap();
            let read = Identity::load(&file).unwrap();
            assert_eq!(read.peer_id(), identity.peer_id());
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "drafts are removed");
    }

    #[test]
    fn a_missing_identity_is_not_created_by_load() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.key");
        assert!(matches!(
            Identity::load(&file),
            Err(IdentityError::Io { .. })
        ));
        assert!(!file.exists());
    }

    #[test]
    fn a_readable_identity_is_refused_and_kept() {
        let (_dir, file) = file_with(b"x", 0o640);
        let error = Identity::load_or_create(&file).unwrap_err();
        assert!(
            error.to_string().ends_with("has mode 0640, wanted 0600"),
            "{error}"
        );
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }

    #[test]
    fn garbage_is_refused_and_kept() {
        let rsa_like = BASE64.encode(&[8, 0, 18, 1, 0]);
        let rows: [&[u8]; 6] = [
            b"",
            b"\n",
            b"not base64!",
            b"\xff\xfe",
            rsa_like.as_bytes(),
            &[b'A'; 8000],
        ];
        for text in rows {
            let (_dir, file) = file_with(text, 0o600);
            let error = Identity::load_or_create(&file).unwrap_err();
            assert!(
                matches!(error, IdentityError::Key { .. }),
                "{text:?}: {error}"
            );
            assert_eq!(fs::read(&file).unwrap(), text);
        }
    }

    #[test]
    fn a_key_that_wins_the_race_is_the_one_used() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.key");
        let winner = Identity::load_or_create(&file).unwrap();
        create(&file).unwrap();
        assert_eq!(Identity::load(&file).unwrap().peer_id(), winner.peer_id());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| Identity::load(&file).unwrap());
            }
        });
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.key");
        let identity = Identity::load_or_create(&file).unwrap();
        let secret = fs::read_to_string(&file).unwrap();
        assert!(!format!("{identity:?}").contains(secret.trim_end()));
    }
}
