//! What the node counts, and its text for Prometheus.
//!
//! Every series exists from the start, at 0, so that rates and alerts work on an idle node. What is
//! counted on the hot path is found by index, without a lock.

use std::fs;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// All counters and gauges of a node.
pub(crate) struct Metrics {
    registry: Registry,
    requests: [[Counter; StatusClass::ALL.len()]; Route::ALL.len()],
    sent: [Counter; Source::ALL.len()],
    narinfo_hits: [Counter; Source::ALL.len()],
    pub(crate) narinfo_misses: Counter,
    /// Bytes of NARs sent, compressed as sent.
    pub(crate) nar_sent: Counter,
    pub(crate) push: PushMetrics,
    pub(crate) gc: GcMetrics,
    pub(crate) store: StoreMetrics,
    pub(crate) mesh: MeshMetrics,
    /// Client connections open now.
    pub(crate) connections: Gauge,
    /// Connections closed because there were too many.
    pub(crate) connections_refused: Counter,
    rss: Gauge<u64, AtomicU64>,
}

/// What came in.
#[derive(Clone, Default)]
pub(crate) struct PushMetrics {
    /// Bytes of NARs, chunks and small objects received.
    pub(crate) received_bytes: Counter,
    /// Chunk records received.
    pub(crate) chunks: Counter,
    /// Chunks a client asked about.
    pub(crate) chunks_asked: Counter,
    /// Chunks a client asked about and did not need to send.
    pub(crate) chunks_known: Counter,
    /// NAR bytes of paths published.
    pub(crate) nar_bytes: Counter,
    /// Frame bytes uploaded for them; the rest was deduplicated.
    pub(crate) new_bytes: Counter,
    /// Paths published.
    pub(crate) paths: Counter,
    /// Paths refused.
    pub(crate) paths_refused: Counter,
    /// Sessions open now.
    pub(crate) sessions: Gauge,
    /// Sessions ended because they were not used.
    pub(crate) sessions_expired: Counter,
}

/// What collection did.
#[derive(Clone, Default)]
pub(crate) struct GcMetrics {
    pub(crate) runs: Counter,
    pub(crate) failures: Counter,
    pub(crate) evicted_paths: Counter,
    pub(crate) dropped_nars: Counter,
    pub(crate) freed_bytes: Counter,
}

/// What is stored; set when the text is made.
#[derive(Clone, Default)]
pub(crate) struct StoreMetrics {
    pub(crate) bytes: Gauge<u64, AtomicU64>,
    pub(crate) packs: Gauge<u64, AtomicU64>,
    pub(crate) chunks: Gauge<u64, AtomicU64>,
    pub(crate) damaged_nars: Gauge<u64, AtomicU64>,
    /// Reads that found damage or failed.
    pub(crate) read_errors: Counter,
}

/// The node's part of its cluster; 0 while it is in none. Set when the text is made.
pub(crate) struct MeshMetrics {
    numbers: [Gauge<u64, AtomicU64>; MESH_NUMBERS.len()],
}

impl MeshMetrics {
    fn new() -> MeshMetrics {
        MeshMetrics {
            numbers: MESH_NUMBERS.map(|_| Gauge::default()),
        }
    }

    /// Sets all numbers, in the order of [`MESH_NUMBERS`].
    pub(crate) fn set(&self, numbers: [u64; MESH_NUMBERS.len()]) {
        for (gauge, number) in self.numbers.iter().zip(numbers) {
            gauge.set(number);
        }
    }
}

