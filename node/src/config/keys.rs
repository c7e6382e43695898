//! Every key of the configuration, once: name, default, what it means.
//!
//! The file format, the environment variables, `config show --defaults` and the typed
//! configuration all read this table.

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Section of the file, empty for keys above the first section.
    pub section: &'static str,
    /// Name within its section.
    pub name: &'static str,
    /// The value when nobody sets it.
    pub default: Default,
    /// What it means: one or more full sentences, without line breaks.
    pub doc: &'static str,
}

/// What a key is worth when nobody sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// This value.
    Text(&'static str),
    /// An empty list.
    EmptyList,
    /// No value; its doc says what that means. Holds an example.
    Unset(&'static str),
}

impl Key {
    /// `section.name`, or the bare name above the first section.
    pub fn full_name(&self) -> String {
        if self.section.is_empty() {
            return self.name.to_owned();
        }
        format!("{}.{}", self.section, self.name)
    }

    /// The environment variable that sets it: `ATTIC_NODE_HTTP_LISTEN`.
    pub fn env_name(&self) -> String {
        let name = self
            .full_name()
            .replace(['.', '-'], "_")
            .to_ascii_uppercase();
        format!("{ENV_PREFIX}{name}")
    }

    /// Whether a number or a truth value may stand for it: not where any text is a value.
    pub(super) fn may_be_bare(&self) -> bool {
        match self.default {
            Default::EmptyList => false,
            Default::Text(text) | Default::Unset(text) => {
                matches!(text, "true" | "false") || text.starts_with(|c: char| c.is_ascii_digit())
            }
        }
    }

    /// The key called `full_name`.
    pub fn find(full_name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.full_name() == full_name)
    }

    /// The key of an `[[upstream]]` table called `full_name`.
    pub fn find_of_upstream(full_name: &str) -> Option<&'static Key> {
        let mut keys = UPSTREAM_KEYS.iter();
        keys.find(|key| key.full_name() == full_name)
    }
}

/// What the names of all environment variables begin with.
pub const ENV_PREFIX: &str = "ATTIC_NODE_";

