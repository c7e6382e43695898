use std::sync::Arc;

use attic_store::NarHash;

use super::*;
use crate::ids::ManifestId;
use crate::wire::{CREDIT_WINDOW, Have, Layout, OTHERS_MAX, SegmentSet};

const CHUNK_LEN: u32 = 100_000;

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

fn object() -> Object {
    Object {
        nar: NarHash::from_bytes([1; 32]),
        manifest: ManifestId::from_bytes([2; 32]),
    }
}

/// A provider with a store that holds one object of so many chunks, and streams that are idle.
struct Served {
    provider: Provider,
    layout: Arc<Layout>,
    now: Duration,
    /// What was sent to whom, data with its chunk.
    sent: Vec<(NodeId, Frame)>,
    /// Whether what is sent leaves at once.
    leaves: bool,
    missing: Option<u32>,
}

impl Served {
    fn new(chunks: usize) -> Served {
        Served {
            provider: Provider::new(),
            layout: Arc::new(Layout::new(vec![CHUNK_LEN; chunks]).unwrap()),
            now: Duration::ZERO,
            sent: Vec::new(),
            leaves: true,
            missing: None,
        }
    }

    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.provider.handle(self.now, event) {
                match action {
                    Action::LookUp { job, .. } => {
                        let holding = Holding {
                            layout: self.layout.clone(),
                            have: Have::Partial(SegmentSet::empty(self.layout.segments())),
                            manifest: Bytes::from(vec![7; 600_000]),
                        };
                        events.push_back(Event::Found { job, holding });
                    }
                    Action::Read { job, chunk, .. } => {
                        let held = self.missing != Some(chunk);
                        let bytes = held.then(|| Bytes::from(vec![0; CHUNK_LEN as usize]));
                        events.push_back(Event::Read { job, bytes });
                    }
                    Action::Send { peer, frame } => {
                        if let Frame::Data { bytes, .. } | Frame::Manifest { bytes, .. } = &frame
                            && self.leaves
                        {
                            let bytes = bytes.len() as u64;
                            events.push_back(Event::Sent { peer, bytes });
                        }
                        self.sent.push((peer, frame));
                    }
                }
            }
        }
    }

    fn ask(&mut self, peer: u8, req: u32, first: u32, count: u32, priority: Priority) {
        let frame = Frame::Get {
            req,
            object: object(),
            ranges: vec![ChunkRange { first, count }],
            priority,
            deadline: Duration::from_secs(5),
        };
        let peer = node(peer);
        self.feed(Event::Frame { peer, frame });
    }

    fn tell(&mut self, peer: u8, frame: Frame) {
        let peer = node(peer);
        self.feed(Event::Frame { peer, frame });
    }

    fn data(&self, peer: u8) -> Vec<(u32, bool)> {
        let of = self.sent.iter().filter(|(to, _)| *to == node(peer));
        of.filter_map(|(_, frame)| match frame {
            Frame::Data { chunk, last, .. } => Some((*chunk, *last)),
            _ => None,
        })
        .collect()
    }

    fn last(&self) -> &Frame {
        &self.sent.last().expect("something was sent").1
    }
}

#[test]
fn a_request_is_answered_in_order_and_the_last_chunk_says_so() {
    let mut served = Served::new(10);
    served.ask(1, 5, 2, 3, Priority::Client);
    assert_eq!(served.data(1), [(2, false), (3, false), (4, true)]);
    assert_eq!(served.provider.stats().slots, 0);
}

#[test]
fn what_has_not_left_is_bounded() {
    let mut served = Served::new(100);
    served.leaves = false;
    served.ask(1, 5, 0, 100, Priority::Client);
    let bound = (UNSENT_MAX / u64::from(CHUNK_LEN) + 1) as usize;
    assert_eq!(served.data(1).len(), bound);
    let bytes = u64::from(CHUNK_LEN);
    served.feed(Event::Sent {
        peer: node(1),
        bytes,
    });
    assert_eq!(served.data(1).len(), bound + 1);
}

#[test]
fn credit_bounds_what_is_sent() {
    let mut served = Served::new(1_000);
    served.ask(1, 5, 0, 1_000, Priority::Client);
    let bound = (CREDIT_WINDOW / CHUNK_LEN) as usize;
    assert_eq!(served.data(1).len(), bound);
    served.tell(
        1,
        Frame::Credit {
            bytes: 2 * CHUNK_LEN,
        },
    );
    assert_eq!(served.data(1).len(), bound + 2);
}

#[test]
fn beyond_the_slots_peers_are_refused_and_later_served() {
    let mut served = Served::new(100);
    served.leaves = false;
    for peer in 0..SLOTS_MAX as u8 {
        served.ask(peer, 1, 0, 50, Priority::Client);
    }
    served.ask(99, 1, 0, 1, Priority::Client);
    assert_eq!(
        served.last(),
        &Frame::Busy {
            req: 1,
            retry: RETRY
        }
    );
    served.tell(0, Frame::Cancel { req: 1 });
    served.ask(99, 2, 0, 1, Priority::Client);
    assert_eq!(served.data(99), [(0, true)]);
}