/// Names of the mesh's numbers, and what they count since the mesh began.
pub(crate) const MESH_NUMBERS: [(&str, &str); 43] = [
    ("peers", "Connected nodes of the cluster"),
    ("members", "Nodes of the cluster"),
    (
        "path_records",
        "Records of paths; removed ones until their author compacts",
    ),
    ("log_segments", "Segments of all logs"),
    ("log_size_bytes", "Bytes of all logs"),
    (
        "logs_too_long",
        "Nodes whose log is longer than mesh.log-max, and not heard of beyond",
    ),
    ("gossip_sent", "Gossip messages sent"),
    ("gossip_received", "Gossip messages received"),
    ("gossip_rejected", "Gossip messages that were not good"),
    (
        "gossip_lag_segments",
        "Segments that the connected peer who is furthest ahead has and this node has not",
    ),
    (
        "gossip_queue_paths",
        "Paths published here that the cluster was not told of yet",
    ),
    (
        "copies_queue_paths",
        "Paths published here whose copies on other nodes are yet to be looked at",
    ),
    ("sync_sent_bytes", "Bytes sent to compare and complete logs"),
    (
        "sync_received_bytes",
        "Bytes received to compare and complete logs",
    ),
    (
        "misbehaviour",
        "Times a member did what an honest one does not",
    ),
    (
        "records_rejected",
        "Records of this node that could not be said",
    ),
    ("bans_wrong_bytes", "Peers kept out because of wrong bytes"),
    ("bans_protocol", "Peers kept out because of the protocol"),
    (
        "bans_records",
        "Peers kept out because of what they said in logs and about them",
    ),
    (
        "bans_flood",
        "Peers kept out because they did without measure",
    ),
    ("banned", "Peers that are kept out now"),
    (
        "gossip_limited",
        "Gossip messages dropped because their sender sent too many",
    ),
    (
        "gossip_dropped",
        "Gossip messages dropped because this node was too slow",
    ),
    (
        "gossip_unsent",
        "Gossip messages for a peer dropped because that was too slow",
    ),
    (
        "requests_limited",
        "Requests of peers dropped because their sender sent too many",
    ),
    (
        "requests_dropped",
        "Requests of peers dropped because this node was too slow",
    ),
    (
        "streams_dropped",
        "Streams of peers reset because they had too many",
    ),
    (
        "inbound_failed",
        "Connections from outside that were not admitted or failed on the way",
    ),
    (
        "network_restarts",
        "Starts of the network's task after it panicked",
    ),
    ("bulk_received_bytes", "Bytes of chunks received from peers"),
    ("bulk_sent_bytes", "Bytes of chunks sent to peers"),
    ("requests_refused", "Requests of peers refused as too many"),
    ("flights", "NARs being fetched from peers"),
    ("flights_landed", "NARs fetched from peers"),
    (
        "flights_failed",
        "NARs that could not be fetched from peers",
    ),
    ("hedged_bytes", "Bytes asked of a second peer"),
    ("log_damaged", "Segments that decayed and are not whole yet"),
    ("log_mended", "Segments that decayed and came again"),
    (
        "state_healed",
        "Times the folded state was wrong and folded anew",
    ),
    ("dials_failed", "Attempts to connect that reached nobody"),
    (
        "addresses_confirmed",
        "Times a peer found that it can reach an address of ours",
    ),
    (
        "circuits_carried",
        "Connections of others carried as a relay",
    ),
    (
        "holes_punched",
        "Direct connections made after meeting through a relay",
    ),
];

/// What is counted of one upstream.
#[derive(Clone, Default)]
pub(crate) struct UpstreamMetrics {
    /// Narinfos that it had.
    pub(crate) hits: Counter,
    /// Bytes of NARs received, as they came.
    pub(crate) bytes: Counter,
    /// Requests that failed, and answers that were not believed.
    pub(crate) errors: Counter,
    /// 1 while it is left alone. Set when the text is made.
    pub(crate) unavailable: Gauge<u64, AtomicU64>,
    /// How long it takes to answer. Set when the text is made.
    pub(crate) latency: Gauge<f64, AtomicU64>,
}

/// What kind of thing a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Route {
    CacheInfo,
    Narinfo,
    Nar,
    Listing,
    Blob,
    Upload,
    Push,
    Admin,
    Probe,
    Other,
}

impl Route {
    const ALL: [Route; 10] = [
        Route::CacheInfo,
        Route::Narinfo,
        Route::Nar,
        Route::Listing,
        Route::Blob,
        Route::Upload,
        Route::Push,
        Route::Admin,
        Route::Probe,
        Route::Other,
    ];

    fn name(self) -> &'static str {
        match self {
            Route::CacheInfo => "cache-info",
            Route::Narinfo => "narinfo",
            Route::Nar => "nar",
            Route::Listing => "listing",
            Route::Blob => "blob",
            Route::Upload => "upload",
            Route::Push => "push",
            Route::Admin => "admin",
            Route::Probe => "probe",
            Route::Other => "other",
        }
    }
}

/// Hundreds of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum StatusClass {
    Success,
    Redirection,
    ClientError,
    ServerError,
}

impl StatusClass {
    const ALL: [StatusClass; 4] = [
        StatusClass::Success,
        StatusClass::Redirection,
        StatusClass::ClientError,
        StatusClass::ServerError,
    ];

    fn name(self) -> &'static str {
        match self {
            StatusClass::Success => "2xx",
            StatusClass::Redirection => "3xx",
            StatusClass::ClientError => "4xx",
            StatusClass::ServerError => "5xx",
        }
    }

    fn of(status: u16) -> StatusClass {
        match status {
            0..=299 => StatusClass::Success,
            300..=399 => StatusClass::Redirection,
            400..=499 => StatusClass::ClientError,
            500.. => StatusClass::ServerError,
        }
    }
}

/// Where served bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Local,
    Peer,
    S3,
    Upstream,
}

impl Source {
    const ALL: [Source; 4] = [Source::Local, Source::Peer, Source::S3, Source::Upstream];