/// All keys, in the order they are shown.
pub const KEYS: &[Key] = &[
    Key {
        section: "",
        name: "data-dir",
        default: Default::Unset("/var/lib/attic-node"),
        doc: "Where the node keeps everything. Unset means $XDG_DATA_HOME/attic-node, and \
              ~/.local/share/attic-node without that variable.",
    },
    Key {
        section: "http",
        name: "listen",
        default: Default::Text("127.0.0.1:7745"),
        doc: "Address and port to serve on. Port 0 takes a free one. On an address that is not \
              a loopback one, everybody who can reach it may read public caches.",
    },
    Key {
        section: "http",
        name: "unix-socket",
        default: Default::Unset("/run/attic-node/node.sock"),
        doc: "Unix socket to serve on as well. Unset means node.sock in the data directory; \
              \"off\" means none.",
    },
    Key {
        section: "http",
        name: "allowed-hosts",
        default: Default::EmptyList,
        doc: "Host names under which clients may address this node. IP addresses and localhost \
              are always allowed; any other name is answered 421, so that a web page cannot \
              reach the node through a name it controls.",
    },
    Key {
        section: "http",
        name: "connections-max",
        default: Default::Text("4096"),
        doc: "Connections open at once. Above it, the one that waits for a request for longest \
              is closed; when all are at work, the new one.",
    },
    Key {
        section: "http",
        name: "header-timeout",
        default: Default::Text("10s"),
        doc: "Time a client has to send the head of a request, from its first byte.",
    },
    Key {
        section: "http",
        name: "idle-timeout",
        default: Default::Text("90s"),
        doc: "Time a connection may wait for its next request.",
    },
    Key {
        section: "http",
        name: "body-idle-timeout",
        default: Default::Text("60s"),
        doc: "Longest pause between two pieces of a request body.",
    },
    Key {
        section: "http",
        name: "send-idle-timeout",
        default: Default::Text("10m"),
        doc: "Time after which a client that takes no more bytes of its answer is dropped.",
    },
    Key {
        section: "http",
        name: "shutdown-timeout",
        default: Default::Text("30s"),
        doc: "Time that requests under way get to finish when the node stops.",
    },
    Key {
        section: "http",
        name: "narinfo-memory",
        default: Default::Text("32 MiB"),
        doc: "Memory for narinfo answers kept ready to send.",
    },
    Key {
        section: "store",
        name: "size-cap",
        default: Default::Unset("100 GiB"),
        doc: "Disk space for stored NARs. Above it, closures unused for longest are evicted, \
              pinned ones never. Unset means no limit.",
    },
    Key {
        section: "store",
        name: "pack-size",
        default: Default::Text("64 MiB"),
        doc: "Size at which a pack file is sealed and the next one begun; at most a sixteenth of \
              size-cap.",
    },
    Key {
        section: "store",
        name: "nar-size-max",
        default: Default::Text("256 GiB"),
        doc: "Largest NAR that is accepted, uncompressed. Larger ones are answered 413.",
    },
    Key {
        section: "store",
        name: "upload-grace",
        default: Default::Text("24h"),
        doc: "How long an uploaded NAR is kept for a narinfo that names it. Nix sends all NARs \
              of a closure before the first narinfo.",
    },
    Key {
        section: "store",
        name: "threads",
        default: Default::Text("0"),
        doc: "Threads that hash and compress. 0 means one per processor.",
    },
    Key {
        section: "push",
        name: "body-max",
        default: Default::Text("32 MiB"),
        doc: "Largest request body of the push API. Set it to what a proxy in between lets pass.",
    },
    Key {
        section: "push",
        name: "session-idle",
        default: Default::Text("1h"),
        doc: "Time after which an unused push session ends; chunks it sent may then be collected.",
    },
    Key {
        section: "push",
        name: "sessions-max",
        default: Default::Text("1024"),
        doc: "Push sessions open at once. Above it, one unused for a minute ends, or a new one waits.",
    },
    Key {
        section: "push",
        name: "uploads-max",
        default: Default::Text("16"),
        doc: "Request bodies taken in at once; further ones wait their turn.",
    },
    Key {
        section: "gc",
        name: "interval",
        default: Default::Text("6h"),
        doc: "Time between two garbage collections. One runs earlier when the size cap is near.",
    },
    Key {
        section: "gc",
        name: "compact-below",
        default: Default::Text("50%"),
        doc: "Pack files of which a smaller share is still needed are rewritten without the rest.",
    },
    Key {
        section: "mesh",
        name: "name",
        default: Default::Unset("build-1"),
        doc: "What this node is called in the other nodes' lists: 1 to 64 of [0-9A-Za-z ._-]. Unset \
              means the name of the machine.",
    },
    Key {
        section: "mesh",
        name: "listen",
        default: Default::Text("[::]:7746"),
        doc: "Address and port that the other nodes of the cluster connect to; opened only while \
              this node is in a cluster. \"[::]\" takes IPv4 as well, port 0 takes a free one, \
              \"off\" means this node only connects to others.",
    },
    Key {
        section: "mesh",
        name: "announce",
        default: Default::EmptyList,
        doc: "Addresses under which other nodes reach this one, as multiaddrs \
              (\"/dns4/cache.example.org/tcp/7746\"), where it cannot see them by itself.",
    },
    Key {
        section: "mesh",
        name: "bootstrap",
        default: Default::EmptyList,
        doc: "Addresses of other nodes to connect to, as multiaddrs \
              (\"/ip4/192.0.2.7/tcp/7746\"), besides those that are remembered or found.",
    },
    Key {
        section: "mesh",
        name: "mdns",
        default: Default::Text("true"),
        doc: "Whether to look for the cluster's other nodes in the local network, by mDNS.",
    },
    Key {
        section: "mesh",
        name: "relay-server",
        default: Default::Text("false"),
        doc: "Whether to carry connections between members that cannot reach each other, for a node \
              that all of them reach. At most 64 at a time, of an hour and 4 MiB each: what nodes \
              say passes, NARs do not.",
    },
    Key {
        section: "mesh",
        name: "relay-client",
        default: Default::Text("false"),
        doc: "Whether to connect to nodes through relays where their addresses say so.",
    },
    Key {
        section: "mesh",
        name: "relays",
        default: Default::EmptyList,
        doc: "Members with relay-server through which this node is to be reached, as multiaddrs \
              with their peer ids (\"/ip4/192.0.2.7/tcp/7746/p2p/12D3Koo…\"). Tickets made here \
              say so. Turns relay-client on.",
    },
    Key {
        section: "mesh",
        name: "hole-punching",
        default: Default::Text("false"),
        doc: "Whether two nodes that met through a relay try to connect without it, through the \
              routers between them. Both must want it, and be able to use relays.",
    },
    Key {
        section: "mesh",
        name: "autonat",
        default: Default::Text("false"),
        doc: "Whether to ask other members which addresses of this node they can reach, to put \
              those into tickets, and to find out the same for them. A member can then have this \
              node open a connection to any address, and see whether somebody answers.",
    },
    Key {
        section: "mesh",
        name: "deadline",
        default: Default::Text("250ms"),
        doc: "How long a narinfo that nobody is known to have is looked for among the connected \
              nodes before Nix is told that it is not here. The look-up goes on behind its back.",
    },
    Key {
        section: "mesh",
        name: "replicas",
        default: Default::Text("2"),
        doc: "How many nodes shall hold what is pushed here, this one included.",
    },
    Key {
        section: "mesh",
        name: "log-max",
        default: Default::Text("512 MiB"),
        doc: "Most bytes of what one node of the cluster says that are kept here, about 300 a path. \
              What it says beyond that is not heard until it says less. The same on all nodes.",
    },
    Key {
        section: "mesh",
        name: "upload-rate-max",
        default: Default::Unset("20 MB"),
        doc: "Most bytes a second sent to other nodes. Unset means no limit.",
    },
    Key {
        section: "s3",
        name: "bucket",
        default: Default::Unset("nix-cache"),
        doc: "Bucket that nodes of the cluster share. Keepers write what is pushed to it; a node \
              that is no keeper only reads, and needs no other right. Unset means none.",
    },
    Key {
        section: "s3",
        name: "endpoint",
        default: Default::Unset("https://s3.example.org"),
        doc: "URL of the server. Unset means AWS's for the region.",
    },
    Key {
        section: "s3",
        name: "region",
        default: Default::Text("us-east-1"),
        doc: "Region that requests are signed for.",
    },
    Key {
        section: "s3",
        name: "prefix",
        default: Default::Text(""),
        doc: "What all keys in the bucket begin with, such as \"nix/\". Below it each cluster has a \
              part of its own.",
    },
    Key {
        section: "s3",
        name: "path-style",
        default: Default::Unset("true"),
        doc: "Whether URLs name the bucket in their path and not in their host. Unset means yes \
              where an endpoint is named.",
    },
    Key {
        section: "s3",
        name: "access-key-id-file",
        default: Default::Unset("/run/secrets/s3-key-id"),
        doc: "File with the id of the access key. Unset means AWS_ACCESS_KEY_ID with \
              AWS_SECRET_ACCESS_KEY, else the profile AWS_PROFILE (default) in \
              AWS_SHARED_CREDENTIALS_FILE (~/.aws/credentials).",
    },
    Key {
        section: "s3",
        name: "secret-access-key-file",
        default: Default::Unset("/run/secrets/s3-secret"),
        doc: "File with the secret of the access key; goes with access-key-id-file.",
    },
    Key {
        section: "s3",
        name: "grace",
        default: Default::Text("24h"),
        doc: "How long `s3 gc` leaves a pack in the bucket after it was first seen that nothing needs \
              it: somebody may be reading it. It was safe to delete at once.",
    },
    Key {
        section: "pull-through",
        name: "deadline",
        default: Default::Text("2s"),
        doc: "How long upstreams are asked for a path before Nix is told that it is not here. The \
              question goes on behind its back.",
    },
    Key {
        section: "pull-through",
        name: "negative-ttl",
        default: Default::Text("60s"),
        doc: "How long it is remembered that no upstream has a path. A push of the path ends it. As long, \
              and 10 minutes at most, an upstream that gave a wrong NAR, or none, is not asked for it.",
    },
    Key {
        section: "pull-through",
        name: "downloads-max",
        default: Default::Text("32"),
        doc: "NARs fetched from upstreams at once; more wait. Each takes some MiB of memory, and what \
              its compression needs: 256 MiB of xz at the very most.",
    },
    Key {
        section: "log",
        name: "level",
        default: Default::Text("info"),
        doc: "What is logged: off, error, warn, info, debug or trace, or a list such as \
              \"info,attic_store=debug\".",
    },
];

