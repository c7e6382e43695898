//! SIGINT and SIGTERM.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals, caught from now on.
pub(super) struct Signals {
    caught: Option<(Signal, Signal)>,
}

impl Signals {
    /// Catches them. Where that is impossible the system stops the program by itself.
    pub(super) fn new() -> Signals {
        let interrupt = signal(SignalKind::interrupt());
        let terminate = signal(SignalKind::terminate());
        Signals {
            caught: interrupt.ok().zip(terminate.ok()),
        }
    }

    /// Returns when the next of them comes. Dropping it is safe.
    pub(super) async fn next(&mut self) {
        match &mut self.caught {
            Some((interrupt, terminate)) => tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            },
            None => std::future::pending().await,
        }
    }
}
