//! sled 0.34: a lock-free B-tree over a log.

use std::error::Error;
use std::path::Path;

use sled::{Batch, Config, Db};

use super::{CACHE_LEN, Table, decode, encode};
use crate::keys::{Id, Pack, Value};

pub struct SledTable(Db);

pub fn open(dir: &Path) -> Result<SledTable, Box<dyn Error>> {
    let config = Config::new()
        .path(dir)
        .cache_capacity(CACHE_LEN)
        .flush_every_ms(Some(5_000));
    Ok(SledTable(config.open()?))
}

impl Table for SledTable {
    fn insert_pack(&mut self, pack: Pack, entries: &[(Id, Value)]) -> Result<(), Box<dyn Error>> {
        let mut batch = Batch::default();
        for (id, value) in entries {
            batch.insert(id, &encode(pack, *value));
        }
        Ok(self.0.apply_batch(batch)?)
    }

    fn settle(&mut self) -> Result<(), Box<dyn Error>> {
        self.0.flush()?;
        Ok(())
    }

    fn get(&self, id: &Id) -> Result<Option<(Pack, Value)>, Box<dyn Error>> {
        self.0.get(id)?.map(|value| decode(&value)).transpose()
    }
}
