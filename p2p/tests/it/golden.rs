//! What is on the wire and on disk stays as it is: every versioned encoding has its bytes in
//! `tests/golden/wire`, and must be written and read as those.
//!
//! A test that fails here has found that nodes of this version and of an earlier one no longer
//! understand each other. An encoding that is meant to be new gets a new version and another name in
//! the file; `ATTIC_NODE_WRITE_GOLDEN=1 cargo test -p attic-p2p golden` adds what is missing, and
//! changes nothing that is there.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use attic_p2p::ids::{CacheId, ClusterId, Dot, ManifestId, NodeId};
use attic_p2p::log::MemoryLog;
use attic_p2p::membership::Role;
use attic_p2p::membership::address::Address;
use attic_p2p::membership::certificate::{Certificate, Delegation, DelegationUse, Holder, Issuer};
use attic_p2p::membership::genesis::{ClusterKey, Genesis};
use attic_p2p::membership::hello::{Admission, Credential, Hello, Join, Refusal, Reply};
use attic_p2p::membership::invite::{Invite, InviteKey, Invites, Terms};
use attic_p2p::membership::revocation::{Revocation, Subject};
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::membership::sealing::{OpeningKey, RecordContext, ScopeKey, SecretContext};
use attic_p2p::membership::ticket::{Ticket, TicketKind};
use attic_p2p::membership::time::UnixTime;
use attic_p2p::reconcile::{Answer, Ask, BUCKETS, Range, SHARDS_PER_ASK, TipHint};
use attic_p2p::record::{
    CacheConfig, CacheGenesis, Del, DelReason, Frontier, Grant, Left, NarTag, Pin, Record, Right,
    SealedRecord, Touch,
};
use attic_p2p::segment::{ForkProof, Place, Segment, SegmentId};
use attic_p2p::signed::{Signed, Signer};
use attic_p2p::wire::{
    ChunkRange, Decoder, ErrorCode, Frame, Have, Hello as StreamHello, Object, Priority, SegmentSet,
};
use attic_store::{NarHash, SecretKey, StoreDir};
use bytes::Bytes;

use crate::cluster::{Cluster, path_hash};

const NOW: UnixTime = UnixTime(1_800_000_000);

/// The stored bytes, by name.
struct Golden {
    stored: BTreeMap<String, Vec<u8>>,
    made: BTreeMap<String, Vec<u8>>,
}

impl Golden {
    fn read() -> Golden {
        let text = std::fs::read_to_string(file()).unwrap_or_default();
        let mut stored: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut name = String::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.strip_prefix("  ") {
                None => name = line.to_owned(),
                Some(hex) => {
                    let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("hex");
                    stored.entry(name.clone()).or_default().extend(bytes);
                }
            }
        }
        let made = BTreeMap::new();
        Golden { stored, made }
    }

    /// Sees that a value is written as stored, and that what is stored is read as the value.
    #[track_caller]
    fn check<T: PartialEq + Debug, E: Debug>(
        &mut self,
        name: &str,
        value: T,
        encode: impl Fn(&T) -> Vec<u8>,
        decode: impl Fn(&[u8]) -> Result<T, E>,
    ) {
        let written = encode(&value);
        assert!(
            self.made.insert(name.to_owned(), written).is_none(),
            "{name} twice"
        );
        if let Some(stored) = self.stored.get(name) {
            let read = decode(stored);
            assert!(
                read.as_ref().is_ok_and(|read| *read == value),
                "{name} is read as {read:?}"
            );
        }
    }

    /// Compares everything at once, so that one run shows all that changed.
    fn finish(self, of: &str) {
        let writes = std::env::var_os("ATTIC_NODE_WRITE_GOLDEN").is_some();
        let mut wrong = Vec::new();
        let mut missing = BTreeMap::new();
        for (name, made) in self.made {
            match self.stored.get(&name) {
                Some(stored) if *stored == made => {}
                Some(_) => wrong.push(format!("{name} is written otherwise")),
                None if writes => drop(missing.insert(name, made)),
                None => wrong.push(format!("{name} is not in the file")),
            }
        }
        if !missing.is_empty() {
            let _one_at_a_time = WRITING.lock().expect("no panic under this lock");
            let mut all = Golden::read().stored;
            all.extend(missing);
            std::fs::write(file(), text(&all)).expect("write the file");
        }
        assert!(wrong.is_empty(), "{of}: {wrong:#?}");
    }
}

