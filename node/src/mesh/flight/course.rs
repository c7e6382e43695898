//! The scheduler of one flight, with what its numbers stand for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use attic_p2p::fetch::{
    Action, BanReason, Event, Fetch, FetchError, FetchOptions, FetchStats, RequestId, Tier,
};
use attic_p2p::ids::NodeId;
use attic_p2p::wire::{Have, SegmentSet};

use super::intake::{Arrival, Checked};
use super::state::{Plan, Shared};
use crate::auth::random;
use crate::mesh::exchange::{BanCause, Exchange};
use crate::mesh::link::{Answer, AskId, Asked, Listener, Question};

/// A download under way.
pub(super) struct Course {
    flight: Arc<Shared>,
    plan: Arc<Plan>,
    exchange: Exchange,
    listener: Listener,
    fetch: Fetch,
    /// Requests that were sent and not answered in full.
    requests: BTreeMap<RequestId, Request>,
    /// What the answers of links belong to. An entry outlives its request, so that what arrives
    /// late still counts.
    asks: BTreeMap<AskId, RequestId>,
    /// Frames to be verified. Bounded by the memory that all links share.
    pub(super) arrivals: VecDeque<Arrival>,
    /// Segments that nobody was told of yet.
    pub(super) gained: Vec<u32>,
    /// Whether sources are wanted that are not known.
    pub(super) searching: bool,
    over: Option<Result<(), FetchError>>,
}

/// A request for chunks.
struct Request {
    asked: Asked,
    /// Chunks of which nothing was heard yet.
    left: u32,
}

impl Course {
    pub(super) fn new(
        flight: Arc<Shared>,
        plan: Arc<Plan>,
        exchange: Exchange,
        listener: Listener,
    ) -> Course {
        let options = FetchOptions {
            me: exchange.me(),
            nar: flight.wanted.nar,
            layout: Arc::clone(&plan.layout),
            // Chunks go to disk, so a client that is slow costs no memory.
            read_ahead: u64::MAX,
            seed: u64::from_be_bytes(random()),
        };
        let fetch = Fetch::new(exchange.with_peers(|now, _| now), options);
        Course {
            flight,
            plan,
            exchange,
            listener,
            fetch,
            requests: BTreeMap::new(),
            asks: BTreeMap::new(),
            arrivals: VecDeque::new(),
            gained: Vec::new(),
            searching: false,
            over: None,
        }
    }

    /// Takes chunks for held that are in the store.
    pub(super) fn hold(&mut self, chunks: Vec<u32>) {
        self.fetch.hold(chunks.iter().copied());
        self.flight.land(chunks);
        self.gained.extend(self.fetch.held().iter());
        self.flight.complete(self.fetch.held().iter());
        if self.fetch.held().is_full() {
            self.over = Some(Ok(()));
        }
    }

    /// How it ended, if it has.
    pub(super) fn over(&self) -> Option<Result<(), FetchError>> {
        self.over
    }

    /// Segments of which everything is here.
    pub(super) fn held(&self) -> &SegmentSet {
        self.fetch.held()
    }

    /// What it cost.
    pub(super) fn stats(&self) -> FetchStats {
        self.fetch.stats()
    }

    /// How long until [`Course::tick`] is due.
    pub(super) fn rest(&self) -> Duration {
        let now = self.exchange.with_peers(|now, _| now);
        let wake = self.fetch.next_wake().unwrap_or(now);
        wake.saturating_sub(now)
    }

    pub(super) fn tick(&mut self) {
        self.step(Event::Tick);
    }

    /// Notes what a source holds.
    pub(super) fn source(&mut self, node: NodeId, tier: Tier, have: Have) {
        self.step(Event::Source { node, tier, have });
    }

    /// Notes that a source holds more.
    pub(super) fn gains(&mut self, node: NodeId, segments: Vec<u32>) {
        self.step(Event::Gained { node, segments });
    }

    /// Notes that a source went away.
    pub(super) fn gone(&mut self, node: NodeId) {
        self.step(Event::Gone { node });
    }

    /// Notes where the readers are.
    pub(super) fn readers_moved(&mut self) {
        let chunk = self.flight.needed();
        self.step(Event::Reader { chunk });
    }

