//! Tests of this crate through its public door, one module per area.

mod cluster;
mod collector;
mod directory;
mod golden;
mod membership;
mod network;
mod private;
mod relay;
mod replica;