static WRITING: Mutex<()> = Mutex::new(());

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/wire")
}

fn text(all: &BTreeMap<String, Vec<u8>>) -> String {
    let mut text = "# Encodings that must stay: see tests/it/golden.rs.\n".to_owned();
    for (name, bytes) in all {
        writeln!(text, "{name}").expect("a string");
        for line in bytes.chunks(48) {
            writeln!(text, "  {}", data_encoding::HEXLOWER.encode(line)).expect("a string");
        }
    }
    text
}

fn cluster_key() -> ClusterKey {
    ClusterKey::from_seed([1; 32])
}

fn genesis() -> Genesis {
    cluster_key().found("office".parse().unwrap(), [2; 16])
}

fn cluster_id() -> ClusterId {
    genesis().cluster_id()
}

fn node(number: u8) -> NodeId {
    Cluster::identity(number).node_id()
}

fn invite_key() -> InviteKey {
    InviteKey::from_seed([77; 32])
}

fn holder(number: u8) -> Holder {
    Holder {
        node: node(number),
        sealing_key: OpeningKey::of(&Cluster::identity(number)).sealing_key(),
        role: Role::Keeper,
        scopes: Scopes::new(vec!["*".parse().unwrap()], vec!["team-*".parse().unwrap()]).unwrap(),
    }
}

fn certificate(number: u8) -> Signed<Certificate> {
    let certificate = Certificate::new(cluster_id(), holder(number), Issuer::Cluster, NOW, [4; 16]);
    Signed::new(certificate, &cluster_key())
}

fn delegation(usage: DelegationUse) -> Signed<Delegation> {
    let delegation = Delegation {
        version: attic_p2p::membership::VERSION,
        cluster: cluster_id(),
        key: invite_key().id(),
        usage,
        role: Role::Keeper,
        scopes: holder(1).scopes,
        serial: [6; 16],
        not_after: UnixTime(NOW.0 + 864_000),
    };
    Signed::new(delegation, &cluster_key())
}

fn delegated(number: u8) -> Signed<Certificate> {
    let issuer = Issuer::Delegate(Box::new(delegation(DelegationUse::Invite)));
    let certificate = Certificate::new(cluster_id(), holder(number), issuer, NOW, [8; 16]);
    Signed::new(certificate, &invite_key())
}

fn revocation(subject: Subject) -> Signed<Revocation> {
    Signed::new(Revocation::new(cluster_id(), subject, NOW), &cluster_key())
}

fn terms() -> Terms {
    Terms {
        role: Role::Member,
        scopes: Scopes::read_all(),
        not_after: UnixTime(NOW.0 + 86_400),
    }
}

fn address() -> Address {
    Address::new("/ip4/192.0.2.7/tcp/7746", node(1)).unwrap()
}

#[test]
fn golden_membership() {
    let mut golden = Golden::read();
    golden.check("genesis", genesis(), Genesis::encode, Genesis::decode);
    let signed = [
        ("certificate", certificate(3)),
        ("certificate-delegated", delegated(3)),
    ];
    for (name, certificate) in signed {
        assert!(certificate.verify_chain(&genesis()).is_ok());
        golden.check(name, certificate, Signed::encode, Signed::decode);
    }
    for (name, usage) in [
        ("invite", DelegationUse::Invite),
        ("issuer", DelegationUse::Issuer),
    ] {
        let name = format!("delegation-{name}");
        golden.check(&name, delegation(usage), Signed::encode, Signed::decode);
    }
    let mut cut = Revocation::new(cluster_id(), Subject::Node(node(5)), NOW);
    cut.upto_seq = Some(300);
    for (name, revocation) in [
        ("revocation-node", revocation(Subject::Node(node(3)))),
        (
            "revocation-invite",
            revocation(Subject::Invite(invite_key().id())),
        ),
        (
            "revocation-cache",
            revocation(Subject::Cache(CacheId::from_bytes([6; 16]))),
        ),
        ("revocation-node-cut", Signed::new(cut, &cluster_key())),
    ] {
        assert!(revocation.check(&genesis()).is_ok());
        golden.check(name, revocation, Signed::encode, Signed::decode);
    }
    let open = TicketKind::Open(Box::new(delegation(DelegationUse::Invite)));
    for (name, kind) in [
        ("ticket-counted", TicketKind::Counted(terms())),
        ("ticket-open", open),
    ] {
        let ticket = Ticket::new(genesis(), vec![address()], invite_key(), kind).unwrap();
        let read = |bytes: &[u8]| String::from_utf8_lossy(bytes).parse::<Ticket>();
        // What is compared is the text: a ticket holds a key that has no equality.
        golden.check(
            name,
            ticket.to_text(),
            |text| text.clone().into_bytes(),
            |bytes| read(bytes).map(|ticket| ticket.to_text()),
        );
    }
    let mut invites = Invites::default();
    let invite = Invite::new(invite_key().id(), terms(), 3).unwrap();
    invites.add(invite, NOW).unwrap();
    invites.redeem(invite_key().id(), node(9), NOW).unwrap();
    let encode = |invites: &Invites| postcard::to_stdvec(invites).unwrap();
    golden.check("invites", invites, encode, |bytes| {
        postcard::from_bytes(bytes)
    });
    golden.finish("membership");
}

