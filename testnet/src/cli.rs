//! The commands of `attic-node`, as a person would type them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::netns::Place;
use crate::program::{self, Outcome, Running};

/// A user of a node: knows its data directory, and has a home.
#[derive(Debug)]
pub struct Cli {
    data_dir: PathBuf,
    config: PathBuf,
    /// Where to reach the node, when not where it says itself.
    endpoint: Option<String>,
    home: TempDir,
    place: Place,
    env: Vec<(String, String)>,
}

impl Cli {
    /// A user with an empty home, of the node with this data directory and configuration file.
    pub(crate) fn new(data_dir: &Path, config: &Path) -> Cli {
        let home = TempDir::new().expect("make a home");
        let (data_dir, config) = (data_dir.to_owned(), config.to_owned());
        Cli {
            data_dir,
            config,
            endpoint: None,
            home,
            place: Place::machine(),
            env: Vec::new(),
        }
    }

    /// The same user, at `place` and with more in the environment.
    pub(crate) fn on_host(self, place: Place, env: &[(&str, &str)]) -> Cli {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Cli {
            place,
            env: env.iter().map(own).collect(),
            ..self
        }
    }

    /// The same user, who reaches the node only at `endpoint`.
    pub(crate) fn at(self, endpoint: String) -> Cli {
        Cli {
            endpoint: Some(endpoint),
            ..self
        }
    }

    /// The user's home directory.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The user's configuration directory (`XDG_CONFIG_HOME`).
    pub fn user_config(&self) -> PathBuf {
        self.home.path().join(".config")
    }

    /// `attic-node args…`, ready to run.
    pub fn command(&self, args: &[&str]) -> Command {
        let home = self.home.path();
        let mut command = self.place.command(program::attic_node());
        command
            .args(args)
            .env("ATTIC_NODE_CONFIG", &self.config)
            .env("ATTIC_NODE_DATA_DIR", &self.data_dir)
            .env("HOME", home)
            .env("XDG_CONFIG_HOME", self.user_config())
            .env("XDG_DATA_HOME", home.join(".local/share"))
            .env("XDG_CACHE_HOME", home.join(".cache"))
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("RUST_LOG")
            .env_remove("NO_COLOR")
            .env_remove("ATTIC_NODE_ENDPOINT")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(endpoint) = &self.endpoint {
            command.env("ATTIC_NODE_ENDPOINT", endpoint);
        }
        command
    }

    /// Runs `attic-node args…` to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Outcome {
        program::run(&mut self.command(args))
    }

    /// Starts `attic-node args…`.
    #[track_caller]
    pub fn start(&self, args: &[&str]) -> Running {
        program::start(&mut self.command(args))
    }

    /// Runs `attic-node args… --json` and reads its answer.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let outcome = self.run(&args).succeeds();
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}\n{outcome}"))
    }

    /// Runs `attic-node push main paths…`.
    #[track_caller]
    pub fn push<P: AsRef<str>>(&self, paths: &[P]) -> Outcome {
        program::run(&mut self.push_command(paths))
    }

    /// `attic-node push main paths…`, ready to run.
    pub fn push_command<P: AsRef<str>>(&self, paths: &[P]) -> Command {
        let mut command = self.command(&["push", "main"]);
        command.args(paths.iter().map(AsRef::as_ref));
        command
    }
}
