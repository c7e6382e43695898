//! The store's own sorted runs.

use std::error::Error;
use std::path::Path;

use attic_store::LocatorProbe;

use super::Table;
use crate::keys::{Id, Pack, Value};

pub struct RunsTable(LocatorProbe);

pub fn open(dir: &Path) -> Result<RunsTable, Box<dyn Error>> {
    Ok(RunsTable(LocatorProbe::open(dir)?))
}

impl Table for RunsTable {
    fn insert_pack(&mut self, pack: Pack, entries: &[(Id, Value)]) -> Result<(), Box<dyn Error>> {
        Ok(self.0.insert_pack(pack, entries.iter().copied())?)
    }

    fn settle(&mut self) -> Result<(), Box<dyn Error>> {
        Ok(self.0.settle()?)
    }

    fn get(&self, id: &Id) -> Result<Option<(Pack, Value)>, Box<dyn Error>> {
        Ok(self.0.lookup(*id)?)
    }
}