#[test]
fn golden_handshake() {
    let mut golden = Golden::read();
    let join = Join::new(
        &invite_key(),
        cluster_id(),
        node(3),
        node(1),
        holder(3).sealing_key,
    );
    for (name, credential) in [
        ("hello-member", Credential::Member(certificate(3))),
        ("hello-join", Credential::Join(join)),
    ] {
        let hello = Hello {
            credential,
            revocations_digest: [9; 32],
        };
        golden.check(name, hello, Hello::encode, Hello::decode);
    }
    let admission = |granted, revocations| {
        Reply::Admitted(Box::new(Admission {
            certificate: certificate(1),
            granted,
            revocations,
        }))
    };
    let revoked = vec![revocation(Subject::Node(node(7)))];
    let not_after = NOW;
    let issuers = vec![address()];
    for (name, reply) in [
        ("admitted", admission(None, Vec::new())),
        ("admitted-granted", admission(Some(certificate(3)), revoked)),
        ("not-a-member", Reply::Refused(Refusal::NotAMember)),
        ("other-cluster", Reply::Refused(Refusal::OtherCluster)),
        ("expired", Reply::Refused(Refusal::Expired { not_after })),
        ("revoked", Reply::Refused(Refusal::Revoked)),
        (
            "ticket-expired",
            Reply::Refused(Refusal::TicketExpired { not_after }),
        ),
        ("ticket-used-up", Reply::Refused(Refusal::TicketUsedUp)),
        ("ticket-unknown", Reply::Refused(Refusal::TicketUnknown)),
        ("ticket-revoked", Reply::Refused(Refusal::TicketRevoked)),
        ("bad-proof", Reply::Refused(Refusal::BadProof)),
        (
            "not-an-issuer",
            Reply::Refused(Refusal::NotAnIssuer { issuers }),
        ),
        ("not-joined", Reply::Refused(Refusal::NotJoined)),
        ("unavailable", Reply::Refused(Refusal::Unavailable)),
        (
            "version-too-new",
            Reply::Refused(Refusal::VersionTooNew { known: 1 }),
        ),
        ("malformed", Reply::Refused(Refusal::Malformed)),
    ] {
        golden.check(
            &format!("reply-{name}"),
            reply,
            Reply::encode,
            Reply::decode,
        );
    }
    let proven = revocation(Subject::Node(node(3)));
    let bytes = Reply::encode_revoked(&proven);
    let read = |bytes: &[u8]| Reply::revocation_in(bytes).ok_or("no revocation");
    golden.check("reply-revoked-proven", proven, Reply::encode_revoked, read);
    // For who does not know what is behind it, a refusal like any other.
    assert_eq!(Reply::decode(&bytes), Ok(Reply::Refused(Refusal::Revoked)));
    golden.finish("handshake");
}

