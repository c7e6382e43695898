//! A bounded pool of threads for hashing and compressing chunks.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::frame::{FrameDecoder, FrameEncoder};

/// What a pool thread keeps between jobs.
pub(crate) struct Scratch {
    pub(crate) encoder: FrameEncoder,
    pub(crate) decoder: FrameDecoder,
}

type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// Threads that run jobs in no particular order.
///
/// At most one job a thread waits in the queue; [`Pool::submit`] blocks beyond that, so memory in
/// flight is bounded by the callers' windows plus two jobs a thread.
pub(crate) struct Pool {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads, at least one.
    pub(crate) fn new(threads: usize) -> Pool {
        let threads = threads.max(1);
        let (jobs, queue) = sync_channel::<Job>(threads);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..threads)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || run(&queue))
            })
            .collect();
        Pool {
            jobs: Some(jobs),
            threads,
        }
    }

    /// Queues a job; its result arrives at the receiver. Blocks while the queue is full.
    ///
    /// A job that panics closes its receiver without a result.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Scratch) -> T + Send + 'static,
    ) -> Receiver<T> {
        let (done, result) = sync_channel(1);
        let job: Job = Box::new(move |scratch| {
            // The caller may have given up; then nobody wants the result.
            let _ = done.send(job(scratch));
        });
        let jobs = self
            .jobs
            .as_ref()
            .expect("the sender lives until the pool is dropped");
        jobs.send(job)
            .expect("pool threads live until the pool is dropped");
        result
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // The last job may hold the last handle of the pool's owner, and end here.
            if thread.thread().id() != thread::current().id() {
                // Jobs' panics are caught, so a thread ends only when the queue closes.
                let _ = thread.join();
            }
        }
    }
}

fn run(queue: &Mutex<Receiver<Job>>) {
    let mut scratch = Scratch {
        encoder: FrameEncoder::new(),
        decoder: FrameDecoder::new(),
    };
    loop {
        let job = queue.lock().expect("receiving does not panic").recv();
        let Ok(job) = job else { return };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&mut scratch)));
        if outcome.is_err() {
            tracing::error!("a chunk job panicked; its upload fails");
            scratch = Scratch {
                encoder: FrameEncoder::new(),
                decoder: FrameDecoder::new(),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_arrive_and_a_panic_harms_only_its_own_job() {
        let pool = Pool::new(2);
        let bad = pool.submit(|_| -> u32 { panic!("on purpose") });
        let good: Vec<_> = (0..20u32).map(|n| pool.submit(move |_| n * 2)).collect();
        assert!(bad.recv().is_err());
        let results: Vec<u32> = good.iter().map(|r| r.recv().expect("a result")).collect();
        assert_eq!(results, (0..20).map(|n| n * 2).collect::<Vec<_>>());
    }
}
