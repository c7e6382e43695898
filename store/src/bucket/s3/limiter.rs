//! How many requests are under way at once: more while all goes well, half when the server is busy.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Semaphore, SemaphorePermit};

/// A bound on the requests under way that follows what the server bears.
#[derive(Debug)]
pub(super) struct Limiter {
    places: Semaphore,
    window: Mutex<Window>,
}

/// A request's place. Dropping it gives the place to the next that waits.
#[derive(Debug)]
pub(super) struct Place<'a> {
    limiter: &'a Limiter,
    permit: Option<SemaphorePermit<'a>>,
    /// How often the window had been halved when the request began.
    halvings: u64,
}

/// The arithmetic: pure.
#[derive(Debug)]
struct Window {
    len: usize,
    /// Answers towards the next place.
    answers: usize,
    /// Places that are taken away as soon as they are free.
    debt: usize,
    halvings: u64,
}

impl Limiter {
    pub(super) fn new() -> Limiter {
        Limiter {
            places: Semaphore::new(WINDOW_START),
            window: Mutex::new(Window::new()),
        }
    }

    /// Waits for a place, in the order of asking. Dropping the future gives up the wait.
    pub(super) async fn place(&self) -> Place<'_> {
        let permit = self.places.acquire().await;
        let halvings = self.window().halvings;
        Place {
            limiter: self,
            permit: Some(permit.expect("it is never closed")),
            halvings,
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().expect("no panic under this lock")
    }
}

impl Place<'_> {
    /// Notes an answer that says nothing against asking more.
    pub(super) fn answered(&self) {
        let grown = self.limiter.window().answered(self.halvings);
        self.limiter.places.add_permits(grown);
    }

    /// Notes that the server is busy.
    pub(super) fn throttled(&self) {
        let mut window = self.limiter.window();
        window.throttled(self.halvings);
        let taken = self.limiter.places.forget_permits(window.debt);
        window.debt -= taken;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut window = self.limiter.window();
        if window.debt > 0 {
            window.debt -= 1;
            self.permit
                .take()
                .into_iter()
                .for_each(SemaphorePermit::forget);
        }
    }
}

impl Window {
    fn new() -> Window {
        Window {
            len: WINDOW_START,
            answers: 0,
            debt: 0,
            halvings: 0,
        }
    }

    /// One place more for as many answers as there are places. Returns how many places to add now.
    fn answered(&mut self, halvings: u64) -> usize {
        if halvings != self.halvings || self.len >= WINDOW_MAX {
            return 0;
        }
        self.answers += 1;
        if self.answers < self.len {
            return 0;
        }
        self.answers = 0;
        self.len += 1;
        if self.debt > 0 {
            self.debt -= 1;
            return 0;
        }
        1
    }

    /// Halves the window, unless it was halved since the request began: those that were under way
    /// together are refused together, and count once.
    fn throttled(&mut self, halvings: u64) {
        if halvings != self.halvings {
            return;
        }
        self.halvings += 1;
        self.answers = 0;
        let len = (self.len / 2).max(WINDOW_MIN);
        self.debt += self.len - len;
        self.len = len;
    }
}

const WINDOW_START: usize = 16;
const WINDOW_MIN: usize = 4;
const WINDOW_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// The places that can be had without waiting.
    fn take_all(limiter: &Limiter) -> Vec<Place<'_>> {
        let mut context = Context::from_waker(Waker::noop());
        let mut places = Vec::new();
        while let Poll::Ready(place) = pin!(limiter.place()).as_mut().poll(&mut context) {
            places.push(place);
        }
        places
    }

    #[test]
    fn it_grows_by_one_for_each_round_of_answers_up_to_its_bound() {
        let limiter = Limiter::new();
        for expected in 16..WINDOW_MAX {
            let places = take_all(&limiter);
            assert_eq!(places.len(), expected);
            places.iter().for_each(Place::answered);
        }
        for _ in 0..3 {
            let places = take_all(&limiter);
            assert_eq!(places.len(), WINDOW_MAX);
            places.iter().for_each(Place::answered);
        }
    }

    #[test]
    fn requests_that_are_refused_together_halve_it_once() {
        let limiter = Limiter::new();
        let places = take_all(&limiter);
        places.iter().for_each(Place::throttled);
        // Answers to what was asked before say nothing of the new window.
        places.iter().for_each(Place::answered);
        drop(places);
        for expected in [8, 4, 4, 4] {
            let places = take_all(&limiter);
            assert_eq!(places.len(), expected);
            places[0].throttled();
        }
    }

    #[test]
    fn places_in_use_when_it_halves_are_taken_away_as_they_come_free() {
        let limiter = Limiter::new();
        let mut places = take_all(&limiter);
        places[0].throttled();
        places.truncate(9);
        assert_eq!(take_all(&limiter).len(), 0);
        places.truncate(7);
        assert_eq!(take_all(&limiter).len(), 1);
        drop(places);
        assert_eq!(take_all(&limiter).len(), 8);
    }

    #[test]
    fn a_wait_that_is_given_up_costs_no_place() {
        let limiter = Limiter::new();
        let mut context = Context::from_waker(Waker::noop());
        let places = take_all(&limiter);
        {
            let mut waiting = pin!(limiter.place());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            drop(places);
        }
        assert_eq!(take_all(&limiter).len(), WINDOW_START);
    }
}
