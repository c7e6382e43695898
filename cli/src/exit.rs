//! How the program ends: exit codes, errors, and the hint that goes with each.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use attic_node_core::S3Error;
use attic_node_core::config::ConfigError;
use attic_node_core::data_dir::FileError;
use attic_node_core::node::{StartError, StopError};
use attic_store::cache_name::CacheName;
use thiserror::Error;

use crate::client::{ClientError, EndpointError, TokenError};
use crate::nix::NixError;
use crate::push::PushError;
use crate::ui::count;

/// What the shell is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done; also when nobody wanted to read the rest of the output.
    Ok = 0,
    /// Something asked for was not done. What it was has been said on stderr; the rest was done.
    Failed = 1,
    /// The command line or the configuration is wrong. Nothing was done.
    Usage = 2,
    /// Interrupted by SIGINT or SIGTERM. Running the same command again goes on from there.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not do all it was asked.
#[derive(Debug, Error)]
pub enum CliError {
    /// Arguments that contradict each other or mean nothing here.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `--endpoint` is not an address.
    #[error("endpoint {text}")]
    Endpoint {
        /// What was given.
        text: String,
        /// What is wrong with it.
        source: EndpointError,
    },
    /// The node cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The local Nix store cannot be asked.
    #[error(transparent)]
    Nix(#[from] NixError),
    /// A push could not begin.
    #[error(transparent)]
    Push(#[from] PushError),
    /// A file cannot be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried: `read`, `write`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the data directory cannot be used.
    #[error(transparent)]
    DataFile(#[from] FileError),
    /// The file that should hold the admin token does not.
    #[error("admin token in {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TokenError,
    },
    /// A node cannot start, or its data directory cannot be used without one.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The node stopped uncleanly.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// Verification found damage; it has been reported already.
    #[error("{nars} damaged NARs, {records} damaged records")]
    Damaged {
        /// NARs that are not served.
        nars: u64,
        /// Records whose bytes are wrong.
        records: u64,
    },
    /// The paths are not in the cache.
    #[error("not in cache {cache}: {}", paths.join(", "))]
    NotInCache {
        /// The cache.
        cache: CacheName,
        /// As they were asked for.
        paths: Vec<String>,
    },
    /// Part of the work was not done; each part has been reported already.
    #[error("{0}")]
    Incomplete(String),
    /// Paths were not pushed; each has been named with its reason.
    #[error("{failed} of {} not pushed", count(*wanted, "path"))]
    NotPushed {
        /// How many.
        failed: u64,
        /// How many were to be pushed.
        wanted: u64,
        /// Whether some of them are not valid in the local store.
        invalid: bool,
    },
    /// A destructive command was not confirmed.
    #[error("not confirmed; nothing was changed")]
    NotConfirmed,
    /// What should be a ticket is none.
    #[error("{0}")]
    Ticket(String),
    /// No peer goes by this name, or several do.
    #[error("{}", which_peer(text, meant))]
    WhichPeer {
        /// As it was asked for.
        text: String,
        /// Ids of those that could be meant.
        meant: Vec<String>,
    },
    /// So little of a peer's id is not taken for it.
    #[error(
        "no peer is called {text}; of an id, at least {ID_PREFIX_LEN_MIN} characters are needed"
    )]
    ShortId {
        /// As it was asked for.
        text: String,
    },
    /// A signal stopped the work.
    #[error("interrupted")]
    Interrupted,
    /// Standard output cannot be written.
    #[error("write to standard output")]
    Output(#[source] io::Error),
}

impl CliError {
    /// The exit code it means.
    pub fn exit(&self) -> Exit {
        match self {
            CliError::Usage(_) | CliError::Config(_) | CliError::Endpoint { .. } => Exit::Usage,
            CliError::Interrupted => Exit::Interrupted,
            CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            CliError::Client(_)
            | CliError::Nix(_)
            | CliError::Push(_)
            | CliError::File { .. }
            | CliError::DataFile(_)
            | CliError::Token { .. }
            | CliError::Start(_)
            | CliError::Stop(_)
            | CliError::Damaged { .. }
            | CliError::NotInCache { .. }
            | CliError::Incomplete(_)
            | CliError::NotPushed { .. }
            | CliError::NotConfirmed
            | CliError::WhichPeer { .. }
            | CliError::ShortId { .. }
            | CliError::Ticket(_)
            | CliError::Output(_) => Exit::Failed,
        }
    }

