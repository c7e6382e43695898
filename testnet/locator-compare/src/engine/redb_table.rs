//! redb 4: a copy-on-write B-tree in one file.

use std::error::Error;
use std::fs::create_dir_all;
use std::path::Path;

use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::{Table, decode, encode};
use crate::keys::{Id, Pack, Value};

pub struct RedbTable {
    db: Database,
    reader: Option<Reader>,
    packs: u64,
}

type Reader = ReadOnlyTable<[u8; 32], [u8; 28]>;

/// `cache_len` bytes of cache; there is no other.
pub fn open(dir: &Path, cache_len: u64) -> Result<RedbTable, Box<dyn Error>> {
    create_dir_all(dir)?;
    let db = Database::builder()
        .set_cache_size(cache_len as usize)
        .create(dir.join("redb"))?;
    let reader = db.begin_read()?.open_table(LOCATORS).ok();
    Ok(RedbTable {
        db,
        reader,
        packs: 0,
    })
}

impl Table for RedbTable {
    fn insert_pack(&mut self, pack: Pack, entries: &[(Id, Value)]) -> Result<(), Box<dyn Error>> {
        self.reader = None;
        self.packs += 1;
        let mut transaction = self.db.begin_write()?;
        // Space freed by commits that are not durable is reused only after a durable one.
        let durable = self.packs.is_multiple_of(PACKS_PER_SYNC);
        transaction.set_durability(if durable {
            Durability::Immediate
        } else {
            Durability::None
        })?;
        let mut table = transaction.open_table(LOCATORS)?;
        for (id, value) in entries {
            table.insert(id, encode(pack, *value))?;
        }
        drop(table);
        Ok(transaction.commit()?)
    }

    fn settle(&mut self) -> Result<(), Box<dyn Error>> {
        self.db.begin_write()?.commit()?;
        self.reader = Some(self.db.begin_read()?.open_table(LOCATORS)?);
        Ok(())
    }

    fn get(&self, id: &Id) -> Result<Option<(Pack, Value)>, Box<dyn Error>> {
        let reader = self.reader.as_ref().ok_or("not settled")?;
        reader
            .get(id)?
            .map(|value| decode(&value.value()))
            .transpose()
    }
}

const LOCATORS: TableDefinition<'_, [u8; 32], [u8; 28]> = TableDefinition::new("locators");
const PACKS_PER_SYNC: u64 = 100;