#[test]
fn golden_records() {
    let mut golden = Golden::read();
    let test = Cluster::new();
    let tags = vec![NarTag::from_bytes([1; 8]), NarTag::from_bytes([2; 8])];
    let dot = |number, seq, index| Dot {
        node: node(number),
        seq,
        index,
    };
    let dots = vec![dot(1, 2, 3), dot(1, 900, 0), dot(2, 1, 1)];
    let owner = Cluster::identity(50);
    let config = CacheConfig {
        genesis: CacheGenesis {
            name: "main".parse().unwrap(),
            owner: owner.public(),
            nonce: [3; 16],
        },
        version: 7,
        public_keys: vec![SecretKey::generate("main-1", [5; 32]).unwrap().public()],
        priority: 40,
        public: false,
        store_dir: StoreDir::default(),
        retention: Some(86_400),
        destroyed: false,
    };
    let cache = CacheId::from_bytes([4; 16]);
    let grant = |right| {
        let grant = Grant {
            cache,
            node: node(3),
            right,
            epoch: 2,
            sealed: vec![6; 40],
        };
        Record::Grant(Signed::new(grant, &owner))
    };
    let mut touched = test.path(1);
    touched.info.ca = Some(
        format!("fixed:r:sha256:{}", "0".repeat(52))
            .parse()
            .unwrap(),
    );
    let fork = ForkProof::between(&segment(2, 1), &segment(2, 2)).unwrap();
    for (name, record) in [
        ("member", Record::Member(certificate(3))),
        ("revoke", Record::Revoke(revocation(Subject::Node(node(3))))),
        ("cache", Record::Cache(Signed::new(config, &owner))),
        ("grant-read", grant(Right::Read)),
        ("grant-sign", grant(Right::Sign)),
        ("path", Record::Path(test.path(1))),
        ("path-content-addressed", Record::Path(touched)),
        ("hold", Record::Hold(tags.clone())),
        ("release", Record::Release(tags)),
        (
            "touch",
            Record::Touch(Touch {
                day: 20_000,
                prefixes: vec![1, u64::MAX],
            }),
        ),
        (
            "pin",
            Record::Pin(Pin {
                cache,
                name: "release".to_owned(),
                path: test.path(1).info.path,
                keep: 3,
            }),
        ),
        ("unpin", Record::Unpin(dots.clone())),
        ("del-expired", del(&dots, DelReason::Expired)),
        ("del-removed", del(&dots, DelReason::Removed)),
        ("del-quarantine", del(&dots, DelReason::Quarantine)),
        (
            "sealed",
            Record::Sealed(SealedRecord {
                cache,
                epoch: 1,
                nonce: [5; 24],
                ciphertext: vec![6; 30],
            }),
        ),
        ("fork", Record::Fork(fork)),
        ("left", Record::Left(Left { at: NOW })),
        ("durable", Record::Durable(dots.clone())),
        (
            "after",
            Record::After(vec![Frontier {
                node: node(3),
                seq: 77,
            }]),
        ),
        (
            "unknown",
            Record::Unknown {
                kind: 200,
                body: [1, 2, 3].into(),
            },
        ),
    ] {
        let encode = |record: &Record| record.encode().unwrap();
        golden.check(&format!("record-{name}"), record, encode, Record::decode);
    }
    golden.finish("records");
}

fn del(dots: &[Dot], reason: DelReason) -> Record {
    let dots = dots.to_vec();
    Record::Del(Del { dots, reason })
}

fn place(seq: u64) -> Place {
    let cluster = cluster_id();
    Place {
        cluster,
        seq,
        prev: SegmentId::before_first(&cluster),
        hlc: 1_700_000_000_000,
    }
}

fn hold(byte: u8) -> Vec<u8> {
    Record::Hold(vec![NarTag::from_bytes([byte; 8])])
        .encode()
        .unwrap()
}

fn segment(seq: u64, byte: u8) -> Segment {
    Segment::append(&Cluster::identity(3), place(seq), &hold(byte)).unwrap()
}

