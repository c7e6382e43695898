//! The keys of a simulated cluster, and what is signed with them. All of it follows from a seed.

use attic_p2p::identity::Identity;
use attic_p2p::ids::{CacheId, ManifestId, NodeId};
use attic_p2p::membership::Role;
use attic_p2p::membership::certificate::{Certificate, Holder, Issuer};
use attic_p2p::membership::genesis::{ClusterKey, Genesis};
use attic_p2p::membership::revocation::{Revocation, Subject};
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::membership::sealing::OpeningKey;
use attic_p2p::membership::time::UnixTime;
use attic_p2p::record::{CacheConfig, CacheGenesis, PathRecord, Record};
use attic_p2p::signed::Signed;
use attic_store::{FileHash, NarHash, PathInfo, SecretKey, StoreDir, StorePath, StorePathHash};

/// When a simulation begins, in seconds since 1970.
pub(crate) const EPOCH: u64 = 1_800_000_000;

/// The keys of a cluster and of its one cache.
pub(crate) struct Charter {
    seed: u64,
    key: ClusterKey,
    pub(crate) genesis: Genesis,
    owner: Identity,
    cache_key: SecretKey,
    /// Of somebody who would like it to be the cache's.
    other_key: SecretKey,
}

impl Charter {
    pub(crate) fn new(seed: u64) -> Charter {
        let key = ClusterKey::from_seed(derive(seed, "cluster", 0));
        let name = "office".parse().expect("a cluster's name");
        let nonce = *derive(seed, "nonce", 0).first_chunk().expect("16 of 32");
        let cache_key = |what| {
            let key = SecretKey::generate("office-1", derive(seed, what, 0));
            key.expect("a key's name")
        };
        Charter {
            seed,
            genesis: key.found(name, nonce),
            key,
            owner: Identity::from_seed(derive(seed, "owner", 0)),
            cache_key: cache_key("cache"),
            other_key: cache_key("other"),
        }
    }

    /// The identity of the `number`-th node.
    pub(crate) fn identity(&self, number: usize) -> Identity {
        Identity::from_seed(derive(self.seed, "node", number))
    }

    /// A certificate of the cluster, made when the simulation begins.
    pub(crate) fn certificate(&self, of: &Identity, scopes: Scopes) -> Signed<Certificate> {
        let holder = Holder {
            node: of.node_id(),
            sealing_key: OpeningKey::of(of).sealing_key(),
            role: Role::Member,
            scopes,
        };
        let cluster = self.genesis.cluster_id();
        let serial = *of.node_id().as_bytes().first_chunk().expect("16 of 32");
        let issuer = Issuer::Cluster;
        let certificate = Certificate::new(cluster, holder, issuer, UnixTime(EPOCH), serial);
        Signed::new(certificate, &self.key)
    }

    /// Takes `node` out of the cluster; of its log what is beyond `upto_seq` does not count.
    pub(crate) fn revocation(&self, node: NodeId, upto_seq: u64) -> Signed<Revocation> {
        let cluster = self.genesis.cluster_id();
        let mut revocation = Revocation::new(cluster, Subject::Node(node), UnixTime(EPOCH));
        revocation.upto_seq = Some(upto_seq);
        Signed::new(revocation, &self.key)
    }

    fn cache_genesis(&self) -> CacheGenesis {
        CacheGenesis {
            name: "main".parse().expect("a cache's name"),
            owner: self.owner.node_id(),
            nonce: [3; 16],
        }
    }

    /// The cluster's cache.
    pub(crate) fn cache(&self) -> CacheId {
        self.cache_genesis().cache_id()
    }

    /// The record that sets the cache up.
    pub(crate) fn config(&self) -> Record {
        let config = CacheConfig {
            genesis: self.cache_genesis(),
            version: 1,
            public_keys: vec![self.cache_key.public()],
            priority: 40,
            public: true,
            store_dir: StoreDir::default(),
            retention: None,
            destroyed: false,
        };
        Record::Cache(Signed::new(config, &self.owner))
    }

    /// The `number`-th path, of `len` bytes, signed by the cache.
    pub(crate) fn path(&self, number: usize, len: u64) -> PathRecord {
        self.signed(self.unsigned(number, len), &self.cache_key)
    }

    /// A path that the cache never had, signed with a key that only has the right name.
    pub(crate) fn forged_path(&self, number: usize) -> PathRecord {
        self.signed(
            self.unsigned(FORGED_FROM + number, 1 << 20),
            &self.other_key,
        )
    }

    fn signed(&self, mut path: PathRecord, key: &SecretKey) -> PathRecord {
        let fingerprint = path.info.fingerprint(&StoreDir::default());
        let signature = key.sign(fingerprint.as_ref());
        path.info.add_signature(signature);
        path
    }

    fn unsigned(&self, number: usize, len: u64) -> PathRecord {
        let name = format!("package-{number}-2.12.1");
        let references = (1..=REFERENCES).map(|back| {
            let number = number.saturating_sub(back);
            store_path(number, &format!("package-{number}-2.12.1"))
        });
        let content = derive(self.seed, "nar", number);
        PathRecord {
            cache: self.cache(),
            info: PathInfo {
                path: store_path(number, &name),
                nar_hash: NarHash::of(&content),
                nar_size: 3 * len,
                references: references.collect(),
                deriver: Some(store_path(usize::MAX - number, &format!("{name}.drv"))),
                ca: None,
                signatures: Vec::new(),
            },
            file_hash: FileHash::of(&content),
            file_size: len,
            manifest: ManifestId::of(&content),
        }
    }
}

fn store_path(number: usize, name: &str) -> StorePath {
    let hash = blake3::hash(&number.to_le_bytes());
    let hash = *hash.as_bytes().first_chunk().expect("20 of 32 bytes");
    StorePath::new(StorePathHash::from_bytes(hash), name).expect("a path's name")
}

fn derive(seed: u64, what: &str, number: usize) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(what.as_bytes());
    hasher.update(&number.to_le_bytes());
    *hasher.finalize().as_bytes()
}

/// About as many as a path has.
const REFERENCES: usize = 5;
/// Numbers of paths that nobody pushed.
const FORGED_FROM: usize = 1 << 32;
