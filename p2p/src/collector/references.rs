//! What journals say of which records need which packs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use attic_store::PackId;
use thiserror::Error;

use crate::ids::{Dot, NodeId};
use crate::journal::Reference;

/// All references of all journals. None is ever withdrawn: one counts as long as its record lives.
///
/// **Memory**: 16 bytes for each reference, 8 for each pack that it names.
#[derive(Debug, Default)]
pub struct References {
    nodes: Vec<NodeId>,
    node_numbers: BTreeMap<NodeId, u16>,
    packs: Vec<PackId>,
    pack_numbers: HashMap<PackId, u32>,
    rows: Vec<Row>,
    needs: Vec<Need>,
}

/// A reference, without its packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    node: u16,
    index: u16,
    seq: u32,
    /// Of its packs, in `needs`.
    first: u32,
    count: u32,
}

/// A pack that a record needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// Number of the pack.
    pub(super) pack: u32,
    /// The bytes it needs of it.
    pub(super) len: u32,
}

/// Whether a record lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It lives, and a keeper called it durable.
    Durable,
    /// It lives.
    Live,
    /// It was removed, or replaced, so lately that somebody may still be reading.
    Lingering,
    /// It is not known here whether it lives: its log is not folded so far, or it is sealed for others.
    Unknown,
    /// Its author's log is folded beyond it, and it was removed, replaced, or does not count.
    Dead,
}

impl Life {
    /// Whether it is certain that nobody needs what the record needs.
    pub fn is_over(self) -> bool {
        self == Life::Dead
    }
}

/// More nodes, packs or references than can be numbered. Nothing may be collected by what was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("more references than can be kept in memory")]
pub struct ReferencesFull;

impl References {
    /// Adds what an entry of a journal says. Whose it is does not matter: what a keeper says that is none
    /// any more, or never was, can only keep packs.
    ///
    /// **Errors**: [`ReferencesFull`].
    pub fn add(&mut self, reference: &Reference) -> Result<(), ReferencesFull> {
        let Dot { node, seq, index } = reference.dot;
        // No segment has a number beyond that, so no record has that dot; its packs were named all the same.
        let Ok(seq) = u32::try_from(seq) else {
            let mut packs = reference.packs.iter();
            return packs.try_for_each(|(pack, _)| self.number(*pack).map(|_| ()));
        };
        let node = self.node_number(node)?;
        let first = u32::try_from(self.needs.len()).map_err(|_| ReferencesFull)?;
        for (pack, len) in &reference.packs {
            let pack = self.number(*pack)?;
            self.needs.push(Need { pack, len: *len });
        }
        let count = self.needs.len() - first as usize;
        let count = u32::try_from(count).map_err(|_| ReferencesFull)?;
        self.rows.push(Row {
            node,
            index,
            seq,
            first,
            count,
        });
        Ok(())
    }

    /// Number of references.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Which of these packs records need that live, or may live.
    pub fn referred(
        &self,
        packs: &BTreeSet<PackId>,
        mut life: impl FnMut(&Dot) -> Life,
    ) -> BTreeSet<PackId> {
        let mut asked: HashMap<u32, bool> = HashMap::new();
        let numbers = packs.iter().filter_map(|pack| self.pack_numbers.get(pack));
        asked.extend(numbers.map(|number| (*number, false)));
        for row in &self.rows {
            let is_asked = |need: &&Need| asked.get(&need.pack) == Some(&false);
            if !self.needs_of(row).iter().any(|need| is_asked(&need))
                || life(&self.dot(row)).is_over()
            {
                continue;
            }
            for need in self.needs_of(row) {
                asked
                    .entry(need.pack)
                    .and_modify(|is_referred| *is_referred = true);
            }
        }
        let referred = asked.into_iter().filter(|(_, is_referred)| *is_referred);
        referred
            .map(|(number, _)| self.packs[number as usize])
            .collect()
    }

    /// The records, dead or alive, that need one of these packs. Whoever called them durable must not be
    /// believed any more once the packs are doomed: a record that was removed can come back, when the word
    /// of who removed it does not count any more.
    pub fn records_of(&self, packs: &BTreeSet<PackId>) -> BTreeSet<Dot> {
        let numbers = packs.iter().filter_map(|pack| self.pack_numbers.get(pack));
        let numbers: BTreeSet<u32> = numbers.copied().collect();
        let needs_one = |row: &&Row| {
            self.needs_of(row)
                .iter()
                .any(|need| numbers.contains(&need.pack))
        };
        let rows = self.rows.iter().filter(needs_one);
        rows.map(|row| self.dot(row)).collect()
    }

    /// Every record with all references to it, each once.
    pub(super) fn each_record(&self, mut look: impl FnMut(Dot, &[&[Need]])) {
        let mut order: Vec<u32> = (0..self.rows.len() as u32).collect();
        let key = |row: &u32| {
            let Row {
                node, seq, index, ..
            } = self.rows[*row as usize];
            (node, seq, index)
        };
        order.sort_unstable_by_key(key);
        for group in order.chunk_by(|one, next| key(one) == key(next)) {
            let rows = group.iter().map(|row| &self.rows[*row as usize]);
            let needs: Vec<&[Need]> = rows.clone().map(|row| self.needs_of(row)).collect();
            if let Some(row) = rows.into_iter().next() {
                look(self.dot(row), &needs);
            }
        }
    }

    /// The packs that are named, by their numbers.
    pub(super) fn packs(&self) -> &[PackId] {
        &self.packs
    }

    fn needs_of(&self, row: &Row) -> &[Need] {
        let first = row.first as usize;
        &self.needs[first..first + row.count as usize]
    }

    fn dot(&self, row: &Row) -> Dot {
        Dot {
            node: self.nodes[usize::from(row.node)],
            seq: u64::from(row.seq),
            index: row.index,
        }
    }

    fn node_number(&mut self, node: NodeId) -> Result<u16, ReferencesFull> {
        if let Some(number) = self.node_numbers.get(&node) {
            return Ok(*number);
        }
        let number = u16::try_from(self.nodes.len()).map_err(|_| ReferencesFull)?;
        self.nodes.push(node);
        self.node_numbers.insert(node, number);
        Ok(number)
    }

    fn number(&mut self, pack: PackId) -> Result<u32, ReferencesFull> {
        if let Some(number) = self.pack_numbers.get(&pack) {
            return Ok(*number);
        }
        let number = u32::try_from(self.packs.len()).map_err(|_| ReferencesFull)?;
        self.packs.push(pack);
        self.pack_numbers.insert(pack, number);
        Ok(number)
    }
}
