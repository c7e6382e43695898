//! Where everything lies below the data directory, and how its small files are written.
//!
//! ```text
//! admin-token         text, 0600: what writing takes
//! identity.key        the node's key, 0600
//! lock                held while a process uses the directory
//! address             text: the TCP address of the running node
//! node.sock           unix socket
//! served              empty: a node has served on this directory
//! caches/<name>.toml  settings of a cache
//! keys/<name>.key     its secret signing key in Nix's text form, 0600
//! store/              packs and index
//! cluster/            what makes it a member of a cluster; absent while it is in none
//! left/<cluster id>/  keys that own caches of a cluster that it left, for its return, 0600
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use attic_store::CacheName;
use thiserror::Error;

/// The data directory: names of what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// The directory at `root`. Does not touch disk.
    pub fn new(root: impl Into<PathBuf>) -> DataDir {
        DataDir { root: root.into() }
    }

    /// Makes the directory and its subdirectories where they are missing, for the owner only.
    ///
    /// **Errors**: when one cannot be made. What was made before stays.
    pub fn create(&self) -> Result<(), FileError> {
        for dir in [self.root.clone(), self.caches(), self.keys(), self.store()] {
            make_dir(&dir)?;
        }
        Ok(())
    }

    /// Takes the directory for this process, and removes the address that a killed one left there.
    ///
    /// Blocks for as long as others may look at the lock ([`DataDir::is_in_use`]): 0.1 s at most.
    ///
    /// **Errors**: [`FileError::Locked`] when another process has it.
    pub fn lock(&self) -> Result<Lock, FileError> {
        let path = self.lock_file();
        let open = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        let file = open.map_err(|source| FileError::new("open", &path, source))?;
        for _ in 0..LOOKS_MAX {
            match file.try_lock() {
                Ok(()) => {
                    blank_file(&self.address())?;
                    return Ok(Lock { _file: file });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOOK_TIME_MAX),
                Err(TryLockError::Error(source)) => {
                    return Err(FileError::new("lock", &path, source));
                }
            }
        }
        Err(FileError::Locked(self.root.clone()))
    }

    /// Whether a process has taken the directory. One that is not there is not in use.
    ///
    /// **Errors**: when the lock cannot be looked at.
    pub fn is_in_use(&self) -> Result<bool, FileError> {
        let path = self.lock_file();
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(|source| FileError::new("open", &path, source))?,
        };
        // Shared, so that two who look at once do not take each other for the owner.
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(FileError::new("lock", &path, source)),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// File of the admin token.
    pub fn admin_token(&self) -> PathBuf {
        self.root.join("admin-token")
    }

    /// File of the node's identity.
    pub fn identity(&self) -> PathBuf {
        self.root.join("identity.key")
    }

    /// File that names the running node's TCP address.
    pub fn address(&self) -> PathBuf {
        self.root.join("address")
    }

    /// File that is there once a node has served.
    pub fn served(&self) -> PathBuf {
        self.root.join("served")
    }

    /// The unix socket, unless the configuration names another.
    pub fn socket(&self) -> PathBuf {
        self.root.join("node.sock")
    }

    /// Directory of the packs and the index.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// Directory of the cluster.
    pub fn cluster(&self) -> PathBuf {
        self.root.join("cluster")
    }

    /// Directory of what is kept of clusters that the node left.
    pub fn left(&self) -> PathBuf {
        self.root.join("left")
    }

    /// Directory of the caches' settings.
    pub fn caches(&self) -> PathBuf {
        self.root.join("caches")
    }

    /// Directory of the caches' secret keys.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// Settings of a cache.
    pub fn cache_settings(&self, name: &CacheName) -> PathBuf {
        self.caches().join(format!("{name}.toml"))
    }

    /// Secret key of a cache.
    pub fn cache_key(&self, name: &CacheName) -> PathBuf {
        self.keys().join(format!("{name}.key"))
    }
}

/// Keeps other processes out of a data directory until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// A small file could not be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// The system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A secret that others can read must be taken as known to them.
    #[error("{} has mode {mode:04o}, wanted 0600", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Longer than anything this node writes there.
    #[error("{} is longer than {SMALL_FILE_MAX} bytes", .0.display())]
    Long(PathBuf),
    /// Another process uses the data directory.
    #[error("data directory {} is in use by another process", .0.display())]
    Locked(PathBuf),
}

impl FileError {
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> FileError {
        FileError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether it failed because the file is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Whether a file that is written is a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secrecy {
    /// Mode 0600.
    Secret,
    /// Mode 0644.
    Public,
}

/// Makes a directory and those above it where they are missing, for the owner only.
pub(crate) fn make_dir(dir: &Path) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| FileError::new("create", dir, source))
}

