//! Integration tests of `attic-store`, one binary.

#[cfg(feature = "backends")]
mod backends;
#[cfg(feature = "backends")]
mod bucket;
#[cfg(feature = "backends")]
mod bucket_s3;
mod cache_info;
mod cache_name;
mod golden;
mod hash;
mod nar;
mod narinfo;
mod signature;
mod store_path;