    /// What to do next, when that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            CliError::Client(error) | CliError::Push(PushError::Client(error)) => {
                client_hint(error)
            }
            CliError::Nix(error) => nix_hint(error),
            CliError::Start(error) => start_hint(error),
            CliError::Damaged { nars: 0, .. } => None,
            CliError::Damaged { .. } => Some("push the paths named above again".to_owned()),
            CliError::Token { .. } => Some(TOKEN_HINT.to_owned()),
            CliError::DataFile(error) => data_file_hint(error),
            CliError::File { source, .. } => file_hint(source),
            CliError::Push(PushError::StoreDir { .. }) => {
                Some("create a cache for it: attic-node cache create NAME --store-dir DIR".into())
            }
            CliError::Push(PushError::Chunker { .. }) => {
                Some("use the same version of attic-node on both sides".into())
            }
            CliError::NotPushed { invalid, .. } => invalid.then(|| BUILD_HINT.to_owned()),
            CliError::NotConfirmed => Some(CONFIRM_HINT.to_owned()),
            CliError::WhichPeer { .. } | CliError::ShortId { .. } => Some(PEERS_HINT.to_owned()),
            CliError::Ticket(_) => Some(COPY_HINT.to_owned()),
            CliError::Interrupted => {
                Some("run the same command again; what was sent is not sent twice".into())
            }
            CliError::Usage(_)
            | CliError::Config(_)
            | CliError::Endpoint { .. }
            | CliError::Stop(_)
            | CliError::NotInCache { .. }
            | CliError::Incomplete(_)
            | CliError::Output(_) => None,
        }
    }
}

fn client_hint(error: &ClientError) -> Option<String> {
    match error {
        ClientError::Unreachable { .. } => Some(START_HINT.to_owned()),
        ClientError::NotRunning(_) => Some(format!(
            "{START_HINT}, or name the data directory of one that runs with --data-dir"
        )),
        ClientError::NotServing(_) => Some(WAIT_HINT.to_owned()),
        ClientError::Moved { .. } => Some(
            "run the same command again; http.listen with a port of its own keeps the node there"
                .to_owned(),
        ),
        ClientError::DataFile(error) => data_file_hint(error),
        ClientError::Refused { status, error, .. } => match (status.as_u16(), &*error.error) {
            (_, "NotIssuer") => Some("only the node that made the cluster can".to_owned()),
            (_, "NotAdmitted" | "TicketExpired" | "TicketUsedUp") => Some(TICKET_HINT.to_owned()),
            (_, "BadTicket") => Some(COPY_HINT.to_owned()),
            (_, "NobodyReached") => Some(REACH_HINT.to_owned()),
            (_, "NoBucket") => Some(BUCKET_HINT.to_owned()),
            (_, "NoCluster") => Some(CLUSTER_HINT.to_owned()),
            (_, "InCluster") => Some(
                "see it with: attic-node cluster info; leave it with: attic-node leave".to_owned(),
            ),
            (_, "HoldsClusterKey") => Some(
                "delete it with the membership: attic-node leave --delete-cluster-key".to_owned(),
            ),
            (_, "NoSuchPeer") => Some(PEERS_HINT.to_owned()),
            (_, "Unauthorized" | "WrongToken") => Some(TOKEN_HINT.to_owned()),
            (_, "NoSuchCache") => Some("see the caches with: attic-node cache list".to_owned()),
            (_, "CapReached") => Some(CAP_HINT.to_owned()),
            (507, _) => Some(SPACE_HINT.to_owned()),
            _ => None,
        },
        ClientError::Unintelligible { .. } => {
            Some("use the same version of attic-node on both sides".to_owned())
        }
        ClientError::Setup(_) | ClientError::Broken { .. } | ClientError::Silent { .. } => None,
    }
}

fn which_peer(text: &str, meant: &[String]) -> String {
    match meant {
        [] => format!("no peer is called {text}"),
        meant => format!("{text} could be {}", meant.join(" or ")),
    }
}