#[test]
fn golden_logs() {
    let mut golden = Golden::read();
    let body = [
        Segment::restate(3, 7, &hold(1)),
        Segment::restate(900, 0, &hold(2)),
    ]
    .concat();
    let checkpoint = Segment::checkpoint(&Cluster::identity(3), place(1000), (0, 2), &body);
    for (name, segment) in [
        ("append", segment(300, 1)),
        ("checkpoint", checkpoint.unwrap()),
    ] {
        assert_eq!(segment.verify(), Ok(()));
        let decode = |bytes: &[u8]| Segment::decode(Bytes::copy_from_slice(bytes));
        let encode = |segment: &Segment| segment.bytes().to_vec();
        golden.check(&format!("segment-{name}"), segment, encode, decode);
    }
    let range = Range {
        node: node(3),
        from: 1,
        to: 300,
    };
    for (name, ask) in [
        (
            "hello",
            Ask::Hello {
                summary: 7,
                ask_back: true,
            },
        ),
        ("tips", Ask::Tips { buckets: 5 }),
        (
            "pull",
            Ask::Pull {
                ranges: vec![range],
            },
        ),
        (
            "shards",
            Ask::Shards {
                summary: 0x0102_0304_0506_0708,
                terms: 1,
                first: 248,
            },
        ),
    ] {
        let encode = |ask: &Ask| ask.encode().to_vec();
        golden.check(&format!("ask-{name}"), ask, encode, Ask::decode);
    }
    let tip = TipHint {
        node: node(3),
        seq: 300,
        id: [8; 8],
    };
    let buckets = Some((0..BUCKETS as u64).collect());
    let segments = vec![segment(1, 1).bytes().clone(), Bytes::from_static(b"abc")];
    let digests = (0..u64::from(SHARDS_PER_ASK))
        .map(|shard| u64::MAX >> (8 * shard))
        .collect();
    for (name, answer) in [
        (
            "equal",
            Answer::Hello {
                yours: 3,
                buckets: None,
            },
        ),
        ("differs", Answer::Hello { yours: 3, buckets }),
        (
            "tips",
            Answer::Tips {
                tips: vec![tip],
                left: 9,
            },
        ),
        ("segments", Answer::Segments(segments)),
        ("shards", Answer::Shards(Some(digests))),
        ("shards-incomparable", Answer::Shards(None)),
    ] {
        let encode = |answer: &Answer| answer.encode().to_vec();
        let decode = |bytes: &[u8]| Answer::decode(&Bytes::copy_from_slice(bytes));
        golden.check(&format!("answer-{name}"), answer, encode, decode);
    }
    golden.finish("logs");
}

#[test]
fn golden_frames() {
    let mut golden = Golden::read();
    let object = Object {
        nar: NarHash::from_bytes([1; 32]),
        manifest: ManifestId::from_bytes([2; 32]),
    };
    let req = 0x0102_0304;
    let mut some = SegmentSet::empty(11);
    for segment in [0, 3, 10] {
        some.insert(segment);
    }
    let bytes = Bytes::from_static(b"chunk");
    for (name, frame) in [
        (
            "hello",
            Frame::Hello(StreamHello {
                protocol: 1,
                capabilities: 0x8000_0001,
                window: 1 << 25,
                cluster: cluster_id(),
            }),
        ),
        ("have-query", Frame::HaveQuery { req, object }),
        (
            "have-nothing",
            Frame::Have {
                req,
                have: Have::Nothing,
            },
        ),
        (
            "have-complete",
            Frame::Have {
                req,
                have: Have::Complete,
            },
        ),
        (
            "have-partial",
            Frame::Have {
                req,
                have: Have::Partial(some),
            },
        ),
        (
            "have-delta",
            Frame::HaveDelta {
                req,
                segments: vec![1, 700],
            },
        ),
        (
            "get",
            Frame::Get {
                req,
                object,
                ranges: vec![ChunkRange { first: 3, count: 9 }],
                priority: Priority::Background,
                deadline: Duration::from_millis(1500),
            },
        ),
        (
            "get-many",
            Frame::GetMany {
                req,
                objects: vec![object, object],
            },
        ),
        (
            "data",
            Frame::Data {
                req,
                chunk: 9,
                last: false,
                bytes: bytes.clone(),
            },
        ),
        (
            "data-last",
            Frame::Data {
                req,
                chunk: 9,
                last: true,
                bytes: bytes.clone(),
            },
        ),
        (
            "busy",
            Frame::Busy {
                req,
                retry: Duration::from_millis(250),
            },
        ),
        ("not-found", Frame::NotFound { req, chunk: None }),
        (
            "not-found-chunk",
            Frame::NotFound {
                req,
                chunk: Some(9),
            },
        ),
        ("cancel", Frame::Cancel { req }),
        (
            "error-expired",
            Frame::Error {
                req,
                code: ErrorCode::Expired,
            },
        ),
        (
            "error-forbidden",
            Frame::Error {
                req,
                code: ErrorCode::Forbidden,
            },
        ),
        (
            "error-malformed",
            Frame::Error {
                req,
                code: ErrorCode::Malformed,
            },
        ),
        (
            "error-internal",
            Frame::Error {
                req,
                code: ErrorCode::Internal,
            },
        ),
        (
            "error-other",
            Frame::Error {
                req,
                code: ErrorCode::Other(700),
            },
        ),
        ("credit", Frame::Credit { bytes: 1 << 20 }),
        ("manifest-query", Frame::ManifestQuery { req, object }),
        (
            "manifest",
            Frame::Manifest {
                req,
                offset: 10,
                total: 100,
                bytes,
            },
        ),
        (
            "others",
            Frame::Others {
                req,
                nodes: vec![NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32])],
            },
        ),
    ] {
        let decode = |bytes: &[u8]| {
            let mut decoder = Decoder::new();
            decoder.feed(bytes);
            decoder.next().transpose().ok_or(None)?.map_err(Some)
        };
        let encode = |frame: &Frame| frame.encode().to_vec();
        golden.check(&format!("frame-{name}"), frame, encode, decode);
    }
    golden.finish("frames");
}

