//! Drives the provider of each host: what peers ask for is looked up, read and sent.

use std::time::Duration;

use attic_p2p::ids::NodeId;
use attic_p2p::provider::{self, Holding, JobId};
use attic_p2p::wire::{Frame, Have, Object};
use bytes::Bytes;

use crate::sim::content::Truth;
use crate::sim::exchange::slot;
use crate::sim::host::Index;
use crate::sim::mutant::Mutant;
use crate::sim::scenario::Manner;
use crate::sim::world::{Happening, World};

impl World {
    pub(crate) fn tell_provider(&mut self, at: Index, event: provider::Event) {
        let now = self.now();
        let host = &mut self.hosts[at];
        let actions = host.provider.handle(host.clock.monotonic(now), event);
        let life = host.life;
        for action in actions {
            match action {
                provider::Action::LookUp { job, peer, object } => {
                    let event = self.look_up(at, job, peer, object);
                    self.agenda.at(now, Happening::ReadDone { at, life, event });
                }
                provider::Action::Read { job, object, chunk } => {
                    let event = self.read(at, job, object, chunk);
                    let done = Happening::ReadDone { at, life, event };
                    self.agenda.at(now + READ_TIME, done);
                }
                provider::Action::Send { peer, frame } => {
                    if let Some(to) = self.index(peer) {
                        let truth = self.truth(at, to, &frame);
                        self.send_frame(at, to, frame, truth);
                    }
                }
            }
        }
    }

    fn look_up(&self, at: Index, job: JobId, peer: NodeId, object: Object) -> provider::Event {
        let host = &self.hosts[at];
        let thing = self.content.by_object(&object);
        let may = self.is(Mutant::AdmitsAnybody) || !host.door.is_revoked(peer);
        let Some(thing) = thing.filter(|_| may) else {
            return provider::Event::Absent { job };
        };
        let whole = host.store.held.contains(&thing) || host.manner == Manner::Boasts;
        let have = match host.flights.get(&thing) {
            _ if whole => Have::Complete,
            Some(flight) => Have::Partial(flight.fetch.held().clone()),
            None => return provider::Event::Absent { job },
        };
        let holding = Holding {
            layout: self.content.thing(thing).layout.clone(),
            have,
            manifest: Bytes::new(),
        };
        provider::Event::Found { job, holding }
    }

    fn read(&self, at: Index, job: JobId, object: Object, chunk: u32) -> provider::Event {
        let host = &self.hosts[at];
        let bytes = self.content.by_object(&object).and_then(|thing| {
            let flight = host.flights.get(&thing);
            let landed = flight.is_some_and(|flight| flight.chunks[chunk as usize]);
            let held = host.store.held.contains(&thing) || landed;
            let len = self.content.thing(thing).layout.chunk_len(chunk);
            held.then(|| zeros(len))
        });
        provider::Event::Read { job, bytes }
    }

    /// What the bytes really are that a host sends.
    fn truth(&self, at: Index, to: Index, frame: &Frame) -> Truth {
        let Frame::Data { req, chunk, .. } = frame else {
            return Truth::Junk;
        };
        let thing = self.hosts[to].slots.get(slot(*req)).copied();
        let host = &self.hosts[at];
        match thing {
            Some(thing)
                if host.manner != Manner::Lies && !host.store.wrong.contains(&(thing, *chunk)) =>
            {
                Truth::Chunk(thing, *chunk)
            }
            Some(_) | None => Truth::Junk,
        }
    }

    /// Has the provider look for what expired, once a second while it is busy.
    pub(crate) fn sweep_soon(&mut self, at: Index) {
        let host = &mut self.hosts[at];
        if !std::mem::replace(&mut host.sweeping, true) {
            let life = host.life;
            self.agenda
                .after(SWEEP_EVERY, Happening::Sweep { at, life });
        }
    }

    pub(crate) fn sweep(&mut self, at: Index) {
        self.hosts[at].sweeping = false;
        self.tell_provider(at, provider::Event::Tick);
        if self.hosts[at].provider.stats().requests > 0 {
            self.sweep_soon(at);
        }
    }
}

fn zeros(len: u64) -> Bytes {
    static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
    Bytes::from_static(&ZEROS[..len as usize])
}

const READ_TIME: Duration = Duration::from_micros(100);
const SWEEP_EVERY: Duration = Duration::from_secs(1);
