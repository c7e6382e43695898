//! What the node may be told: one TOML file, overlaid by `ATTIC_NODE_…` variables and flags.
//!
//! [`keys::KEYS`] lists every key once. [`Layers`] knows who set which key to what; [`Config`] is
//! the checked result that the rest of the node is given. An unknown key is refused with the
//! nearest known name, because a misspelt key that is silently ignored is a wrong setting.
//!
//! Nothing here reads the process environment: the caller hands it in.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attic_store::{CacheName, PublicKey};
use thiserror::Error;
use url::Url;

use self::keys::{Default, Key};
use self::read::{
    Setting, Settings, UpstreamTable, read_env, read_file, setting_from_text, unknown,
};
use self::show::{render, toml_list};

pub use self::value::duration;

pub mod keys;
mod read;
mod show;
pub(crate) mod value;

const KEY_ID_FILE: &str = "s3.access-key-id-file";
const SECRET_FILE: &str = "s3.secret-access-key-file";

/// Everything the node can be told, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the node keeps everything.
    pub data_dir: PathBuf,
    /// `[http]`
    pub http: HttpConfig,
    /// `[store]`
    pub store: StoreConfig,
    /// `[push]`
    pub push: PushConfig,
    /// `[gc]`
    pub gc: GcConfig,
    /// `[mesh]`
    pub mesh: MeshConfig,
    /// `[s3]`, where it names a bucket.
    pub s3: Option<S3Config>,
    /// `[pull-through]`
    pub pull_through: PullThroughConfig,
    /// Every `[[upstream]]`, in the order of the file.
    pub upstreams: Vec<UpstreamConfig>,
    /// `[log]`
    pub log: LogConfig,
}

/// Section `[http]`; [`keys::KEYS`] says what each means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// TCP address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where a unix socket is wanted.
    pub unix_socket: UnixSocket,
    /// Lower-case host names, no ports.
    pub allowed_hosts: Vec<String>,
    /// At least 1.
    pub connections_max: usize,
    /// Not zero.
    pub header_timeout: Duration,
    /// Not zero.
    pub idle_timeout: Duration,
    /// Not zero.
    pub body_idle_timeout: Duration,
    /// Not zero.
    pub send_idle_timeout: Duration,
    /// May be zero: then nothing is waited for.
    pub shutdown_timeout: Duration,
    /// Bytes.
    pub narinfo_memory: u64,
}

/// Whether and where a unix socket is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixSocket {
    /// `node.sock` in the data directory; left out when that path is too long for a socket.
    InDataDir,
    /// This path, or the node does not start.
    At(PathBuf),
    /// None.
    Off,
}

/// Section `[store]`.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// Bytes.
    pub size_cap: Option<u64>,
    /// Bytes.
    pub pack_size: u64,
    /// Bytes, uncompressed.
    pub nar_size_max: u64,
    /// How long an unnamed NAR stays.
    pub upload_grace: Duration,
    /// At least 1.
    pub threads: usize,
    /// 0 to 1.
    pub compact_below: f64,
}

/// Section `[push]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushConfig {
    /// Bytes.
    pub body_max: u64,
    /// Not zero.
    pub session_idle: Duration,
    /// At least 1.
    pub sessions_max: usize,
    /// At least 1.
    pub uploads_max: usize,
}

/// Section `[gc]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcConfig {
    /// Not zero.
    pub interval: Duration,
}

/// Section `[mesh]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// What this node is called, if not as its machine.
    pub name: Option<String>,
    /// TCP address for other nodes; port 0 takes a free one.
    pub listen: Option<SocketAddr>,
    /// Multiaddrs, as text that was checked.
    pub announce: Vec<String>,
    /// Multiaddrs, as text that was checked.
    pub bootstrap: Vec<String>,
    /// Whether to look around by mDNS.
    pub mdns: bool,
    /// Whether to carry connections of others.
    pub relay_server: bool,
    /// Whether to connect through relays.
    pub relay_client: bool,
    /// Multiaddrs that end in a node's name, as text that was checked.
    pub relays: Vec<String>,
    /// Whether to look for a way without the relay.
    pub hole_punching: bool,
    /// Whether to find out which addresses can be reached.
    pub autonat: bool,
    /// Not zero.
    pub deadline: Duration,
    /// At least 1.
    pub replicas: usize,
    /// Bytes.
    pub log_max: u64,
    /// Bytes a second.
    pub upload_rate_max: Option<u64>,
}

