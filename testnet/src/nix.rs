//! Debian's Nix, with nothing of the machine's or the user's configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::netns::Place;
use crate::node::TestNode;
use crate::program::{self, Outcome, Running};

/// A Nix with its own configuration, its own memory of what caches hold, and, unless it is the
/// machine's, its own store.
#[derive(Debug)]
pub struct NixClient {
    dir: TempDir,
    root: Option<PathBuf>,
    settings: Vec<(String, String)>,
    place: Place,
}

impl NixClient {
    /// The Nix of this machine: reads and writes `/nix/store`, has no substituters.
    pub fn host() -> NixClient {
        NixClient::new(temp_dir(), None)
    }

    /// A Nix with an empty store beside `node`, which substitutes from one of its caches and trusts
    /// its key.
    pub fn fresh(node: &TestNode, cache: &str) -> NixClient {
        NixClient::empty()
            .substituter(&node.url(cache))
            .trusting(&node.public_key(cache))
            .on_host_of(node)
    }

    /// The same Nix on the host that `node` runs on.
    pub fn on_host_of(mut self, node: &TestNode) -> NixClient {
        self.place = node.place().clone();
        self
    }

    /// A Nix with an empty store that trusts nobody and asks nobody.
    pub fn empty() -> NixClient {
        let dir = temp_dir();
        let root = dir.path().join("root");
        fs::create_dir(&root).expect("make a store");
        NixClient::new(dir, Some(root))
    }

    fn new(dir: TempDir, root: Option<PathBuf>) -> NixClient {
        let settings = [
            ("build-users-group", ""),
            ("experimental-features", "nix-command flakes"),
            ("filter-syscalls", "false"),
            ("sandbox", "false"),
            ("require-sigs", "true"),
            // Nix switches substituters off on a host that has only loopback addresses.
            ("substitute", "true"),
            ("substituters", ""),
            ("trusted-public-keys", ""),
        ];
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let mut settings: Vec<_> = settings.into_iter().map(own).collect();
        if let Some(root) = &root {
            settings.push(("store".to_owned(), format!("local?root={}", root.display())));
        }
        NixClient {
            dir,
            root,
            settings,
            place: Place::machine(),
        }
    }

