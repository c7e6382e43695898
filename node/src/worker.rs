//! Background work under one contract.
//!
//! A worker does one bounded piece of work at a time and says when it wants to do the next. A
//! failure is logged and tried again, each time later; it never ends the worker.

use std::error::Error;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::http::error::chain;

/// Something the node does by itself.
pub(crate) trait Worker: Send + 'static {
    /// For the log.
    const NAME: &'static str;
    /// Why a piece of work failed.
    type Error: Error + Send + Sync + 'static;

    /// Does one piece of work, and returns how long to rest. Always run to its end.
    fn step(&mut self) -> impl Future<Output = Result<Duration, Self::Error>> + Send;
}

/// The workers of a node.
pub(crate) struct Workers {
    tasks: JoinSet<()>,
    stop: watch::Receiver<bool>,
}

impl Workers {
    /// No workers yet; those to come run until `stop` turns true.
    pub(crate) fn new(stop: watch::Receiver<bool>) -> Workers {
        Workers {
            tasks: JoinSet::new(),
            stop,
        }
    }

    /// Starts a worker.
    pub(crate) fn spawn<W: Worker>(&mut self, worker: W) {
        self.tasks.spawn(run(worker, self.stop.clone()));
    }

    /// Waits for the pieces of work under way, up to `patience`.
    pub(crate) async fn finish(mut self, patience: Duration) {
        let all = async {
            while let Some(done) = self.tasks.join_next().await {
                if let Err(error) = done {
                    tracing::error!(cause = chain(&error), "worker ended");
                }
            }
        };
        if timeout(patience, all).await.is_err() {
            tracing::warn!("background work did not finish in time");
        }
        self.tasks.shutdown().await;
    }
}

async fn run<W: Worker>(mut worker: W, mut stop: watch::Receiver<bool>) {
    let mut failures = 0;
    while !*stop.borrow() {
        let rest = match worker.step().await {
            Ok(rest) => {
                failures = 0;
                rest
            }
            Err(error) => {
                failures += 1;
                let rest = backoff(failures);
                tracing::error!(
                    worker = W::NAME,
                    cause = chain(&error),
                    ?rest,
                    "worker failed"
                );
                rest
            }
        };
        tokio::select! {
            () = sleep(rest) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// One second after the first failure, then twice as long each time, up to five minutes.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    Duration::from_secs(1 << doublings).min(Duration::from_secs(300))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn failures_are_tried_again_ever_later() {
        let seconds = |failures| backoff(failures).as_secs();
        assert_eq!(
            [1, 2, 3, 9, 10, 1000].map(seconds),
            [1, 2, 4, 256, 300, 300]
        );
    }

    /// Fails on its first step, and then counts.
    struct Counting {
        steps: Arc<AtomicU32>,
        done: Arc<Notify>,
    }

    impl Worker for Counting {
        const NAME: &'static str = "counting";
        type Error = io::Error;

        async fn step(&mut self) -> Result<Duration, io::Error> {
            if self.steps.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.done.notify_one();
            Ok(Duration::from_secs(3600))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_does_not_end_a_worker_and_a_stop_does() {
        let (stop, stopped) = watch::channel(false);
        let (steps, done) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let mut workers = Workers::new(stopped);
        workers.spawn(Counting {
            steps: Arc::clone(&steps),
            done: Arc::clone(&done),
        });
        done.notified().await;
        stop.send(true).unwrap();
        workers.finish(Duration::from_secs(60)).await;
        assert_eq!(steps.load(Ordering::Relaxed), 2);
    }
}
