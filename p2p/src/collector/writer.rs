//! What a keeper does to call paths durable, once it knows which packs hold them.

use std::collections::{BTreeSet, VecDeque};

use attic_store::PackId;
use thiserror::Error;

use crate::ids::{Dot, NodeId};
use crate::journal::{
    CONDEMNATIONS, Condemnations, Reference, newest_condemnations, read_condemnations_key,
};

/// A keeper that makes paths durable, between two requests.
///
/// When a request fails it is dropped, and the paths begin again, with packs chosen anew. The references
/// stay in the journal; they name packs that may go, which hurts nobody as long as no record is called
/// durable on their account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Writer {
    /// References are to be written.
    Refer(Refer),
    /// All keys of condemnations are to be listed.
    List(List),
    /// Condemnations are to be read.
    Read(Read),
    /// Packs are to be looked for.
    Seek(Seek),
    /// It is known which records are durable.
    Done(Done),
}

/// References are to be written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refer {
    references: Vec<Reference>,
}

/// All keys of condemnations are to be listed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct List {
    references: Vec<Reference>,
}

/// Condemnations are to be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Read {
    references: Vec<Reference>,
    next: (NodeId, String),
    then: VecDeque<(NodeId, String)>,
    condemned: BTreeSet<PackId>,
}

/// Packs are to be looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seek {
    references: Vec<Reference>,
    packs: BTreeSet<PackId>,
    condemned: BTreeSet<PackId>,
}

/// It is known which records are durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Done {
    /// The records that are.
    pub durable: Vec<Dot>,
    /// Packs that nothing is to rely on: they are condemned, or gone. Records that refer to them need
    /// others.
    pub unreliable: BTreeSet<PackId>,
}

/// There is something among condemnations that cannot be understood: maybe of a newer version. Nothing
/// can be called durable as long as it is there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("object {0} is among condemnations and is none")]
pub struct Unreadable(pub String);

impl Writer {
    /// Begins with the packs that records need. New packs among them were written: the bucket said so.
    pub fn new(references: Vec<Reference>) -> Writer {
        Writer::Refer(Refer { references })
    }
}

impl Refer {
    /// What is to be written into the journal.
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// The bucket said that it has them all.
    pub fn written(self) -> Writer {
        Writer::List(List {
            references: self.references,
        })
    }
}

impl List {
    /// Goes on with all keys below [`CONDEMNATIONS`], of a listing that began after the references were
    /// written.
    ///
    /// **Errors**: [`Unreadable`].
    pub fn listed<'a>(self, keys: impl IntoIterator<Item = &'a str>) -> Result<Writer, Unreadable> {
        let keys: Vec<&str> = keys.into_iter().collect();
        // Tools that show directories make objects for them.
        let is_directory = |key: &str| key.starts_with(CONDEMNATIONS) && key.ends_with('/');
        let is_known = |key: &str| read_condemnations_key(key).is_some() || is_directory(key);
        if let Some(key) = keys.iter().find(|key| !is_known(key)) {
            return Err(Unreadable((*key).to_owned()));
        }
        let newest = newest_condemnations(keys);
        let to_read = newest.into_iter().flat_map(|(keeper, newest)| {
            let keys = newest.keys.into_iter();
            keys.map(move |key| (keeper, key.to_owned()))
        });
        Ok(read(self.references, to_read.collect(), BTreeSet::new()))
    }
}

impl Read {
    /// Whose condemnations are to be read, and under which key.
    pub fn next(&self) -> (&NodeId, &str) {
        (&self.next.0, &self.next.1)
    }

    /// They say this. If they are gone, a newer version has taken their place: drop the writer.
    pub fn read(self, condemnations: &Condemnations) -> Writer {
        let mut condemned = self.condemned;
        let packs = packs(&self.references).filter(|pack| condemnations.names(pack));
        condemned.extend(packs);
        read(self.references, self.then, condemned)
    }
}

fn read(
    references: Vec<Reference>,
    mut to_read: VecDeque<(NodeId, String)>,
    condemned: BTreeSet<PackId>,
) -> Writer {
    match to_read.pop_front() {
        Some(next) => Writer::Read(Read {
            references,
            next,
            then: to_read,
            condemned,
        }),
        None => Writer::Seek(Seek {
            packs: packs(&references)
                .filter(|pack| !condemned.contains(pack))
                .collect(),
            references,
            condemned,
        }),
    }
}

impl Seek {
    /// The packs of which is asked whether they are there.
    pub fn packs(&self) -> &BTreeSet<PackId> {
        &self.packs
    }

    /// Goes on with those that are, by looks that all began after the condemnations were read.
    pub fn sought(self, there: &BTreeSet<PackId>) -> Writer {
        let mut unreliable = self.condemned;
        unreliable.extend(self.packs.difference(there));
        let holds = |reference: &&Reference| {
            let mut packs = reference.packs.iter();
            packs.all(|(pack, _)| !unreliable.contains(pack))
        };
        let durable = self.references.iter().filter(holds);
        Writer::Done(Done {
            durable: durable.map(|reference| reference.dot).collect(),
            unreliable,
        })
    }
}

fn packs(references: &[Reference]) -> impl Iterator<Item = PackId> {
    let packs = references.iter().flat_map(|reference| &reference.packs);
    packs.map(|(pack, _)| *pack)
}
