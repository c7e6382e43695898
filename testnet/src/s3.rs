//! Real S3 servers, which a machine may have or not: [`Garage`](crate::garage::Garage) and
//! [`Moto`](crate::moto::Moto), put into cache folders by `testnet/scripts/garage.sh`.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use attic_store::bucket::s3::{Credentials, Policy, S3Bucket, S3Options};

/// How a bucket is reached.
#[derive(Clone, Debug)]
pub struct S3Access {
    /// URL of the server.
    pub endpoint: String,
    /// Region that it wants signatures for.
    pub region: String,
    /// Name of the bucket.
    pub bucket: String,
    /// Id of a key that may do everything in it.
    pub key_id: String,
    /// The key's secret.
    pub secret: String,
}

impl S3Access {
    /// What the node's own client is given for it: no prefix, pages of four.
    pub fn options(&self) -> S3Options {
        S3Options {
            endpoint: Some(self.endpoint.clone()),
            region: Some(self.region.clone()),
            bucket: self.bucket.clone(),
            prefix: String::new(),
            path_style: None,
            credentials: Credentials::new(&self.key_id, &self.secret),
            page_len: Some(4),
            policy: Policy::default(),
        }
    }

    /// The configuration of a node that keeps to itself and is told of the bucket, at an endpoint that
    /// may stand in front of the server. The key lies in files of `dir`.
    #[track_caller]
    pub fn config(&self, endpoint: &str, dir: &Path) -> String {
        let secret = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).expect("write a key");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("make it private");
            path.display().to_string()
        };
        let (id, key) = (
            secret("key-id", &self.key_id),
            secret("secret", &self.secret),
        );
        format!(
            "[mesh]\nlisten = \"127.0.0.1:0\"\nmdns = false\n[s3]\nbucket = \"{}\"\n\
             endpoint = \"{endpoint}\"\nregion = \"{}\"\naccess-key-id-file = \"{id}\"\n\
             secret-access-key-file = \"{key}\"\n",
            self.bucket, self.region
        )
    }

    /// A client of its own, with its own connections.
    #[track_caller]
    pub fn client(&self) -> S3Bucket {
        S3Bucket::new(self.options()).expect("right options")
    }
}

/// The environment variable that, set to `1`, lets tests fail for which an S3 server is missing.
pub const WANTED: &str = "ATTIC_NODE_TEST_S3";

/// The program `path` in the cache folder `folder`. Where it is not there, says that `what` is left
/// out; or panics, when [`WANTED`] says that nothing may be.
#[track_caller]
pub(crate) fn program_in_cache(folder: &str, path: &str, what: &str) -> Option<PathBuf> {
    let cache = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => panic!("neither XDG_CACHE_HOME nor HOME is set"),
    };
    let program = cache.join(folder).join(path);
    if program.is_file() {
        return Some(program);
    }
    let is_wanted = env::var_os(WANTED).is_some_and(|value| value == "1");
    assert!(
        !is_wanted,
        "{what} needs {}\nhint: testnet/scripts/garage.sh puts it there",
        program.display()
    );
    eprintln!(
        "SKIPPED {what}: no {} (testnet/scripts/garage.sh puts it there)",
        program.display()
    );
    None
}
