//! What the node says to anything that speaks HTTP: the contract with Nix, and the answers to what
//! no Nix would send.

mod connections;
mod limits;
mod reading;
mod resume;
mod uploads;