/// Section `[s3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Config {
    /// Its name.
    pub bucket: String,
    /// URL of the server, if it is not AWS's.
    pub endpoint: Option<String>,
    /// What requests are signed for.
    pub region: String,
    /// May be empty.
    pub prefix: String,
    /// Whether the bucket is in the path.
    pub path_style: Option<bool>,
    /// Files of key id and secret.
    pub key_files: Option<(PathBuf, PathBuf)>,
    /// Where the key is found without these.
    pub environment: AwsEnvironment,
    /// How long a pack is dead before it goes.
    pub grace: Duration,
}

/// Of the environment what AWS's own tools look at for an access key. Shown without its values.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AwsEnvironment(BTreeMap<&'static str, String>);

impl AwsEnvironment {
    const NAMES: [&'static str; 6] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "HOME",
    ];

    fn of(env: &BTreeMap<OsString, OsString>) -> AwsEnvironment {
        let value = |name: &'static str| {
            let value = env.get(OsStr::new(name))?.to_str()?;
            (!value.is_empty()).then(|| (name, value.to_owned()))
        };
        AwsEnvironment(
            AwsEnvironment::NAMES
                .into_iter()
                .filter_map(value)
                .collect(),
        )
    }

    /// The value of a variable.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

impl std::fmt::Debug for AwsEnvironment {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Section `[pull-through]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullThroughConfig {
    /// Not zero.
    pub deadline: Duration,
    /// May be zero: then nothing is remembered.
    pub negative_ttl: Duration,
    /// At least 1.
    pub downloads_max: usize,
}

/// One `[[upstream]]`; [`keys::UPSTREAM_KEYS`] says what each means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// `http` or `https`, with a host, without credentials, query and fragment; ends in `/`.
    pub url: Url,
    /// At least one.
    pub public_keys: Vec<PublicKey>,
    /// What it is asked by, if not by what it says itself.
    pub priority: Option<u32>,
    /// Empty for all public ones.
    pub caches: Vec<CacheName>,
    /// Not zero.
    pub connect_timeout: Duration,
    /// Not zero.
    pub timeout: Duration,
}

/// Section `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A filter in `tracing`'s form.
    pub level: String,
}

impl Config {
    /// Reads, overlays and checks.
    ///
    /// **Errors**: the first thing that is wrong, naming file and line, variable or flag.
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        Layers::read(sources)?.config()
    }
}

/// Where settings come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// File named on the command line: must exist. `None` searches [`Sources::search_path`].
    pub file: Option<PathBuf>,
    /// The process environment.
    pub env: BTreeMap<OsString, OsString>,
    /// Keys set on the command line, by full name: (`http.listen`, `127.0.0.1:0`).
    pub flags: Vec<(&'static str, String)>,
}

