//! fjall 3: a log-structured merge tree.

use std::error::Error;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use fjall::config::{
    BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PartitioningPolicy, PinningPolicy,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use super::{CACHE_LEN, Table, decode, encode};
use crate::keys::{Id, Pack, Value};

pub struct FjallTable {
    db: Database,
    keyspace: Keyspace,
}

/// As it comes, with a smaller memtable and cache.
pub fn open(dir: &Path) -> Result<FjallTable, Box<dyn Error>> {
    open_with(dir, small_memtable())
}

/// Filters and index blocks of all levels whole and held in memory.
pub fn open_pinned(dir: &Path) -> Result<FjallTable, Box<dyn Error>> {
    let bloom = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
    let options = small_memtable()
        .filter_policy(FilterPolicy::all(bloom))
        .filter_block_pinning_policy(PinningPolicy::all(true))
        .index_block_pinning_policy(PinningPolicy::all(true))
        .filter_block_partitioning_policy(PartitioningPolicy::all(false))
        .index_block_partitioning_policy(PartitioningPolicy::all(false));
    open_with(dir, options)
}

fn small_memtable() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_LEN)
}

fn open_with(dir: &Path, options: KeyspaceCreateOptions) -> Result<FjallTable, Box<dyn Error>> {
    let builder = Database::builder(dir)
        .cache_size(CACHE_LEN)
        .max_journaling_size(64 << 20);
    // With one worker a fast writer fills the worker's queue and fjall 3.1 hangs for ever.
    let db = builder.worker_threads(2).open()?;
    let keyspace = db.keyspace("locators", || options)?;
    Ok(FjallTable { db, keyspace })
}

impl Table for FjallTable {
    fn insert_pack(&mut self, pack: Pack, entries: &[(Id, Value)]) -> Result<(), Box<dyn Error>> {
        let mut batch = self.db.batch();
        for (id, value) in entries {
            batch.insert(&self.keyspace, *id, encode(pack, *value));
        }
        Ok(batch.commit()?)
    }

    fn settle(&mut self) -> Result<(), Box<dyn Error>> {
        self.keyspace.rotate_memtable_and_wait()?;
        let mut calm = 0;
        while calm < 5 {
            sleep(Duration::from_millis(200));
            let busy = self.db.outstanding_flushes() > 0 || self.db.active_compactions() > 0;
            calm = if busy { 0 } else { calm + 1 };
        }
        eprintln!(
            "tables {} in level 0 {}",
            self.keyspace.table_count(),
            self.keyspace.l0_table_count()
        );
        Ok(())
    }

    fn get(&self, id: &Id) -> Result<Option<(Pack, Value)>, Box<dyn Error>> {
        self.keyspace
            .get(id)?
            .map(|value| decode(&value))
            .transpose()
    }
}

const MEMTABLE_LEN: u64 = 8 << 20;