/// Keys of an `[[upstream]]` table, of which there may be several. No variable and no flag sets them.
pub const UPSTREAM_KEYS: &[Key] = &[
    Key {
        section: "upstream",
        name: "url",
        default: Default::Unset("https://cache.nixos.org"),
        doc: "A binary cache that is asked for what neither this node nor its cluster has. What it has \
              is kept here and passed on with its own signatures. http or https, without credentials; \
              proxies of the environment are not used.",
    },
    Key {
        section: "upstream",
        name: "public-keys",
        default: Default::EmptyList,
        doc: "Keys of which one must have signed what comes from this upstream, as in Nix's \
              trusted-public-keys. At least one; what no key here signed counts as not there.",
    },
    Key {
        section: "upstream",
        name: "priority",
        default: Default::Unset("40"),
        doc: "The upstream with the lowest is asked first, those with equal ones at once. Unset means \
              what the upstream says in its nix-cache-info, and 40 until it did.",
    },
    Key {
        section: "upstream",
        name: "caches",
        default: Default::EmptyList,
        doc: "Caches of this node whose missing paths are looked for there. Empty means all public \
              ones. A private cache must be named: its upstream learns what it is asked for.",
    },
    Key {
        section: "upstream",
        name: "connect-timeout",
        default: Default::Text("5s"),
        doc: "Time to connect.",
    },
    Key {
        section: "upstream",
        name: "timeout",
        default: Default::Text("15s"),
        doc: "Longest silence in the middle of an answer or before it.",
    },
];