impl Sources {
    /// No file, no environment: the defaults and `flags`. For tests and tools.
    pub fn only(flags: Vec<(&'static str, String)>) -> Sources {
        Sources {
            file: None,
            env: BTreeMap::new(),
            flags,
        }
    }

    /// Files that are looked for, first one wins. `ATTIC_NODE_CONFIG`, when set, is the only one.
    pub fn search_path(&self) -> Vec<PathBuf> {
        if let Some(file) = self.env_path("ATTIC_NODE_CONFIG") {
            return vec![file];
        }
        let home = self.env_path("HOME").map(|home| home.join(".config"));
        let user = self.env_path("XDG_CONFIG_HOME").or(home);
        let user = user.map(|dir| dir.join("attic-node/config.toml"));
        user.into_iter()
            .chain([PathBuf::from("/etc/attic-node/config.toml")])
            .collect()
    }

    /// The file to read, if there is one.
    fn chosen_file(&self) -> Option<PathBuf> {
        let named = self
            .file
            .clone()
            .or_else(|| self.env_path("ATTIC_NODE_CONFIG"));
        named.or_else(|| self.search_path().into_iter().find(|file| file.exists()))
    }

    fn default_data_dir(&self) -> Result<PathBuf, ConfigError> {
        let home = self.env_path("HOME").map(|home| home.join(".local/share"));
        let base = self
            .env_path("XDG_DATA_HOME")
            .or(home)
            .ok_or(ConfigError::NoDataDir)?;
        Ok(base.join("attic-node"))
    }

    /// An absolute path in a variable; the XDG specification says to ignore relative ones.
    fn env_path(&self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.env.get(OsStr::new(name))?);
        (path.is_absolute() || name == "ATTIC_NODE_CONFIG").then_some(path)
    }
}

/// Who said what: for each key that somebody set, its value and origin.
#[derive(Debug)]
pub struct Layers {
    /// By full name. Later layers replace earlier ones.
    set: Settings,
    /// Of the file alone.
    upstreams: Vec<UpstreamTable>,
    /// What later layers replaced.
    replaced: Vec<(String, (Setting, Origin))>,
    /// The file that was read.
    file: Option<PathBuf>,
    default_data_dir: Result<PathBuf, ConfigError>,
    aws: AwsEnvironment,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the configuration file.
    File {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// The command line.
    Flag(String),
}

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { file, line } => write!(f, "{}:{line}", file.display()),
            Origin::Env(name) => f.write_str(name),
            Origin::Flag(name) => write!(f, "command line ({name})"),
        }
    }
}

impl Layers {
    /// Reads the file and overlays environment and flags. Values are not checked yet.
    ///
    /// **Errors**: an unreadable file, a syntax error, an unknown key.
    pub fn read(sources: &Sources) -> Result<Layers, ConfigError> {
        let (layers, faults) = Layers::read_all(sources)?;
        faults.into_iter().next().map_or(Ok(layers), Err)
    }

    /// Everything that is wrong, in the file in the order of its lines: values that a later layer
    /// replaces as well.
    pub fn faults(sources: &Sources) -> Vec<ConfigError> {
        let (mut layers, mut faults) = match Layers::read_all(sources) {
            Ok(read) => read,
            Err(error) => return vec![error],
        };
        let replaced = std::mem::take(&mut layers.replaced);
        let set = layers.set.clone();
        let upstreams = std::mem::take(&mut layers.upstreams);
        for (name, setting) in replaced.into_iter().chain(set) {
            // Among defaults, which are valid, only this one can be wrong.
            layers.set = BTreeMap::from([(name, setting)]);
            match layers.each_value() {
                Err(ConfigError::NoDataDir) | Ok(_) => {}
                Err(fault) => faults.push(fault),
            }
        }
        layers.upstreams = upstreams;
        faults.extend(layers.each_upstream().filter_map(Result::err));
        faults.sort_by_key(ConfigError::line);
        faults
    }

    /// Reads everything that can be read, and says what cannot.
    fn read_all(sources: &Sources) -> Result<(Layers, Vec<ConfigError>), ConfigError> {
        let file = sources.chosen_file();
        let read = file.as_deref().map(read_file).transpose()?;
        let read = read.unwrap_or_default();
        let (from_file, mut faults) = (read.set, read.faults);
        let (from_env, faults_of_env) = read_env(&sources.env);
        faults.extend(faults_of_env);
        let mut from_flags = BTreeMap::new();
        for (name, value) in &sources.flags {
            let origin = Origin::Flag((*name).to_owned());
            match Key::find(name) {
                Some(key) => {
                    let setting = setting_from_text(key, value);
                    from_flags.insert(key.full_name(), (setting, origin));
                }
                None => faults.push(unknown(name, origin)),
            }
        }
        let mut set = Settings::new();
        let mut replaced = Vec::new();
        for (name, setting) in from_file.into_iter().chain(from_env).chain(from_flags) {
            let earlier = set.insert(name.clone(), setting);
            replaced.extend(earlier.map(|earlier| (name, earlier)));
        }
        let layers = Layers {
            set,
            upstreams: read.upstreams,
            replaced,
            file,
            default_data_dir: sources.default_data_dir(),
            aws: AwsEnvironment::of(&sources.env),
        };
        Ok((layers, faults))
    }