    /// With another value of a `nix.conf` setting.
    pub fn set(mut self, name: &str, value: &str) -> NixClient {
        self.settings.retain(|(old, _)| old != name);
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without the setting, so that another configuration file decides.
    pub fn unset(mut self, name: &str) -> NixClient {
        self.settings.retain(|(old, _)| old != name);
        self
    }

    /// With `url` as its only substituter.
    pub fn substituter(self, url: &str) -> NixClient {
        self.set("substituters", url)
    }

    /// With `key` as its only trusted key.
    pub fn trusting(self, key: &str) -> NixClient {
        self.set("trusted-public-keys", key)
    }

    /// With the store of `other`, which both use from now on.
    pub fn sharing_store_of(mut self, other: &NixClient) -> NixClient {
        self.root.clone_from(&other.root);
        let root = other.root.as_ref().expect("a store of its own");
        self.set("store", &format!("local?root={}", root.display()))
    }

    /// With the admin token of `node` in its netrc, so that it may upload.
    pub fn authorised(self, node: &TestNode) -> NixClient {
        let netrc = self.dir.path().join("netrc");
        let entry = format!(
            "machine 127.0.0.1\nlogin admin\npassword {}\n",
            node.token()
        );
        fs::write(&netrc, entry).expect("write netrc");
        fs::set_permissions(&netrc, PermissionsExt::from_mode(0o600)).expect("restrict netrc");
        self.set("netrc-file", &netrc.display().to_string())
    }

    /// Its directory for `nix.conf` of the user (`XDG_CONFIG_HOME`).
    pub fn user_config(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    /// `program` of this Nix, ready to run.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let dir = self.dir.path();
        let line = |(name, value): &(String, String)| format!("{name} = {value}\n");
        let conf: String = self.settings.iter().map(line).collect();
        fs::write(dir.join("nix.conf"), conf).expect("write nix.conf");
        let mut command = self.place.command(program);
        command
            .args(args)
            .env("NIX_CONF_DIR", dir)
            .env("XDG_CACHE_HOME", dir.join("cache"))
            .env("XDG_CONFIG_HOME", self.user_config())
            .env("HOME", dir)
            .env_remove("NIX_REMOTE")
            .env_remove("NIX_PATH")
            .env_remove("NIX_USER_CONF_FILES");
        command
    }

    /// Runs `program` to its end.
    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> Outcome {
        program::run(&mut self.command(program, args))
    }

    /// Starts `program`.
    #[track_caller]
    pub fn start(&self, program: &str, args: &[&str]) -> Running {
        program::start(&mut self.command(program, args))
    }

    /// Where `path` of its store lies in the file system.
    pub fn physical(&self, path: &str) -> PathBuf {
        match &self.root {
            None => PathBuf::from(path),
            Some(root) => root.join(path.trim_start_matches('/')),
        }
    }

    /// Bytes of a file in its store.
    #[track_caller]
    pub fn read(&self, path: &str) -> Vec<u8> {
        let physical = self.physical(path);
        fs::read(&physical).unwrap_or_else(|error| panic!("{}: {error}", physical.display()))
    }

    /// Whether its store has `path`.
    pub fn has(&self, path: &str) -> bool {
        self.run("nix-store", &["--check-validity", path])
            .status
            .success()
    }

    /// Adds files or directories to the store; each keeps its last component as its name.
    #[track_caller]
    pub fn add<P: AsRef<Path>>(&self, paths: &[P]) -> Vec<String> {
        let mut command = self.command("nix-store", &["--add"]);
        command.args(paths.iter().map(AsRef::as_ref));
        program::run(&mut command)
            .succeeds()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Adds one file to the store.
    #[track_caller]
    pub fn add_file(&self, name: &str, contents: &[u8]) -> String {
        self.add_files(&[(name, contents)]).remove(0)
    }

    /// Adds files to the store, as one path each.
    #[track_caller]
    pub fn add_files(&self, files: &[(&str, &[u8])]) -> Vec<String> {
        let dir = temp_dir();
        let write = |(name, contents): &(&str, &[u8])| {
            let path = dir.path().join(name);
            fs::write(&path, contents).expect("write a file to add");
            path
        };
        let paths: Vec<PathBuf> = files.iter().map(write).collect();
        self.add(&paths)
    }

    /// Builds a Nix expression and gives the paths of its outputs. A function `run name script` is
    /// in scope, which makes a derivation that runs a shell script.
    #[track_caller]
    pub fn build(&self, expression: &str) -> Vec<String> {
        let whole = with_run(expression);
        let built = self
            .run("nix-build", &["--no-out-link", "--quiet", "-E", &whole])
            .succeeds();
        built.lines().map(str::to_owned).collect()
    }

    /// The derivation that [`build`](NixClient::build) would build.
    #[track_caller]
    pub fn instantiate(&self, expression: &str) -> String {
        let made = self.run("nix-instantiate", &["--quiet", "-E", &with_run(expression)]);
        made.succeeds().stdout.trim().to_owned()
    }

    /// NAR hashes that its store records for `paths`, in their order.
    #[track_caller]
    pub fn nar_hashes(&self, paths: &[&str]) -> Vec<String> {
        let args: Vec<&str> = ["--query", "--hash"].iter().chain(paths).copied().collect();
        self.run("nix-store", &args)
            .succeeds()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Reads every byte of its store again and compares with the recorded hashes.
    #[track_caller]
    pub fn verify_store(&self) {
        self.run("nix-store", &["--verify", "--check-contents"])
            .succeeds();
    }
}

/// A signing key pair made by Nix: the file of the secret half, and the public half as text.
#[derive(Debug)]
pub struct KeyPair {
    dir: TempDir,
    /// `name:base64`.
    pub public: String,
}

impl KeyPair {
    /// Makes a pair of this name.
    #[track_caller]
    pub fn generate(name: &str) -> KeyPair {
        let dir = temp_dir();
        let (secret, public) = (dir.path().join("secret"), dir.path().join("public"));
        let mut command = Command::new("nix-store");
        command
            .args(["--generate-binary-cache-key", name])
            .arg(secret)
            .arg(&public);
        program::run(&mut command).succeeds();
        let public = fs::read_to_string(public)
            .expect("read the public key")
            .trim()
            .to_owned();
        KeyPair { dir, public }
    }

    /// File of the secret half.
    pub fn secret_file(&self) -> String {
        self.dir.path().join("secret").display().to_string()
    }

    /// The secret half as text.
    pub fn secret(&self) -> String {
        fs::read_to_string(self.secret_file())
            .expect("read the secret key")
            .trim()
            .to_owned()
    }
}

fn with_run(expression: &str) -> String {
    let run = "name: script: derivation { inherit name; system = builtins.currentSystem; \
               builder = \"/bin/sh\"; PATH = \"/usr/bin:/bin\"; args = [ \"-ec\" script ]; }";
    format!("let run = {run}; in {expression}")
}

fn temp_dir() -> TempDir {
    TempDir::new().expect("make a directory")
}