/// Puts `text` at `path`, whole or not at all, replacing what is there; durable on return.
///
/// One process at a time: the draft's name is fixed. The data directory's lock sees to that.
pub(crate) fn replace_file(path: &Path, text: &str, secrecy: Secrecy) -> Result<(), FileError> {
    let write = || {
        let draft = draft_path(path);
        let mode = match secrecy {
            Secrecy::Secret => 0o600,
            Secrecy::Public => 0o644,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&draft)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        sync_parent(path)
    };
    write().map_err(|source| FileError::new("write", path, source))
}

/// Writes `text` over the file at `path`, in place: needs no space, and a crash may leave it torn.
pub(crate) fn overwrite_file(path: &Path, text: &str) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

/// Makes a small text file say nothing, and keeps its room on a disk that may be full. One that is not
/// there is success.
fn blank_file(path: &Path) -> Result<(), FileError> {
    let blank = || {
        let file = OpenOptions::new().write(true).open(path)?;
        let len = file.metadata()?.len().min(SMALL_FILE_MAX);
        file.write_all_at(&vec![b' '; len as usize], 0)
    };
    match blank() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        blanked => blanked.map_err(|source| FileError::new("write", path, source)),
    }
}

/// Removes a file durably. One that is not there is success.
pub(crate) fn remove_file(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path).and_then(|()| sync_parent(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| FileError::new("remove", path, source)),
    }
}

/// Reads a small text file.
pub(crate) fn read_file(path: &Path) -> Result<String, FileError> {
    let file = File::open(path).map_err(|source| FileError::new("open", path, source))?;
    read_small(path, file)
}

/// Reads a small text file that must be its owner's alone.
///
/// **Errors**: [`FileError::Mode`] when others may open it.
pub fn read_secret(path: &Path) -> Result<String, FileError> {
    let io = |source| FileError::new("open", path, source);
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    read_small(path, file)
}

fn read_small(path: &Path, file: File) -> Result<String, FileError> {
    let mut text = String::new();
    let read = file.take(SMALL_FILE_MAX + 1).read_to_string(&mut text);
    match read.map_err(|source| FileError::new("read", path, source))? as u64 {
        len if len > SMALL_FILE_MAX => Err(FileError::Long(path.to_owned())),
        _ => Ok(text),
    }
}

fn draft_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// How often a lock that is held is tried again, in case somebody only looks at it.
const LOOKS_MAX: u32 = 10;
const LOOK_TIME_MAX: Duration = Duration::from_millis(10);
/// Settings hold lists of keys; a thousand of them fit.
const SMALL_FILE_MAX: u64 = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_kept_out_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path().join("new"));
        data.create().unwrap();
        assert_eq!(
            fs::metadata(data.root()).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert!(!data.is_in_use().unwrap());
        let lock = data.lock().unwrap();
        assert!(matches!(data.lock(), Err(FileError::Locked(_))));
        assert!(data.is_in_use().unwrap());
        drop(lock);
        assert!(!data.is_in_use().unwrap());
        data.lock().unwrap();
    }

    /// A killed node leaves its address behind, and whoever listens there now is a stranger.
    #[test]
    fn an_address_does_not_outlive_the_process_that_wrote_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        fs::write(data.address(), "127.0.0.1:1").unwrap();
        let _lock = data.lock().unwrap();
        assert_eq!(read_file(&data.address()).unwrap().trim(), "");
    }

    #[test]
    fn who_looks_at_the_lock_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        data.lock().unwrap();
        let look = File::open(data.lock_file()).unwrap();
        look.lock_shared().unwrap();
        assert!(!data.is_in_use().unwrap());
        let looked = thread::spawn(move || {
            thread::yield_now();
            drop(look);
        });
        data.lock().unwrap();
        looked.join().unwrap();
    }

    #[test]
    fn files_are_replaced_whole_with_the_right_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for (text, secrecy, mode) in [
            ("a", Secrecy::Public, 0o644),
            ("b", Secrecy::Secret, 0o600),
            ("", Secrecy::Secret, 0o600),
        ] {
            replace_file(&path, text, secrecy).unwrap();
            assert_eq!(read_file(&path).unwrap(), text);
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
                mode
            );
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        remove_file(&path).unwrap();
        remove_file(&path).unwrap();
        assert!(read_file(&path).unwrap_err().is_not_found());
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        replace_file(&path, "secret", Secrecy::Public).unwrap();
        assert!(matches!(
            read_secret(&path),
            Err(FileError::Mode { mode: 0o644, .. })
        ));
        replace_file(&path, "secret", Secrecy::Secret).unwrap();
        assert_eq!(read_secret(&path).unwrap(), "secret");
    }

    #[test]
    fn an_endless_file_is_refused() {
        assert!(matches!(
            read_file(Path::new("/dev/zero")),
            Err(FileError::Long(_))
        ));
    }
}
