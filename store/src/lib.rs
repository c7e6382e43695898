//! Store paths, hashes, narinfo, chunks and packs: what a binary cache is made of.
//!
//! The crate has two halves. The *core* is pure: it parses, prints, hashes, cuts and decides, and
//! touches neither disk, network, clock nor environment. The *backends* (feature `backends`) keep
//! it all on disk, and ask object stores (`bucket`).
//!
//! Five words to know:
//!
//! - a **chunk** is a piece of a NAR, cut by content ([`chunker`]) and named by its BLAKE3
//!   ([`ChunkId`]);
//! - a **frame** is a chunk compressed by itself ([`mod@frame`]); frames end to end are a `.nar.zst`;
//! - a **manifest** lists the chunks of one NAR ([`manifest`]);
//! - a **record** is a frame, a manifest or a change of metadata with a self-describing header
//!   ([`record`]);
//! - a **pack** is a file of records. Packs alone are the truth; everything else is rebuilt from
//!   them.
//!
//! ```
//! use attic_store::{StoreDir, TrustedKeys};
//! use attic_store::narinfo::{NarInfo, Unverified};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let text = include_str!("../tests/golden/narinfo/app-zstd.narinfo");
//! let dir = StoreDir::default();
//! let info = NarInfo::parse(text.as_bytes(), &dir)?;
//! println!("{} is {} bytes of NAR", info.info.path, info.info.nar_size);
//! assert!(Unverified::new(info).verify(&TrustedKeys::default(), &dir).is_err());
//! # Ok(())
//! # }
//! ```
//!
//! # How the chunk length was chosen
//!
//! Measured by `cargo run --release -p testnet -- bench chunking` on 19 large Debian packages as
//! store paths (L1, 1,874 MB of NAR), the next versions of seven of them (L2, 913 MB) and 200 small
//! ones (S, 54 MB). "L2 after L1" is what L2 adds to a store that has L1. Sizes are MB; CPU is
//! seconds per GB of new chunks to compress and to decompress.
//!
//! | FastCDC min/avg/max KiB | cuts at files | chunks | mean KiB | L1 unique | L2 after L1, unique | zstd 1: L1, L2 | zstd 2: L1, L2 | zstd 3: L1, L2 | zstd 5: L1, L2 | CPU zstd 1/2/3/5 | CPU decode |
//! |---|---|---|---|---|---|---|---|---|---|---|---|
//! | 16/64/256 | no | 28,983 | 82 | 1,847.6 | 539.5 | 723.3, 224.6 | 700.3, 217.0 | 688.9, 213.6 | 663.8, 206.1 | 2.6/3.0/5.2/8.0 | 0.96 |
//! | 16/64/256 | ≥ 64 KiB | 31,141 | 76 | 1,843.9 | 537.9 | 723.0, 224.0 | 700.3, 216.4 | 688.7, 213.0 | 663.8, 205.5 | 2.9/2.8/4.5/8.4 | 1.05 |
//! | **32/128/512** | **no** | **14,621** | **165** | **1,850.3** | **560.8** | 711.2, 228.1 | **686.0, 219.8** | 667.7, 214.0 | 651.7, 209.1 | 2.6/3.2/5.1/9.4 | 1.06 |
//! | 32/128/512 | ≥ 128 KiB | 15,750 | 152 | 1,848.0 | 558.6 | 710.4, 226.9 | 685.3, 218.6 | 667.0, 212.9 | 651.0, 208.0 | 2.7/3.4/4.4/10.3 | 0.96 |
//! | 64/256/1024 | no | 7,628 | 320 | 1,854.5 | 590.3 | 713.5, 239.3 | 682.6, 228.3 | 657.4, 220.3 | 637.9, 213.9 | 2.6/3.3/4.1/9.6 | 1.09 |
//! | 64/256/1024 | ≥ 256 KiB | 8,304 | 293 | 1,852.2 | 588.6 | 712.2, 238.4 | 681.5, 227.4 | 656.5, 219.5 | 637.0, 213.1 | 2.4/3.0/4.5/9.7 | 0.89 |
//!
//! What decided:
//!
//! - *128 KiB*. Smaller chunks find more to share but compress worse and double every table; larger
//!   ones lose on versions what they gain on compression. Stored bytes of both versions together are
//!   lowest at 128 KiB (905.8 MB against 917.3 and 910.9).
//! - *The plain stream*. Cutting at file boundaries as well saves 0.1 to 0.4 % of the bytes and costs
//!   a rule that every implementation must share; FastCDC finds the boundaries back by itself after
//!   at most one chunk.
//! - *zstd 2*. Level 3 stores 2.7 % less for 60 % more CPU. Attic's default (level 8, 64 KiB chunks)
//!   stores L1 in 669 MB.

#[cfg(feature = "backends")]
pub mod bucket;
pub mod cache_info;
pub mod cache_name;
pub mod chunker;
pub mod frame;
pub mod hash;
pub mod liveness;
pub mod manifest;
pub mod nar;
pub mod narinfo;
pub mod nixbase32;
pub mod pack_id;
pub mod record;
pub mod references;
pub mod signature;
pub mod store_path;

mod base64;
mod text_form;

#[cfg(feature = "backends")]
mod collect;
#[cfg(feature = "backends")]
mod error;
#[cfg(feature = "backends")]
mod evicted;
#[cfg(feature = "backends")]
mod import;
#[cfg(feature = "backends")]
mod index;
#[cfg(feature = "backends")]
mod lease;
#[cfg(feature = "backends")]
mod locator;
#[cfg(feature = "backends")]
mod pack;
#[cfg(feature = "backends")]
mod pack_set;
#[cfg(feature = "backends")]
mod pool;
#[cfg(feature = "backends")]
mod reader;
#[cfg(feature = "backends")]
mod store;
#[cfg(feature = "backends")]
mod verify;

pub use cache_info::CacheInfo;
pub use cache_name::CacheName;
pub use hash::{ChunkId, FileHash, NarHash};
pub use narinfo::{NarInfo, PathInfo};
pub use pack_id::PackId;
pub use signature::{Fingerprint, PublicKey, SecretKey, Signature, TrustedKeys};
pub use store_path::{StoreDir, StorePath, StorePathHash};

#[cfg(feature = "backends")]
pub use collect::{CollectOptions, CollectReport};
#[cfg(feature = "backends")]
pub use error::{ImportError, StoreError};
#[cfg(feature = "backends")]
pub use import::{Assembled, Imported};
#[cfg(feature = "backends")]
pub use index::NarRow;
#[cfg(feature = "backends")]
pub use lease::Lease;
#[cfg(feature = "backends")]
pub use locator::LocatorError;
#[cfg(feature = "backends")]
#[doc(hidden)]
pub use locator::LocatorProbe;
#[cfg(feature = "backends")]
pub use reader::{BLOCK_LEN, BlockReader, NarReader};
#[cfg(feature = "backends")]
pub use store::{Options, Store, Usage};
#[cfg(feature = "backends")]
pub use verify::{DamagedNar, VerifyOptions, VerifyProgress, VerifyReport};
