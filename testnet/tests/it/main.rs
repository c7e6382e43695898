//! End-to-end tests: a real `attic-node`, real Nix, real faults.
//!
//! A test whose name begins with a letter and a number (`s4_…`) holds the row of that name in the
//! project's list of features true. Tests that need root fail without it, unless they are told to
//! be left out; `README.md` says how to run everything.

mod cluster;
mod contract;
mod crash;
mod fixtures;
mod gc;
mod manage;
mod mesh;
mod narinfo;
mod newer_nix;
mod next_substituter;
mod push;
mod s3;
mod s3_server;
mod sim;
mod substitute;
mod upstream;