    /// Takes an answer to a request for chunks; answers to others mean nothing here.
    pub(super) fn answer(&mut self, node: NodeId, ask: AskId, answer: Answer) {
        let Some(&request) = self.asks.get(&ask) else {
            return;
        };
        match answer {
            Answer::Chunk { chunk, bytes } => {
                self.answered(request);
                self.arrivals.push_back(Arrival {
                    node,
                    request,
                    chunk,
                    received: bytes,
                });
            }
            Answer::Busy(retry) => {
                self.ended(request);
                self.step(Event::Busy {
                    node,
                    request,
                    retry,
                });
            }
            Answer::NotFound(chunk) => {
                match chunk {
                    Some(_) => self.answered(request),
                    None => self.ended(request),
                }
                self.step(Event::NotFound {
                    node,
                    request,
                    chunk,
                });
            }
            Answer::Error => {
                self.ended(request);
                self.step(Event::Error { node, request });
            }
            // That the source is gone is heard from its query as well.
            Answer::Gone => self.ended(request),
            Answer::Have(_) | Answer::Gained(_) | Answer::Others(_) | Answer::Manifest { .. } => {}
        }
    }

    /// Takes the outcome of verifying arrivals.
    pub(super) fn checked(&mut self, checked: Vec<Checked>) {
        let mut landed = Vec::new();
        for arrival in checked.iter().filter(|arrival| arrival.good) {
            landed.extend(self.plan.places(arrival.chunk));
        }
        self.flight.land(landed);
        for arrival in checked {
            let Checked {
                node,
                request,
                chunk,
                good,
            } = arrival;
            if !good {
                self.step(Event::Bad { node });
                continue;
            }
            self.step(Event::Arrived {
                node,
                request,
                chunk,
            });
            for twin in self.plan.places(chunk) {
                if twin != chunk {
                    self.step(Event::Present { chunk: twin });
                }
            }
        }
        // What a reader needs first may be another chunk now.
        self.readers_moved();
    }

    /// Notes an answer for one chunk of a request.
    fn answered(&mut self, request: RequestId) {
        if let Some(of) = self.requests.get_mut(&request) {
            of.left = of.left.saturating_sub(1);
            if of.left == 0 {
                self.ended(request);
            }
        }
    }

    /// Forgets a request that gets no more answers.
    fn ended(&mut self, request: RequestId) {
        if let Some(of) = self.requests.remove(&request) {
            self.asks.remove(&of.asked.id());
        }
    }

    /// Lets the scheduler handle an event and does what it says.
    fn step(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let fetch = &mut self.fetch;
            let actions = self
                .exchange
                .with_peers(|now, peers| fetch.handle(now, event, peers));
            for action in actions {
                events.extend(self.act(action));
            }
        }
    }

    /// Does one thing; what fails at once is an event again.
    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Request {
                node,
                request,
                ranges,
                deadline,
            } => {
                let left = ranges.iter().map(|range| range.count).sum();
                let question = Question::Chunks {
                    object: self.flight.wanted.object(),
                    ranges,
                    priority: self.flight.priority(),
                    deadline,
                };
                match self.exchange.ask(node, question, &self.listener) {
                    Ok(asked) => {
                        self.asks.insert(asked.id(), request);
                        self.requests.insert(request, Request { asked, left });
                    }
                    Err(_) => return Some(Event::Gone { node }),
                }
            }
            Action::Cancel { request, .. } => {
                self.requests.remove(&request);
                self.forget_old_asks();
            }
            Action::Ban { node, time, why } => match why {
                BanReason::WrongBytes => {
                    let why = "sent bytes that are not what was asked for";
                    self.exchange.shun(node, time, BanCause::WrongBytes, why);
                }
            },
            Action::Complete { segment } => {
                self.gained.push(segment);
                self.flight.complete([segment]);
            }
            Action::FindSources => self.searching = true,
            Action::Done => self.over = Some(Ok(())),
            Action::Failed(error) => self.over = Some(Err(error)),
        }
        None
    }

    /// Keeps the table of asks from growing with the length of the flight.
    fn forget_old_asks(&mut self) {
        while self.asks.len() > self.requests.len() + LATE_ASKS_MAX {
            self.asks.pop_first();
        }
    }
}

impl Drop for Course {
    /// Gives back what the table counts as under way; the requests withdraw themselves.
    fn drop(&mut self) {
        let fetch = &mut self.fetch;
        self.exchange.with_peers(|_, peers| fetch.stop(peers));
    }
}

/// Requests that are over and may still be answered.
const LATE_ASKS_MAX: usize = 1024;