    fn name(self) -> &'static str {
        match self {
            Source::Local => "local",
            Source::Peer => "peer",
            Source::S3 => "s3",
            Source::Upstream => "upstream",
        }
    }
}

/// Names and values of a series' labels.
type Labels<const N: usize> = [(&'static str, &'static str); N];

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("attic_node");
        let requests = Family::<Labels<2>, Counter>::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        let sent = sources(&mut registry, "sent_bytes", "Body bytes sent, by origin");
        let narinfo_hits = sources(&mut registry, "narinfo_hits", "Narinfos found, by origin");
        let mut metrics = Metrics {
            requests: Route::ALL.map(|route| {
                StatusClass::ALL.map(|status| {
                    counter(
                        &requests,
                        &[("route", route.name()), ("status", status.name())],
                    )
                })
            }),
            sent,
            narinfo_hits,
            narinfo_misses: Counter::default(),
            nar_sent: Counter::default(),
            push: PushMetrics::default(),
            gc: GcMetrics::default(),
            store: StoreMetrics::default(),
            mesh: MeshMetrics::new(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            rss: Gauge::default(),
            registry,
        };
        metrics.register();
        metrics
    }

    /// Counters for upstreams, by their URLs, in the same order.
    pub(crate) fn add_upstreams(&mut self, urls: &[String]) -> Vec<UpstreamMetrics> {
        type Url = [(&'static str, String); 1];
        let hits = Family::<Url, Counter>::default();
        let bytes = Family::<Url, Counter>::default();
        let errors = Family::<Url, Counter>::default();
        let unavailable = Family::<Url, Gauge<u64, AtomicU64>>::default();
        let latency = Family::<Url, Gauge<f64, AtomicU64>>::default();
        let of = |url: &String| {
            let labels = [("url", url.clone())];
            UpstreamMetrics {
                hits: hits.get_or_create(&labels).clone(),
                bytes: bytes.get_or_create(&labels).clone(),
                errors: errors.get_or_create(&labels).clone(),
                unavailable: unavailable.get_or_create(&labels).clone(),
                latency: latency.get_or_create(&labels).clone(),
            }
        };
        let metrics = urls.iter().map(of).collect();
        let registry = &mut self.registry;
        registry.register("upstream_narinfo_hits", "Narinfos that it had", hits);
        let help = "Bytes of NARs received from it";
        registry.register("upstream_received_bytes", help, bytes);
        let help = "Failed requests and answers that were not believed";
        registry.register("upstream_errors", help, errors);
        let help = "Whether it is left alone because it failed";
        registry.register("upstream_unavailable", help, unavailable);
        let help = "Mean time of its answers to narinfo requests";
        registry.register_with_unit("upstream_latency", help, Unit::Seconds, latency);
        metrics
    }

    /// Counts an answered request.
    pub(crate) fn answered(&self, route: Route, status: u16) {
        self.requests[route as usize][StatusClass::of(status) as usize].inc();
    }

    /// The counter of bytes sent from a source.
    pub(crate) fn sent(&self, source: Source) -> &Counter {
        &self.sent[source as usize]
    }

    /// Narinfos found, at whatever source.
    pub(crate) fn narinfo_hits_total(&self) -> u64 {
        self.narinfo_hits.iter().map(Counter::get).sum()
    }

    /// The counter of narinfos found at a source.
    pub(crate) fn narinfo_hits(&self, source: Source) -> &Counter {
        &self.narinfo_hits[source as usize]
    }

    /// Everything in Prometheus' text form.
    pub(crate) fn text(&self) -> String {
        self.rss.set(rss_bytes().unwrap_or(0));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }

    fn register(&mut self) {
        let Metrics {
            registry,
            push,
            gc,
            store,
            ..
        } = self;
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        add(
            "narinfo_misses",
            "Narinfos not found anywhere",
            &self.narinfo_misses,
        );
        add("nar_sent_bytes", "Bytes of NARs sent", &self.nar_sent);
        add(
            "connections_refused",
            "Connections closed at the limit",
            &self.connections_refused,
        );
        add(
            "push_received_bytes",
            "Bytes received from pushing clients",
            &push.received_bytes,
        );
        add("push_chunks", "Chunks received", &push.chunks);
        add(
            "push_chunks_asked",
            "Chunks that clients asked about",
            &push.chunks_asked,
        );
        add(
            "push_chunks_known",
            "Of those, the ones stored already",
            &push.chunks_known,
        );
        add(
            "push_nar_bytes",
            "NAR bytes of published paths",
            &push.nar_bytes,
        );
        add(
            "push_new_bytes",
            "Compressed bytes sent for published paths",
            &push.new_bytes,
        );
        add("push_paths", "Paths published", &push.paths);
        add("push_paths_refused", "Paths refused", &push.paths_refused);
        add(
            "push_sessions_expired",
            "Push sessions ended unused",
            &push.sessions_expired,
        );
        add("gc_runs", "Garbage collections finished", &gc.runs);
        add("gc_failures", "Garbage collections failed", &gc.failures);
        add(
            "gc_evicted_paths",
            "Paths evicted for the size cap",
            &gc.evicted_paths,
        );
        add("gc_dropped_nars", "NARs dropped", &gc.dropped_nars);
        add("gc_freed_bytes", "Bytes of disk freed", &gc.freed_bytes);
        add(
            "store_read_errors",
            "Reads that found damage or failed",
            &store.read_errors,
        );
        registry.register(
            "connections",
            "Open client connections",
            self.connections.clone(),
        );
        registry.register("push_sessions", "Open push sessions", push.sessions.clone());
        let mut add = |name: &str, help: &str, gauge: &Gauge<u64, AtomicU64>| {
            registry.register(name, help, gauge.clone());
        };
        for ((name, help), gauge) in MESH_NUMBERS.iter().zip(&self.mesh.numbers) {
            add(&format!("mesh_{name}"), help, gauge);
        }
        add("store_packs", "Pack files", &store.packs);
        add("store_chunks", "Chunks stored, about", &store.chunks);
        add(
            "store_damaged_nars",
            "NARs not served because they are damaged",
            &store.damaged_nars,
        );
        let mut add = |name: &str, help: &str, gauge: &Gauge<u64, AtomicU64>| {
            registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        };
        add("store", "Disk taken by the store", &store.bytes);
        add(
            "process_resident_memory",
            "Resident memory of the process",
            &self.rss,
        );
    }
}

/// One counter per source, each registered.
fn sources(registry: &mut Registry, name: &str, help: &str) -> [Counter; Source::ALL.len()] {
    let family = Family::<Labels<1>, Counter>::default();
    registry.register(name, help, family.clone());
    Source::ALL.map(|source| counter(&family, &[("source", source.name())]))
}

/// The member of a family, made if it is not there.
fn counter<const N: usize>(family: &Family<Labels<N>, Counter>, labels: &Labels<N>) -> Counter {
    family.get_or_create(labels).clone()
}

/// Resident memory of this process; `None` where the system does not tell.
pub(crate) fn rss_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G11: `/metrics` is primed at 0.
    #[test]
    fn g11_every_series_exists_at_zero() {
        let text = Metrics::new().text();
        for series in [
            "attic_node_http_requests_total{route=\"narinfo\",status=\"2xx\"} 0",
            "attic_node_http_requests_total{route=\"other\",status=\"5xx\"} 0",
            "attic_node_sent_bytes_total{source=\"local\"} 0",
            "attic_node_narinfo_hits_total{source=\"upstream\"} 0",
            "attic_node_narinfo_misses_total 0",
            "attic_node_gc_runs_total 0",
            "attic_node_connections 0",
            "attic_node_push_chunks_known_total 0",
            "attic_node_store_damaged_nars 0",
            "attic_node_store_bytes 0",
            "attic_node_mesh_gossip_lag_segments 0",
            "attic_node_mesh_gossip_queue_paths 0",
            "attic_node_mesh_copies_queue_paths 0",
        ] {
            assert!(text.contains(series), "{series}\n{text}");
        }
        assert!(text.contains("attic_node_process_resident_memory_bytes "));
    }

    /// G11, S8: so are those of upstreams.
    #[test]
    fn g11_the_series_of_upstreams_exist_at_zero() {
        let mut metrics = Metrics::new();
        let urls = [
            "https://a.example/".to_owned(),
            "http://b.example/c/".to_owned(),
        ];
        let upstreams = metrics.add_upstreams(&urls);
        upstreams[1].bytes.inc_by(7);
        let text = metrics.text();
        for series in [
            "upstream_narinfo_hits_total{url=\"https://a.example/\"} 0",
            "upstream_received_bytes_total{url=\"https://a.example/\"} 0",
            "upstream_received_bytes_total{url=\"http://b.example/c/\"} 7",
            "upstream_errors_total{url=\"http://b.example/c/\"} 0",
            "upstream_unavailable{url=\"http://b.example/c/\"} 0",
            "upstream_latency_seconds{url=\"https://a.example/\"} 0.0",
        ] {
            assert!(
                text.contains(&format!("attic_node_{series}")),
                "{series}\n{text}"
            );
        }
    }

    #[test]
    fn requests_are_counted_where_they_belong() {
        let metrics = Metrics::new();
        metrics.answered(Route::Nar, 206);
        metrics.answered(Route::Nar, 416);
        let text = metrics.text();
        for status in ["2xx", "4xx"] {
            let series = format!("http_requests_total{{route=\"nar\",status=\"{status}\"}} 1");
            assert!(text.contains(&series), "{text}");
        }
    }
}