#[test]
fn replication_leaves_slots_to_clients() {
    let mut served = Served::new(100);
    served.leaves = false;
    for peer in 0..=BACKGROUND_SLOTS_MAX as u8 {
        served.ask(peer, 1, 0, 50, Priority::Background);
    }
    assert_eq!(
        served.last(),
        &Frame::Busy {
            req: 1,
            retry: RETRY
        }
    );
    served.ask(99, 1, 0, 1, Priority::Client);
    assert_eq!(served.data(99), [(0, true)]);
}

#[test]
fn a_missing_chunk_leaves_the_rest_of_the_answer() {
    let mut served = Served::new(10);
    served.missing = Some(1);
    served.ask(1, 5, 0, 3, Priority::Client);
    assert_eq!(served.data(1), [(0, false), (2, true)]);
    let missing = Frame::NotFound {
        req: 5,
        chunk: Some(1),
    };
    assert!(served.sent.contains(&(node(1), missing)));
    served.ask(1, 6, 8, 3, Priority::Client);
    let code = ErrorCode::Malformed;
    assert_eq!(served.last(), &Frame::Error { req: 6, code });
}

#[test]
fn an_expired_request_is_not_answered() {
    let mut served = Served::new(100);
    served.leaves = false;
    served.ask(1, 5, 0, 100, Priority::Client);
    let before = served.data(1).len();
    served.now = Duration::from_secs(6);
    served.feed(Event::Tick);
    let code = ErrorCode::Expired;
    assert_eq!(served.last(), &Frame::Error { req: 5, code });
    served.feed(Event::Sent {
        peer: node(1),
        bytes: 1 << 20,
    });
    assert_eq!(served.data(1).len(), before);
    assert_eq!(served.provider.stats().slots, 0);
}

#[test]
fn small_nars_come_whole_and_large_ones_do_not() {
    let mut served = Served::new(3);
    let objects = vec![object(), object()];
    served.tell(
        1,
        Frame::GetMany {
            req: 10,
            objects: objects.clone(),
        },
    );
    assert_eq!(served.data(1).len(), 6);
    let parts = served
        .sent
        .iter()
        .filter(|(_, frame)| matches!(frame, Frame::Manifest { .. }));
    assert_eq!(parts.count(), 2 * 600_000usize.div_ceil(PART_LEN));
    let mut served = Served::new(100);
    served.tell(1, Frame::GetMany { req: 10, objects });
    assert!(served.data(1).is_empty());
}

#[test]
fn watchers_hear_of_gains_until_they_cancel() {
    let mut served = Served::new(100);
    let gained = || Event::Gained {
        object: object(),
        segments: vec![3],
    };
    served.tell(
        1,
        Frame::HaveQuery {
            req: 9,
            object: object(),
        },
    );
    served.feed(gained());
    assert_eq!(
        served.last(),
        &Frame::HaveDelta {
            req: 9,
            segments: vec![3]
        }
    );
    served.tell(1, Frame::Cancel { req: 9 });
    let before = served.sent.len();
    served.feed(gained());
    assert_eq!(served.sent.len(), before);
    assert!(served.provider.watchers.is_empty());
}

#[test]
fn gains_before_the_answer_follow_it() {
    let mut provider = Provider::new();
    let (peer, now) = (node(1), Duration::ZERO);
    let frame = Frame::HaveQuery {
        req: 9,
        object: object(),
    };
    let asked = provider.handle(now, Event::Frame { peer, frame });
    let [Action::LookUp { job, .. }] = asked[..] else {
        panic!("{asked:?}");
    };
    let gained = Event::Gained {
        object: object(),
        segments: vec![4],
    };
    assert!(provider.handle(now, gained).is_empty());
    let told = provider.handle(now, Event::Absent { job });
    assert!(
        matches!(
            &told[..],
            [
                Action::Send {
                    frame: Frame::Have {
                        have: Have::Nothing,
                        ..
                    },
                    ..
                },
                Action::Send {
                    frame: Frame::HaveDelta { .. },
                    ..
                },
            ]
        ),
        "{told:?}"
    );
}

#[test]
fn asking_again_before_the_answer_costs_nothing() {
    let mut provider = Provider::new();
    let (peer, now) = (node(1), Duration::ZERO);
    let frame = Frame::HaveQuery {
        req: 9,
        object: object(),
    };
    for _ in 0..1_000 {
        provider.handle(
            now,
            Event::Frame {
                peer,
                frame: frame.clone(),
            },
        );
    }
    assert_eq!(provider.lookups.len(), 1);
}

#[test]
fn whoever_leaves_leaves_nothing_behind() {
    let mut served = Served::new(100);
    served.leaves = false;
    served.ask(1, 5, 0, 100, Priority::Client);
    served.tell(
        1,
        Frame::HaveQuery {
            req: 9,
            object: object(),
        },
    );
    served.feed(Event::Gone { peer: node(1) });
    let provider = &served.provider;
    assert!(provider.askers.is_empty() && provider.watchers.is_empty());
    assert!(provider.turns.is_empty() && provider.lookups.is_empty() && provider.reads.is_empty());
}

