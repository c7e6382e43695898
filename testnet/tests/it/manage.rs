//! The verbs that are not `push`: what a person types to look at a node and to change it.

mod caches;
mod settings;
mod use_cache;
