//! A cluster for tests: nodes with certificates, one cache, records of it.

use std::sync::Arc;

use attic_p2p::directory::{Directory, NoKeys};
use attic_p2p::identity::Identity;
use attic_p2p::ids::{CacheId, Dot, ManifestId, NodeId};
use attic_p2p::log::MemoryLog;
use attic_p2p::membership::Role;
use attic_p2p::membership::certificate::{Certificate, Holder, Issuer};
use attic_p2p::membership::genesis::{ClusterKey, Genesis};
use attic_p2p::membership::revocation::{Revocation, Subject};
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::membership::sealing::OpeningKey;
use attic_p2p::membership::time::UnixTime;
use attic_p2p::private::{EpochKey, Keyring, grant_read};
use attic_p2p::record::{CacheConfig, CacheGenesis, Del, DelReason, NarTag, PathRecord, Record};
use attic_p2p::segment::{BODY_LEN_MAX, Place, Segment, SegmentId};
use attic_p2p::signed::{Signed, Signer};
use attic_store::{FileHash, NarHash, PathInfo, SecretKey, StoreDir, StorePath, StorePathHash};

/// The keys of a cluster and of its one cache.
pub(crate) struct Cluster {
    pub(crate) key: ClusterKey,
    pub(crate) genesis: Genesis,
    owner: Identity,
    cache_key: SecretKey,
}

impl Cluster {
    pub(crate) fn new() -> Cluster {
        let key = ClusterKey::from_seed([200; 32]);
        let genesis = key.found("test".parse().unwrap(), [1; 16]);
        Cluster {
            key,
            genesis,
            owner: Identity::from_seed([201; 32]),
            cache_key: SecretKey::generate("cache-1", [202; 32]).unwrap(),
        }
    }

    pub(crate) fn identity(number: u8) -> Identity {
        Identity::from_seed([number; 32])
    }

    pub(crate) fn certificate(&self, number: u8, scopes: Scopes) -> Signed<Certificate> {
        self.certificate_as(Role::Member, number, scopes)
    }

    pub(crate) fn certificate_as(
        &self,
        role: Role,
        number: u8,
        scopes: Scopes,
    ) -> Signed<Certificate> {
        let identity = Cluster::identity(number);
        let holder = Holder {
            node: identity.node_id(),
            sealing_key: OpeningKey::of(&identity).sealing_key(),
            role,
            scopes,
        };
        let cluster = self.genesis.cluster_id();
        let now = UnixTime(1_800_000_000);
        let certificate = Certificate::new(cluster, holder, Issuer::Cluster, now, [number; 16]);
        Signed::new(certificate, &self.key)
    }

    pub(crate) fn revocation(&self, node: NodeId, upto_seq: u64) -> Record {
        let cluster = self.genesis.cluster_id();
        let at = UnixTime(1_800_000_000);
        let mut revocation = Revocation::new(cluster, Subject::Node(node), at);
        revocation.upto_seq = Some(upto_seq);
        Record::Revoke(Signed::new(revocation, &self.key))
    }

    pub(crate) fn end_of_cache(&self, key: &ClusterKey) -> Record {
        let (cluster, subject) = (self.genesis.cluster_id(), Subject::Cache(self.cache()));
        let revocation = Revocation::new(cluster, subject, UnixTime(1_800_000_000));
        Record::Revoke(Signed::new(revocation, key))
    }

    fn cache_genesis(&self) -> CacheGenesis {
        CacheGenesis {
            name: "main".parse().unwrap(),
            owner: self.owner.public(),
            nonce: [3; 16],
        }
    }

    pub(crate) fn cache(&self) -> CacheId {
        self.cache_genesis().cache_id()
    }

    pub(crate) fn config(&self, version: u64) -> Record {
        self.config_of(self.cache_genesis(), version)
    }

    /// Another cache, of this name.
    pub(crate) fn other_cache(&self, name: &str, nonce: u8) -> (CacheId, Record) {
        let genesis = CacheGenesis {
            name: name.parse().unwrap(),
            nonce: [nonce; 16],
            ..self.cache_genesis()
        };
        (genesis.cache_id(), self.config_of(genesis, 1))
    }

    fn config_of(&self, genesis: CacheGenesis, version: u64) -> Record {
        let config = CacheConfig {
            genesis,
            version,
            public_keys: vec![self.cache_key.public()],
            priority: 40,
            public: true,
            store_dir: StoreDir::default(),
            retention: None,
            destroyed: false,
        };
        Record::Cache(Signed::new(config, &self.owner))
    }

    /// The `number`-th path, signed by the cache, with five references.
    pub(crate) fn path(&self, number: u32) -> PathRecord {
        let mut record = self.unsigned_path(number);
        let fingerprint = record.info.fingerprint(&StoreDir::default());
        record
            .info
            .add_signature(self.cache_key.sign(fingerprint.as_ref()));
        record
    }

    pub(crate) fn unsigned_path(&self, number: u32) -> PathRecord {
        let reference = |offset: u32| {
            let name = format!("dependency-{offset}-1.2.3");
            StorePath::new(path_hash(number + offset), &name).unwrap()
        };
        let name = format!("package-{number}-2.12.1");
        let bytes = number.to_le_bytes();
        let info = PathInfo {
            path: StorePath::new(path_hash(number), &name).unwrap(),
            nar_hash: NarHash::of(&bytes),
            nar_size: 226_560,
            references: (0..5).map(reference).collect(),
            deriver: StorePath::new(path_hash(number + 9), &format!("{name}.drv")).ok(),
            ca: None,
            signatures: Vec::new(),
        };
        PathRecord {
            cache: self.cache(),
            info,
            file_hash: FileHash::of(&bytes),
            file_size: 50_000,
            manifest: ManifestId::of(&bytes),
        }
    }

