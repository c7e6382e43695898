//! Tests of the command line that need no node of its own: formats, files, exit codes, and the push
//! engine against a node made of nothing but memory and faults.

mod args;
mod cluster;
mod dump;
mod memory_cluster;
mod memory_node;
mod nix;
mod nix_conf;
mod path_info;
mod plan;
mod program;
mod push;
mod tree;
