//! Private caches: told to the whole cluster, understood by their readers.
//!
//! Every member keeps and forwards every log, so what a log says of a private cache is sealed with a
//! key that only its readers have. Sealed is all there is to say of it: how it is set up, its paths
//! with their hashes, names, references and signatures, its pins, and who holds which of its NARs.
//!
//! **What an outsider sees**, a member without the right to read the cache:
//!
//! - that there is a cache, by an id that follows from its name *and* a random number: names cannot
//!   be tried against it;
//! - which nodes say something of it, when, how often and how long it is; which of these records are
//!   withdrawn again (a removal names them by their place in the log, which says nothing);
//! - which nodes its owner made readers and signers, and when its key changed;
//! - the patterns in certificates. An invitation that names a cache says its name to everybody: a
//!   pattern with a `*`, or a name that means nothing, does not.
//!
//! It sees no name, no store path, no hash of a path, a NAR, a manifest or a chunk, and no public
//! key. It cannot tell whether something it knows by other ways is in the cache: questions about the
//! cache are put to readers only, and whoever is asked by somebody else answers as if there were
//! nothing. NARs and chunks go to whoever may read *some* cache that has the NAR; so what a public
//! cache has as well is no secret, and knowing a hash opens nothing.
//!
//! **What a reader can do** is anything with what it has read. A reader that is shut out keeps what
//! it has, and opens nothing that is said under the next key: its owner's node, which alone makes
//! keys, changes the key when it learns that a reader is none any more. Until then, and while the
//! owner's node is away, records go on under the old key; they reach the former reader only through
//! a member that breaks the rules, because no other talks to it.
//!
//! **Keys.** The keys of a cache form a chain that is walked backwards only ([`EpochKey`]): from
//! the newest everybody computes the older ones, so a reader is given one key whatever was before,
//! and nobody computes the next. A reader gets it in a [`Grant`] sealed to its node ([`grant_read`]),
//! together with the record that founded the cache: the cache's id is the hash of that record, and the
//! record names the key that must have signed the grant, so no other can be passed off.
//!
//! Who may write a private cache may read it: it cannot say what it may not see.
//!
//! [`Grant`]: crate::record::Grant

pub use crate::private::epoch_key::EpochKey;
pub use crate::private::keyring::{Keyring, SealRecordError};
pub use crate::private::read_grant::{grant_read, open_read_grant};

mod epoch_key;
mod keyring;
mod read_grant;