    pub(crate) fn directory(&self) -> Directory {
        Directory::new(self.genesis.clone(), Arc::new(NoKeys))
    }

    /// How the cache is set up, for its readers only.
    pub(crate) fn private_config(&self, version: u64) -> Record {
        let Record::Cache(open) = self.config(version) else {
            unreachable!("a configuration");
        };
        let config = CacheConfig {
            public: false,
            ..open.value().clone()
        };
        Record::Cache(Signed::new(config, &self.owner))
    }

    /// What the readers of the cache have in an epoch.
    pub(crate) fn keyring(&self, epoch: u32) -> Keyring {
        let mut keyring = Keyring::new(self.genesis.cluster_id());
        let key = EpochKey::derive(&[204; 32], epoch).unwrap();
        assert!(keyring.insert(self.cache(), key));
        keyring
    }

    /// A grant to read the cache, to node `number`, signed by this key.
    pub(crate) fn read_grant(&self, number: u8, epoch: u32, signer: &Identity) -> Record {
        let certificate = self.certificate(number, Scopes::all());
        let key = EpochKey::derive(&[204; 32], epoch).unwrap();
        let (genesis, random) = (self.cache_genesis(), [number; 32]);
        let grant = grant_read(signer, &genesis, &key, certificate.value(), random);
        Record::Grant(grant.unwrap())
    }

    pub(crate) fn owner(&self) -> &Identity {
        &self.owner
    }

    pub(crate) fn load(&self, log: &mut MemoryLog) -> Directory {
        Directory::load(self.genesis.clone(), Arc::new(NoKeys), log).unwrap()
    }

    /// A log that begins with the certificate of node `number`, who may write everything.
    pub(crate) fn writer(&self, number: u8) -> Writer {
        let mut writer = self.newcomer(number);
        let certificate = self.certificate(number, Scopes::all());
        writer.append(&[Record::Member(certificate)]);
        writer
    }

    /// An empty log.
    pub(crate) fn newcomer(&self, number: u8) -> Writer {
        let cluster = self.genesis.cluster_id();
        Writer {
            identity: Cluster::identity(number),
            place: Place {
                cluster,
                seq: 1,
                prev: SegmentId::before_first(&cluster),
                hlc: 1,
            },
            segments: Vec::new(),
        }
    }
}

pub(crate) fn path_hash(number: u32) -> StorePathHash {
    let mut bytes = [0; 20];
    bytes.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..20]);
    StorePathHash::from_bytes(bytes)
}

pub(crate) fn tag(number: u32) -> NarTag {
    NarTag::of(&NarHash::of(&number.to_le_bytes()))
}

pub(crate) fn del(dots: Vec<Dot>) -> Record {
    let reason = DelReason::Removed;
    Record::Del(Del { dots, reason })
}

/// Somebody who writes a log, honest or not.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) identity: Identity,
    pub(crate) place: Place,
    pub(crate) segments: Vec<Segment>,
}

impl Writer {
    pub(crate) fn node(&self) -> NodeId {
        self.identity.node_id()
    }

    /// Where the first record of the next segment will be.
    pub(crate) fn next_dot(&self) -> Dot {
        Dot {
            node: self.node(),
            seq: self.place.seq,
            index: 0,
        }
    }

    pub(crate) fn append(&mut self, records: &[Record]) -> Segment {
        let encoded = records.iter().map(|record| record.encode().unwrap());
        let body: Vec<u8> = encoded.collect::<Vec<_>>().concat();
        assert!(body.len() <= BODY_LEN_MAX);
        let segment = Segment::append(&self.identity, self.place, &body).unwrap();
        self.push(segment)
    }

    /// Appends what only those see who have the keys of `keyring`.
    pub(crate) fn append_sealed(
        &mut self,
        keyring: &Keyring,
        cache: CacheId,
        records: &[Record],
    ) -> Segment {
        let (node, seq) = (self.node(), self.place.seq);
        let seal = |(index, record): (u8, &Record)| {
            let mut nonce = [index; 24];
            nonce[..8].copy_from_slice(&seq.to_le_bytes());
            keyring.seal(node, cache, record, nonce).unwrap()
        };
        let sealed: Vec<Record> = (0..).zip(records).map(seal).collect();
        self.append(&sealed)
    }

    /// Restates these records, one part for each.
    pub(crate) fn checkpoint(&mut self, entries: &[(u64, u16, Record)]) {
        let parts = entries.len() as u32;
        for (part, (seq, index, record)) in (0..).zip(entries) {
            let body = Segment::restate(*seq, *index, &record.encode().unwrap());
            let segment =
                Segment::checkpoint(&self.identity, self.place, (part, parts), &body).unwrap();
            self.push(segment);
        }
    }

    fn push(&mut self, segment: Segment) -> Segment {
        self.place.seq += 1;
        self.place.prev = segment.id();
        self.place.hlc += 1;
        self.segments.push(segment.clone());
        segment
    }
}
