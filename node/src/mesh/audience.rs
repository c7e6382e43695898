//! Who may be asked for a path.
//!
//! A question tells whoever is asked what is asked for. Nix asks all its caches for every path, also
//! a public cache for what only a private one has; passed on to everybody, the question would tell
//! outsiders what the private cache has. So a path that is in a private cache, as far as is known
//! here, is asked for among the readers of that cache alone, whichever cache it is asked of; and one
//! that is in a private cache of this node alone is asked of nobody.
//!
//! What this cannot hide is a path that is asked for before this node knows that it is private: in
//! the moment that news of it takes, or because it is not pushed yet.

use std::sync::Weak;

use attic_p2p::ids::{CacheId, NodeId};
use attic_store::StorePathHash;

use crate::app::App;
use crate::caches::Cache;
use crate::mesh::view::DirectoryView;

/// Tells who may be asked.
#[derive(Clone)]
pub(crate) struct Audience {
    app: Weak<App>,
    view: DirectoryView,
}

impl Audience {
    pub(crate) fn new(app: Weak<App>, view: DirectoryView) -> Audience {
        Audience { app, view }
    }

    /// Those of `peers` who may be asked for a path of a cache, in their order. Blocks.
    pub(crate) fn of(
        &self,
        (cache, hash): (CacheId, StorePathHash),
        peers: Vec<NodeId>,
    ) -> Vec<NodeId> {
        let Some(app) = self.app.upgrade() else {
            return Vec::new();
        };
        let snapshot = app.caches.snapshot();
        let private = snapshot.values().filter(|local| !local.settings.public);
        let secret = private.filter(|local| self.has(&app, local, &hash));
        let mut circles: Vec<Option<CacheId>> =
            secret.map(|local| local.settings.shared_as).collect();
        circles.push(Some(cache));
        let is_in = |node: NodeId| {
            let mut circles = circles.iter();
            circles.all(|circle| circle.is_some_and(|cache| self.view.may_read(node, cache)))
        };
        peers.into_iter().filter(|node| is_in(*node)).collect()
    }

    /// Whether a cache has a path, here or elsewhere. In doubt it has.
    fn has(&self, app: &App, local: &Cache, hash: &StorePathHash) -> bool {
        let here = app.store.path(&local.name, hash);
        let elsewhere = |cache| self.view.is_said(cache, hash);
        !matches!(here, Ok(None)) || local.settings.shared_as.is_some_and(elsewhere)
    }
}
