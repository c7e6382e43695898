//! What every verb needs before it begins: configuration, data directory, a way to the node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use attic_node_core::config::{Config, Sources};
use attic_node_core::data_dir::{DataDir, read_secret};

use crate::args::GlobalArgs;
use crate::client::{Client, Endpoint, Owner, Token, reachable};
use crate::exit::CliError;
use crate::ui::Ui;

/// The surroundings of one invocation.
#[derive(Debug)]
pub struct Context {
    /// Where the program speaks.
    pub ui: Ui,
    sources: Sources,
    endpoint: Option<String>,
}

impl Context {
    /// Takes flags and environment. Reads no file yet, so that verbs which need none cannot fail
    /// for a bad one.
    pub fn new(args: &GlobalArgs, ui: Ui) -> Context {
        let mut flags = Vec::new();
        if let Some(dir) = &args.data_dir {
            flags.push(("data-dir", dir.to_string_lossy().into_owned()));
        }
        let env = std::env::vars_os().collect();
        let sources = Sources {
            file: args.config.clone(),
            env,
            flags,
        };
        Context {
            ui,
            sources,
            endpoint: args.endpoint.clone(),
        }
    }

    /// The same surroundings with one more key set on the command line.
    pub fn with_flag(mut self, key: &'static str, value: String) -> Context {
        self.sources.flags.push((key, value));
        self
    }

    /// Where settings come from.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Whether the node was named by its address and may be on another machine.
    pub fn names_endpoint(&self) -> bool {
        self.endpoint.is_some()
    }

    /// The address by which the node was named, if it was.
    ///
    /// **Errors**: [`CliError::Endpoint`].
    pub fn named_endpoint(&self) -> Result<Option<Endpoint>, CliError> {
        self.endpoint.as_deref().map(parse_endpoint).transpose()
    }

    /// Where the node on the data directory is, or would be if it ran.
    ///
    /// **Errors**: [`CliError::Config`].
    pub fn own_endpoint(&self) -> Result<Endpoint, CliError> {
        let config = self.config()?;
        let owner = Owner::of(DataDir::new(config.data_dir), config.http.listen);
        endpoint_at(owner.address())
    }

    /// The configuration.
    ///
    /// **Errors**: [`CliError::Config`].
    pub fn config(&self) -> Result<Config, CliError> {
        Ok(Config::load(&self.sources)?)
    }

    /// A client of the node, with the admin token in the data directory, if there is one.
    ///
    /// The token goes to the endpoint that was named, whoever listens there; else only to the node
    /// that runs on the data directory.
    ///
    /// **Errors**: [`CliError::Config`], [`CliError::Endpoint`]; [`CliError::DataFile`] and
    /// [`CliError::Token`] when there is a token that cannot be used.
    pub fn client(&self) -> Result<Client, CliError> {
        let named = self.named_endpoint()?;
        let config = self.config()?;
        let data = DataDir::new(config.data_dir);
        let token = read_token(&data.admin_token())?;
        if let Some(endpoint) = named {
            return Ok(Client::new(endpoint, token)?);
        }
        let owner = Owner::of(data, config.http.listen);
        let client = Client::new(endpoint_at(owner.address())?, token)?;
        Ok(client.only_to(owner))
    }
}

/// The endpoint of a server on this machine that is bound to `address`.
pub(crate) fn endpoint_at(address: SocketAddr) -> Result<Endpoint, CliError> {
    parse_endpoint(&format!("http://{}", reachable(address)))
}

/// The user's own `nix.conf`: the one that Nix heeds most.
///
/// **Errors**: [`CliError::Usage`] without a home directory.
pub fn user_nix_conf() -> Result<PathBuf, CliError> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    // With it Nix reads no other file of the user, and the first one counts most.
    let named = std::env::var_os("NIX_USER_CONF_FILES").filter(|files| !files.is_empty());
    if let Some(files) = named {
        let first = std::env::split_paths(&files).find(|file| file.is_absolute());
        return first.ok_or_else(|| {
            CliError::Usage("NIX_USER_CONF_FILES names no absolute path".to_owned())
        });
    }
    absolute("XDG_CONFIG_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".config")))
        .map(|dir| dir.join("nix/nix.conf"))
        .ok_or_else(|| CliError::Usage("neither XDG_CONFIG_HOME nor HOME is set".to_owned()))
}

fn read_token(path: &Path) -> Result<Option<Token>, CliError> {
    let text = match read_secret(path) {
        Err(error) if error.is_not_found() => return Ok(None),
        read => read?,
    };
    let token = text.parse().map_err(|source| CliError::Token {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(token))
}

fn parse_endpoint(text: &str) -> Result<Endpoint, CliError> {
    text.parse().map_err(|source| CliError::Endpoint {
        text: text.to_owned(),
        source,
    })
}