    /// The file that was read, if any.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Checks every value.
    ///
    /// **Errors**: [`ConfigError::Value`] for the first bad one, [`ConfigError::NoDataDir`].
    /// [`ConfigError::Value`] as well for one that another one rules out.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let config = self.each_value()?;
        self.check_relaying(&config.mesh)?;
        self.check_key_files()?;
        Ok(config)
    }

    /// Relays are of use to their client alone.
    fn check_relaying(&self, mesh: &MeshConfig) -> Result<(), ConfigError> {
        let is_set = |name: &str| self.set.contains_key(name);
        let has_relays = !mesh.relays.is_empty();
        if has_relays && !mesh.relay_client && is_set("mesh.relay-client") {
            let wanted = "true where mesh.relays names some".to_owned();
            return Err(self.bad_value("mesh.relay-client", "false".to_owned(), wanted));
        }
        Ok(())
    }

    /// A key id is of no use without its secret.
    fn check_key_files(&self) -> Result<(), ConfigError> {
        let is_set = |name| self.set.contains_key(name);
        let lacking = match (is_set(KEY_ID_FILE), is_set(SECRET_FILE)) {
            (true, false) => (SECRET_FILE, KEY_ID_FILE),
            (false, true) => (KEY_ID_FILE, SECRET_FILE),
            (true, true) | (false, false) => return Ok(()),
        };
        let (lacking, other) = lacking;
        let wanted = format!("a file where {other} names one");
        Err(self.bad_value(lacking, "unset".to_owned(), wanted))
    }

    fn each_value(&self) -> Result<Config, ConfigError> {
        Ok(Config {
            data_dir: self.data_dir()?,
            http: HttpConfig {
                listen: self.parse("http.listen", |text| {
                    text.parse()
                        .map_err(|_| "an address and port, \"127.0.0.1:7745\"".to_owned())
                })?,
                unix_socket: self.unix_socket(),
                allowed_hosts: self.list("http.allowed-hosts", host_name)?,
                connections_max: self.count("http.connections-max", 1, 1 << 20)?,
                header_timeout: self.timeout("http.header-timeout")?,
                idle_timeout: self.timeout("http.idle-timeout")?,
                body_idle_timeout: self.timeout("http.body-idle-timeout")?,
                send_idle_timeout: self.timeout("http.send-idle-timeout")?,
                shutdown_timeout: self.parse("http.shutdown-timeout", value::duration)?,
                narinfo_memory: self.parse("http.narinfo-memory", value::size)?,
            },
            store: self.store()?,
            push: PushConfig {
                body_max: self.size_between("push.body-max", 1 << 20, 1 << 30)?,
                session_idle: self.timeout("push.session-idle")?,
                sessions_max: self.count("push.sessions-max", 1, 1 << 16)?,
                uploads_max: self.count("push.uploads-max", 1, 4096)?,
            },
            gc: GcConfig {
                interval: self.timeout("gc.interval")?,
            },
            mesh: self.mesh()?,
            s3: self.s3()?,
            pull_through: PullThroughConfig {
                deadline: self.parse("pull-through.deadline", nix_waits)?,
                negative_ttl: self.parse("pull-through.negative-ttl", value::duration)?,
                downloads_max: self.count("pull-through.downloads-max", 1, 256)?,
            },
            upstreams: self.each_upstream().collect::<Result<_, _>>()?,
            log: LogConfig {
                level: self.parse("log.level", value::log_filter)?,
            },
        })
    }

    /// All keys as a configuration file, each with its doc, value and origin.
    pub fn show(&self) -> String {
        let lookup = |key: &Key| match self.set.get(&key.full_name()) {
            Some((setting, origin)) => (Some(setting.clone()), origin.clone()),
            None => (None, Origin::Default),
        };
        render(lookup, &self.upstreams)
    }

    /// The checked upstreams. More than [`UPSTREAMS_MAX`], and one that is there twice, are wrong.
    fn each_upstream(&self) -> impl Iterator<Item = Result<UpstreamConfig, ConfigError>> {
        let mut seen = Vec::new();
        self.upstreams.iter().map(move |table| {
            let upstream = self.upstream(table)?;
            let wanted = match seen.contains(&upstream.url) {
                true => "an upstream that is not there yet".to_owned(),
                false if seen.len() == UPSTREAMS_MAX => {
                    format!("no more than {UPSTREAMS_MAX} upstreams")
                }
                false => {
                    seen.push(upstream.url.clone());
                    return Ok(upstream);
                }
            };
            Err(ConfigError::Value {
                origin: table.origin.clone(),
                name: "upstream.url",
                value: upstream.url.to_string(),
                wanted,
            })
        })
    }

    fn upstream(&self, table: &UpstreamTable) -> Result<UpstreamConfig, ConfigError> {
        let missing = |name, wanted: &str| ConfigError::Value {
            origin: table.origin.clone(),
            name,
            value: "unset".to_owned(),
            wanted: wanted.to_owned(),
        };
        // Its keys are read like all others.
        let layer = Layers {
            set: table.set.clone(),
            upstreams: Vec::new(),
            replaced: Vec::new(),
            file: None,
            default_data_dir: self.default_data_dir.clone(),
            aws: AwsEnvironment::default(),
        };
        let url = layer.optional("upstream.url", value::upstream_url)?;
        let public_keys = layer.list("upstream.public-keys", value::public_key)?;
        if public_keys.is_empty() {
            let wanted = "at least one key, as in Nix's trusted-public-keys: what nobody is \
                          trusted to have signed cannot be passed on";
            return Err(missing("upstream.public-keys", wanted));
        }
        Ok(UpstreamConfig {
            url: url.ok_or_else(|| missing("upstream.url", "the URL of a binary cache"))?,
            public_keys,
            priority: layer.optional("upstream.priority", |text| {
                let number = value::count(text, 0, PRIORITY_MAX)?;
                u32::try_from(number).map_err(|_| "a smaller number".to_owned())
            })?,
            caches: layer.list("upstream.caches", |text| {
                let name = text.trim().parse();
                name.map_err(|_| "the name of a cache".to_owned())
            })?,
            connect_timeout: layer.timeout("upstream.connect-timeout")?,
            timeout: layer.timeout("upstream.timeout")?,
        })
    }

    fn store(&self) -> Result<StoreConfig, ConfigError> {
        let threads = match self.count("store.threads", 0, 1024)? {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        Ok(StoreConfig {
            size_cap: self.optional("store.size-cap", |text| {
                let cap = value::size(text)?;
                let inside = (cap >= SIZE_CAP_MIN).then_some(cap);
                inside.ok_or_else(|| "1 MiB or more; leave it out for no limit".to_owned())
            })?,
            pack_size: self.size_between("store.pack-size", 1 << 20, 1 << 30)?,
            nar_size_max: self.size_between("store.nar-size-max", 1 << 10, 1 << 50)?,
            upload_grace: self.parse("store.upload-grace", value::duration)?,
            threads,
            compact_below: self.parse("gc.compact-below", value::percent)?,
        })
    }

    fn s3(&self) -> Result<Option<S3Config>, ConfigError> {
        let text = |name| self.optional(name, |text| Ok(text.trim().to_owned()));
        let path = |name| self.optional(name, |text| Ok(PathBuf::from(text)));
        let (id, secret) = (path(KEY_ID_FILE)?, path(SECRET_FILE)?);
        let key_files = id.zip(secret);
        let endpoint = self.optional("s3.endpoint", value::server_url)?;
        let path_style = self.optional("s3.path-style", value::switch)?;
        let (region, prefix) = (text("s3.region")?, text("s3.prefix")?);
        let Some(bucket) = text("s3.bucket")? else {
            return Ok(None);
        };
        let config = S3Config {
            bucket,
            endpoint,
            region: region.unwrap_or_default(),
            prefix: prefix.unwrap_or_default(),
            path_style,
            key_files,
            environment: self.aws.clone(),
            grace: self.parse("s3.grace", value::duration)?,
        };
        match crate::s3::check(&config) {
            Ok(()) => Ok(Some(config)),
            Err(error) => Err(self.bad_value("s3.bucket", config.bucket, error)),
        }
    }

    fn mesh(&self) -> Result<MeshConfig, ConfigError> {
        Ok(MeshConfig {
            name: self.optional("mesh.name", value::node_name)?,
            listen: self.parse("mesh.listen", |text| match text {
                "off" => Ok(None),
                address => address.parse().map(Some).map_err(|_| {
                    "an address and port such as \"[::]:7746\", or \"off\"".to_owned()
                }),
            })?,
            announce: self.list("mesh.announce", value::multiaddr)?,
            bootstrap: self.list("mesh.bootstrap", value::multiaddr)?,
            mdns: self.parse("mesh.mdns", value::switch)?,
            relay_server: self.parse("mesh.relay-server", value::switch)?,
            relay_client: self.parse("mesh.relay-client", value::switch)?,
            relays: self.list("mesh.relays", value::relay)?,
            hole_punching: self.parse("mesh.hole-punching", value::switch)?,
            autonat: self.parse("mesh.autonat", value::switch)?,
            deadline: self.parse("mesh.deadline", nix_waits)?,
            replicas: self.count("mesh.replicas", 1, 64)?,
            log_max: self.size_between("mesh.log-max", 2 << 20, 1 << 40)?,
            upload_rate_max: self.optional("mesh.upload-rate-max", |text| {
                let rate = value::size(text)?;
                let inside = (rate >= UPLOAD_RATE_MIN).then_some(rate);
                inside.ok_or_else(|| format!("{UPLOAD_RATE_MIN} bytes a second or more"))
            })?,
        })
    }

    fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        match self.text("data-dir") {
            Some(dir) => self.parse("data-dir", |_| {
                std::path::absolute(&dir).map_err(|_| "a path".to_owned())
            }),
            None => self.default_data_dir.clone(),
        }
    }

    fn unix_socket(&self) -> UnixSocket {
        match self.text("http.unix-socket").as_deref() {
            None => UnixSocket::InDataDir,
            Some("off") => UnixSocket::Off,
            Some(path) => UnixSocket::At(path.into()),
        }
    }

    fn timeout(&self, name: &'static str) -> Result<Duration, ConfigError> {
        self.parse(name, |text| {
            let duration = value::duration(text)?;
            let positive = (!duration.is_zero()).then_some(duration);
            positive.ok_or_else(|| "more than zero".to_owned())
        })
    }

    fn count(&self, name: &'static str, min: usize, max: usize) -> Result<usize, ConfigError> {
        self.parse(name, |text| value::count(text, min, max))
    }

    fn size_between(&self, name: &'static str, min: u64, max: u64) -> Result<u64, ConfigError> {
        self.parse(name, |text| {
            let size = value::size(text)?;
            let inside = (min..=max).contains(&size).then_some(size);
            inside.ok_or_else(|| format!("a size from {min} to {max} bytes"))
        })
    }

    /// The checked value of a key that has a default.
    fn parse<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let text = self.text(name).unwrap_or_default();
        parse(&text).map_err(|wanted| self.bad_value(name, text, wanted))
    }

    /// The checked value of a key that may be unset.
    fn optional<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        self.text(name).map(|_| self.parse(name, parse)).transpose()
    }

    fn list<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, ConfigError> {
        let items = match self.set.get(name) {
            Some((Setting::List(items), _)) => items.clone(),
            Some((Setting::Text(text), _)) => vec![text.clone()],
            None => Vec::new(),
        };
        let check = |item: String| {
            parse(&item).map_err(|wanted| self.bad_value(name, item.clone(), wanted))
        };
        items.into_iter().map(check).collect()
    }

    /// The text of a key: as set, or its default. A list where text is wanted is shown as TOML,
    /// which no parser of a single value takes.
    fn text(&self, name: &'static str) -> Option<String> {
        if let Some((setting, _)) = self.set.get(name) {
            return Some(match setting {
                Setting::Text(text) => text.clone(),
                Setting::List(items) => toml_list(items),
            });
        }
        let key = Key::find(name).or_else(|| Key::find_of_upstream(name));
        match key.map(|key| key.default) {
            Some(Default::Text(text)) => Some(text.to_owned()),
            Some(Default::EmptyList | Default::Unset(_)) | None => None,
        }
    }

    fn bad_value(&self, name: &'static str, value: String, wanted: String) -> ConfigError {
        let origin = self
            .set
            .get(name)
            .map_or(Origin::Default, |(_, origin)| origin.clone());
        ConfigError::Value {
            origin,
            name,
            value,
            wanted,
        }
    }
}