#[test]
fn golden_secrets() {
    let mut golden = Golden::read();
    let cache = CacheId::from_bytes([4; 16]);
    let context = SecretContext {
        cluster: cluster_id(),
        cache,
        recipient: node(3),
    };
    let opening = OpeningKey::of(&Cluster::identity(3));
    golden.check(
        "sealed-secret",
        b"a key of a cache".to_vec(),
        |secret| {
            opening
                .sealing_key()
                .seal(&context, secret, [7; 32])
                .unwrap()
        },
        |sealed| opening.open(&context, sealed).map(|secret| secret.to_vec()),
    );
    let record = RecordContext {
        cluster: cluster_id(),
        author: node(3),
        cache,
        epoch: 2,
    };
    let key = ScopeKey::from_bytes([9; 32]);
    golden.check(
        "sealed-record",
        b"a record".to_vec(),
        |body| key.seal(&record, &[1; 24], body),
        |sealed| key.open(&record, &[1; 24], sealed),
    );
    let text = |key: &String| key.clone().into_bytes();
    let parse = |bytes: &[u8]| {
        let key = String::from_utf8_lossy(bytes).parse::<ClusterKey>();
        key.map(|key| key.to_text())
    };
    golden.check("cluster-key", cluster_key().to_text(), text, parse);
    golden.finish("secrets");
}

/// The names of things: what they are derived from must not change either.
#[test]
fn golden_names() {
    let mut golden = Golden::read();
    let same = |bytes: &Vec<u8>| bytes.clone();
    let read = |bytes: &[u8]| Ok::<_, ()>(bytes.to_vec());
    let cache = CacheGenesis {
        name: "main".parse().unwrap(),
        owner: node(50),
        nonce: [3; 16],
    };
    let sealing_key = OpeningKey::of(&Cluster::identity(3)).sealing_key();
    let hash = NarHash::of(b"nar");
    for (name, bytes) in [
        ("cluster", cluster_id().as_bytes().to_vec()),
        ("cache", cache.cache_id().as_bytes().to_vec()),
        ("manifest", ManifestId::of(b"manifest").as_bytes().to_vec()),
        ("segment", segment(300, 1).id().as_bytes().to_vec()),
        ("nar-tag", NarTag::of(&hash).as_bytes().to_vec()),
        ("sealing-key", sealing_key.as_bytes().to_vec()),
        ("path-hash-of-tests", path_hash(1).as_bytes().to_vec()),
    ] {
        golden.check(&format!("name-{name}"), bytes, same, read);
    }
    golden.finish("names");
}

/// What nodes at equal log ends compare. Other digests of the same logs need other terms, or nodes of
/// two versions take each other for damaged.
#[test]
fn golden_digests() {
    let mut golden = Golden::read();
    let test = Cluster::new();
    let mut writer = test.writer(1);
    writer.append(&[test.config(1), Record::Path(test.path(7))]);
    writer.append(&[Record::Hold(vec![NarTag::from_bytes([1; 8])])]);
    let (mut directory, mut log) = (test.directory(), MemoryLog::default());
    for segment in &writer.segments {
        directory.take(segment, &mut log).unwrap();
    }
    let mut digests = Vec::new();
    for shard in 0..=u8::MAX {
        let digest = directory.shard_digest(shard);
        if digest != 0 {
            digests.push(shard);
            digests.extend(digest.to_le_bytes());
        }
    }
    let name = format!("digests-on-terms-{}", directory.terms().0);
    let read = |bytes: &[u8]| Ok::<_, ()>(bytes.to_vec());
    golden.check(&name, digests, Vec::clone, read);
    golden.finish("digests");
}