/// A provider that is asked by peers what it holds, and looks nothing up by itself.
struct Asked {
    provider: Provider,
}

impl Asked {
    /// A peer asks; the look-up that follows.
    fn ask(&mut self, peer: u8, req: u32) -> JobId {
        let object = object();
        let frame = Frame::HaveQuery { req, object };
        let peer = node(peer);
        match self.feed(Event::Frame { peer, frame })[..] {
            [Action::LookUp { job, .. }] => job,
            ref other => panic!("{other:?}"),
        }
    }

    fn feed(&mut self, event: Event) -> Vec<Action> {
        self.provider.handle(Duration::ZERO, event)
    }

    /// What is sent when a look-up finds something.
    fn find(&mut self, job: JobId, have: Have) -> Vec<Frame> {
        let holding = Holding {
            layout: Arc::new(Layout::new(vec![CHUNK_LEN; 3]).unwrap()),
            have,
            manifest: Bytes::from_static(b"m"),
        };
        sent(self.feed(Event::Found { job, holding }))
    }
}

fn asked() -> Asked {
    let provider = Provider::new();
    Asked { provider }
}

fn sent(actions: Vec<Action>) -> Vec<Frame> {
    let frame = |action| match action {
        Action::Send { frame, .. } => frame,
        other => panic!("{other:?}"),
    };
    actions.into_iter().map(frame).collect()
}

#[test]
fn whoever_asks_hears_who_else_is_fetching() {
    let mut asked = asked();
    let have = || Frame::Have {
        req: 1,
        have: Have::Complete,
    };
    let others = |nodes: &[u8]| Frame::Others {
        req: 1,
        nodes: nodes.iter().copied().map(node).collect(),
    };
    let first = asked.ask(5, 1);
    let second = asked.ask(2, 1);
    assert_eq!(asked.find(second, Have::Complete), [have()]);
    let told = asked.find(first, Have::Complete);
    assert_eq!(told, [have(), others(&[2])]);
    // Behind the asker first, around the circle, each once.
    let again = asked.ask(2, 7);
    asked.find(again, Have::Complete);
    let third = asked.ask(3, 1);
    assert_eq!(asked.find(third, Have::Complete), [have(), others(&[5, 2])]);
    // Whoever has it, or left, is fetching no more.
    let (peer, frame) = (node(5), Frame::Cancel { req: 1 });
    asked.feed(Event::Frame { peer, frame });
    asked.feed(Event::Gone { peer: node(3) });
    let fourth = asked.ask(4, 1);
    assert_eq!(asked.find(fourth, Have::Complete), [have(), others(&[2])]);
}

#[test]
fn no_more_others_are_told_than_a_frame_holds() {
    let mut asked = asked();
    for peer in 0..=OTHERS_MAX as u8 {
        let job = asked.ask(peer, 1);
        asked.find(job, Have::Complete);
    }
    let job = asked.ask(200, 1);
    let told = asked.find(job, Have::Complete);
    let [_, Frame::Others { nodes, .. }] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(nodes.len(), OTHERS_MAX);
}

#[test]
fn whoever_may_not_know_hears_nothing_and_is_told_of_to_nobody() {
    let mut asked = asked();
    let job = asked.ask(1, 9);
    let told = sent(asked.feed(Event::Forbidden { job }));
    let chunk = None;
    assert_eq!(told, [Frame::NotFound { req: 9, chunk }]);
    let gained = Event::Gained {
        object: object(),
        segments: vec![1],
    };
    assert!(asked.feed(gained).is_empty());
    let job = asked.ask(2, 1);
    assert_eq!(asked.find(job, Have::Complete).len(), 1);
}

#[test]
fn watchers_hear_that_it_is_being_fetched_now() {
    let mut asked = asked();
    let job = asked.ask(1, 9);
    let nothing = Frame::Have {
        req: 9,
        have: Have::Nothing,
    };
    assert_eq!(sent(asked.feed(Event::Absent { job })), [nothing]);
    let begun = || Event::Begun { object: object() };
    let [Action::LookUp { job, .. }] = asked.feed(begun())[..] else {
        panic!("it is looked up anew");
    };
    let partial = Have::Partial(SegmentSet::empty(1));
    let told = asked.find(job, partial.clone());
    let have = Frame::Have {
        req: 9,
        have: partial.clone(),
    };
    assert_eq!(told, std::slice::from_ref(&have));

    // What was looked up before it began is looked up again.
    let job = asked.ask(1, 9);
    assert!(asked.feed(begun()).is_empty());
    let [Action::LookUp { job, .. }] = asked.feed(Event::Absent { job })[..] else {
        panic!("it is looked up anew");
    };
    assert_eq!(asked.find(job, partial), [have]);
}