fn start_hint(error: &StartError) -> Option<String> {
    match error {
        StartError::File(error) => data_file_hint(error),
        StartError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            Some("another program listens there; choose another port with --listen".to_owned())
        }
        StartError::S3(S3Error::File(error)) => data_file_hint(error),
        StartError::Listen { .. }
        | StartError::S3(_)
        | StartError::Mesh(_)
        | StartError::Identity(_)
        | StartError::Cache(_)
        | StartError::Store(_) => None,
    }
}

fn nix_hint(error: &NixError) -> Option<String> {
    match error {
        NixError::Run(_) => Some("install Nix, or put it on PATH".to_owned()),
        NixError::Invalid(_) => Some(BUILD_HINT.to_owned()),
        NixError::Failed(message) if message.contains("is not valid") => {
            Some(BUILD_HINT.to_owned())
        }
        NixError::Read { .. }
        | NixError::NotInStore { .. }
        | NixError::Failed(_)
        | NixError::Answer(_) => None,
    }
}

fn data_file_hint(error: &FileError) -> Option<String> {
    match error {
        FileError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Some("run as the user that runs the node, or pass --data-dir".to_owned())
        }
        FileError::Mode { path, .. } => Some(format!("chmod 600 {}", path.display())),
        FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(format!(
            "{START_HINT}, or name its data directory with --data-dir"
        )),
        FileError::Locked(_) => Some("stop the node first, with ^C or SIGTERM".to_owned()),
        FileError::Io { .. } | FileError::Long(_) => None,
    }
}

fn file_hint(source: &io::Error) -> Option<String> {
    let managed = source.kind() == io::ErrorKind::ReadOnlyFilesystem;
    managed.then(|| "this file is managed elsewhere; see --print and --nixos".to_owned())
}

/// The first eight characters are the same in every id; a few more make a slip of the hand unlikely.
pub(crate) const ID_PREFIX_LEN_MIN: usize = 12;

const START_HINT: &str = "start a node with: attic-node up";
const WAIT_HINT: &str = "a node that starts or stops, or a verification; try again when it is done";
const CAP_HINT: &str =
    "raise store.size-cap, or remove pins or paths; pushes under way hold space as well";
const SPACE_HINT: &str =
    "make room with: attic-node gc; if it has none to work in, delete something else on that disk";
const TOKEN_HINT: &str = "pass the node's own data directory with --data-dir";
const TICKET_HINT: &str = "ask for a new ticket: attic-node invite, on a node of the cluster";
const REACH_HINT: &str =
    "see that a node of the cluster is up and its mesh port reachable from here";
const BUCKET_HINT: &str =
    "name a bucket in the configuration: attic-node config show --defaults, section [s3]";
const CLUSTER_HINT: &str =
    "make one with: attic-node cluster init; join one with: attic-node join TICKET";
const COPY_HINT: &str = "copy the whole ticket, it is one long word";
const CONFIRM_HINT: &str = "pass --no-confirm where nobody can be asked";
const PEERS_HINT: &str = "see them with: attic-node peers";
const BUILD_HINT: &str = "build or fetch it first, for example with: nix-store --realise PATH";

#[cfg(test)]
mod tests {
    use attic_node_core::api::ErrorBody;
    use reqwest::StatusCode;

    use super::*;

    /// Whoever may not change a cache was told to pass another token, and a revoked node to ask for
    /// another ticket.
    #[test]
    fn a_refusal_is_hinted_at_by_its_name_and_not_by_its_status() {
        for (status, name, hint) in [
            (StatusCode::UNAUTHORIZED, "Unauthorized", Some(TOKEN_HINT)),
            (StatusCode::FORBIDDEN, "WrongToken", Some(TOKEN_HINT)),
            (StatusCode::FORBIDDEN, "Forbidden", None),
            (StatusCode::FORBIDDEN, "NotAdmitted", Some(TICKET_HINT)),
            (StatusCode::FORBIDDEN, "Revoked", None),
        ] {
            let error = CliError::Client(ClientError::Refused {
                what: "PATCH caches/main".to_owned(),
                status,
                error: ErrorBody {
                    code: status.as_u16(),
                    error: name.to_owned(),
                    message: "no".to_owned(),
                },
                retry_after: None,
            });
            assert_eq!(error.hint().as_deref(), hint, "{name}");
        }
    }
}