/// All keys with their docs and defaults, as a configuration file that changes nothing.
pub fn defaults_text() -> String {
    render(|_| (None, Origin::Default), &[])
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {}: {reason}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        reason: io::ErrorKind,
    },
    /// The file is not TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// What the parser said.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key `{name}`{}", suggestion(nearest))]
    UnknownKey {
        /// Who set it.
        origin: Origin,
        /// Its full name as written.
        name: String,
        /// The most similar name that exists, if one is similar.
        nearest: Option<String>,
    },
    /// A value that its key does not take.
    #[error("{origin}: `{name}` is `{value}`, wanted {wanted}")]
    Value {
        /// Who set it.
        origin: Origin,
        /// Full name of the key.
        name: &'static str,
        /// The value as written.
        value: String,
        /// What it takes.
        wanted: String,
    },
    /// No place to keep data in.
    #[error("no data directory: neither `data-dir` nor XDG_DATA_HOME nor HOME is set")]
    NoDataDir,
}

impl ConfigError {
    /// The line of the file it is about; `None` for what is not in the file.
    fn line(&self) -> Option<usize> {
        match self {
            ConfigError::Syntax { origin, .. }
            | ConfigError::UnknownKey { origin, .. }
            | ConfigError::Value { origin, .. } => match origin {
                Origin::File { line, .. } => Some(*line),
                Origin::Default | Origin::Env(_) | Origin::Flag(_) => None,
            },
            ConfigError::Read { .. } | ConfigError::NoDataDir => None,
        }
    }
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|name| format!(", did you mean `{name}`?"))
        .unwrap_or_default()
}

fn host_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if text.is_empty() || text.len() > 253 || !text.chars().all(fits) {
        return Err("a host name without a port".to_owned());
    }
    Ok(text.to_ascii_lowercase())
}

/// A time for which Nix may be kept waiting.
fn nix_waits(text: &str) -> Result<Duration, String> {
    let deadline = value::duration(text)?;
    let inside = !deadline.is_zero() && deadline <= DEADLINE_MAX;
    let inside = inside.then_some(deadline);
    inside.ok_or_else(|| "more than zero, at most 30s: Nix waits for it".to_owned())
}

/// Each may be asked for every path.
const UPSTREAMS_MAX: usize = 16;

/// Nix reads priorities as signed numbers.
const PRIORITY_MAX: usize = i32::MAX as usize;

/// Longer, and Nix gives up on the cache.
const DEADLINE_MAX: Duration = Duration::from_secs(30);

/// Less, and nothing can be stored.
const SIZE_CAP_MIN: u64 = 1 << 20;

/// Slower, and a single chunk takes longer than others wait for it.
const UPLOAD_RATE_MIN: u64 = 64 << 10;

#[cfg(test)]
mod tests;
