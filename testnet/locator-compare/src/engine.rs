//! The tables compared, each behind the same two operations.

mod fjall_table;
mod redb_table;
mod runs_table;
mod sled_table;

use std::error::Error;
use std::fmt::{Display, Formatter};
use std::path::Path;
use std::str::FromStr;

use crate::keys::{Id, Pack, Value};

/// What a locator table must do; durability is not asked for, since packs are the truth.
pub trait Table {
    /// Inserts all entries of one pack.
    fn insert_pack(&mut self, pack: Pack, entries: &[(Id, Value)]) -> Result<(), Box<dyn Error>>;
    /// Returns once background work is done.
    fn settle(&mut self) -> Result<(), Box<dyn Error>>;
    /// Finds a chunk.
    fn get(&self, id: &Id) -> Result<Option<(Pack, Value)>, Box<dyn Error>>;
}

#[derive(Clone, Copy)]
pub enum Engine {
    Sled,
    Fjall,
    FjallPinned,
    Redb,
    RedbLarge,
    Runs,
}

impl Engine {
    pub fn open(self, dir: &Path) -> Result<Box<dyn Table>, Box<dyn Error>> {
        Ok(match self {
            Engine::Sled => Box::new(sled_table::open(dir)?),
            Engine::Fjall => Box::new(fjall_table::open(dir)?),
            Engine::FjallPinned => Box::new(fjall_table::open_pinned(dir)?),
            Engine::Redb => Box::new(redb_table::open(dir, CACHE_LEN)?),
            Engine::RedbLarge => Box::new(redb_table::open(dir, 4 * CACHE_LEN)?),
            Engine::Runs => Box::new(runs_table::open(dir)?),
        })
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Engine, String> {
        let found = ALL.into_iter().find(|engine| engine.to_string() == text);
        found.ok_or_else(|| format!("unknown engine {text}"))
    }
}

impl Display for Engine {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Engine::Sled => "sled",
            Engine::Fjall => "fjall",
            Engine::FjallPinned => "fjall-pinned",
            Engine::Redb => "redb",
            Engine::RedbLarge => "redb-large",
            Engine::Runs => "runs",
        })
    }
}

/// Pack and numbers as one 28-byte value, the way a key-value store keeps them.
fn encode(pack: Pack, value: Value) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..16].copy_from_slice(&pack);
    for (part, number) in bytes[16..].chunks_exact_mut(4).zip(value) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Result<(Pack, Value), Box<dyn Error>> {
    let number = |at: usize| -> Result<u32, Box<dyn Error>> {
        Ok(u32::from_le_bytes(
            bytes.get(at..at + 4).ok_or("short value")?.try_into()?,
        ))
    };
    let pack = bytes.get(..16).ok_or("short value")?.try_into()?;
    Ok((pack, [number(16)?, number(20)?, number(24)?]))
}

const ALL: [Engine; 6] = [
    Engine::Sled,
    Engine::Fjall,
    Engine::FjallPinned,
    Engine::Redb,
    Engine::RedbLarge,
    Engine::Runs,
];
/// User-space cache given to each engine, in bytes.
const CACHE_LEN: u64 = 16 << 20;
