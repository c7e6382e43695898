//! The node as clients see it: a real one per test, on a free port, spoken to over real sockets.

mod access;
mod admin;
mod harness;
mod life;
mod limits;
mod push;
mod read;
mod upload;
mod upstream;
