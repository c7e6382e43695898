//! End-to-end tests: a real `attic-node`, real Nix, real faults.
//!
//! A test whose name begins with a letter and a number (`s4_…`) holds the row of that name in the
//! project's list of features true. Tests that need root say so and pass when they are run without
//! it; `README.md` says how to run everything.

mod contract;
mod crash;
mod fixtures;
mod gc;
mod manage;
mod push;
mod substitute;
