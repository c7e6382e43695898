//! The part of a villain that does what members do, so that it is taken for one.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attic_p2p::directory::{Change, NoKeys};
use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::log::MemoryLog;
use attic_p2p::membership::certificate::Certificate;
use attic_p2p::membership::ticket::Ticket;
use attic_p2p::network::{Network, NetworkEvent, Topic, Verdict};
use attic_p2p::record::{NarTag, Record};
use attic_p2p::replica::{Action, Event, Replica, Setup};
use attic_p2p::signed::Signed;
use attic_p2p::time::Millis;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::Mode;
use super::bulk::Server;
use super::forge::Forger;
use super::pull;
use super::sync;

/// A member, up to a point.
pub(super) struct Member {
    mode: Mode,
    identity: Identity,
    certificate: Signed<Certificate>,
    network: Network,
    events: mpsc::Receiver<NetworkEvent>,
    topic: Topic,
    replica: Replica<MemoryLog>,
    answers: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    asked: BTreeMap<u64, oneshot::Sender<Bytes>>,
    next_id: u64,
    wake: Option<Instant>,
    server: Arc<Server>,
    forger: Forger,
}

impl Member {
    pub(super) fn new(
        identity: &Identity,
        ticket: &Ticket,
        certificate: Signed<Certificate>,
        (network, events): (Network, mpsc::Receiver<NetworkEvent>),
        topic: Topic,
        mode: Mode,
    ) -> Result<Member, Box<dyn Error>> {
        let cluster = ticket.genesis().cluster_id();
        let replica = Replica::new(Setup {
            identity: identity.clone(),
            genesis: ticket.genesis().clone(),
            certificate: certificate.clone(),
            unseal: Arc::new(NoKeys),
            log: MemoryLog::default(),
            log_len_max: u64::MAX,
            seed: 1,
        })?;
        let member = Member {
            mode,
            identity: identity.clone(),
            server: Arc::new(Server::new(network.clone(), cluster, mode)),
            forger: Forger::new(identity.clone(), cluster),
            certificate,
            network,
            events,
            topic,
            replica,
            answers: mpsc::channel(64),
            asked: BTreeMap::new(),
            next_id: 0,
            wake: None,
        };
        Ok(member)
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// Behaves until everybody may know that it is a member.
    pub(super) async fn until_known(&mut self) -> Result<(), Box<dyn Error>> {
        self.introduce().await;
        // Whatever comes meanwhile is handled; nothing waits for this to be over.
        let _ = timeout(KNOWN_AFTER, async { while self.step(None).await {} }).await;
        Ok(())
    }

    /// Behaves, but for what its mode is.
    pub(super) async fn run(mut self) -> Result<(), Box<dyn Error>> {
        self.introduce().await;
        let mut attack = interval(ATTACK_EVERY);
        attack.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while self.step(Some(&mut attack)).await {}
        Err("the network has ended".into())
    }

    async fn introduce(&mut self) {
        let certificate = Record::Member(self.certificate.clone());
        self.handle(Event::Local(vec![certificate])).await;
    }

    /// Does one thing; `false` when the network has ended.
    async fn step(&mut self, attack: Option<&mut tokio::time::Interval>) -> bool {
        let wake = self.wake.unwrap_or_else(|| Instant::now() + IDLE);
        let attacks = async {
            match attack {
                Some(attack) => drop(attack.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.events.recv() => match event {
                Some(event) => self.on_event(event).await,
                None => return false,
            },
            Some(answer) = self.answers.1.recv() => self.handle(answer).await,
            () = sleep_until(wake) => {
                self.wake = None;
                self.handle(Event::Tick).await;
            }
            () = attacks => self.attack().await,
        }
        true
    }

    async fn on_event(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::PeerUp { node, .. } => {
                println!("up {node}");
                self.handle(Event::PeerUp(node)).await;
            }
            NetworkEvent::PeerDown { node } => {
                println!("down {node}");
                self.handle(Event::PeerDown(node)).await;
            }
            NetworkEvent::Gossip {
                from, bytes, token, ..
            } => {
                self.handle(Event::Gossip { from, bytes }).await;
                self.network.report(token, Verdict::Accept).await;
            }
            NetworkEvent::Request { from, bytes, reply } => self.request(from, &bytes, reply).await,
            NetworkEvent::Bulk { stream, .. } => {
                let server = Arc::clone(&self.server);
                tokio::spawn(async move { server.serve(stream).await });
            }
            NetworkEvent::Reached { .. }
            | NetworkEvent::Listening(_)
            | NetworkEvent::GossipUnsent { .. }
            | NetworkEvent::Misbehaved { .. } => {}
        }
    }

    async fn request(&mut self, from: NodeId, bytes: &Bytes, reply: oneshot::Sender<Bytes>) {
        // Most questions but those about logs get no answer.
        let Some(ask) = sync::unwrap(bytes) else {
            if self.mode == Mode::WrongPulls && pull::is_question(bytes) {
                let _ = reply.send(pull::lie());
            }
            return;
        };
        if let Some(lie) = sync::lie(self.mode, &ask, self.replica.log(), &self.identity) {
            let _ = reply.send(sync::wrap(&lie));
            return;
        }
        self.next_id += 1;
        let id = self.next_id;
        self.asked.insert(id, reply);
        let bytes = ask;
        self.handle(Event::Request { from, id, bytes }).await;
    }

    async fn handle(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.replica.handle(now(), event) {
                if let Some(claim) = self.act(action).await {
                    events.push(claim);
                }
            }
        }
    }

    /// Does what the replica says; what to say besides.
    async fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            // Nobody may be there yet.
            Action::Publish(bytes) => drop(self.network.publish(&self.topic, bytes).await),
            Action::Request { to, id, bytes } => self.ask(to, id, &bytes),
            Action::Respond { id, bytes } => {
                if let Some(reply) = self.asked.remove(&id) {
                    let _ = reply.send(sync::wrap(&bytes));
                }
            }
            Action::Changed(changes) => return self.claim(&changes),
            Action::Wake(at) => {
                let left = Duration::from_millis(at.0.saturating_sub(now().0) + 1);
                self.wake = Some(Instant::now() + left.min(IDLE));
            }
            Action::Judge(_)
            | Action::Misbehaved { .. }
            | Action::Rejected(_)
            | Action::LogFailed(_) => {}
        }
        None
    }

    /// Claims to hold whatever was heard of.
    fn claim(&self, changes: &[Change]) -> Option<Event> {
        let tags = changes.iter().filter_map(|change| {
            let Change::Path { cache, hash } = change else {
                return None;
            };
            let found = self
                .replica
                .directory()
                .path(self.replica.log(), *cache, *hash);
            let (_, record) = found.ok()??;
            Some(NarTag::of(&record.info.nar_hash))
        });
        let tags: Vec<NarTag> = tags.collect();
        (!tags.is_empty()).then(|| Event::Local(vec![Record::Hold(tags)]))
    }

    fn ask(&mut self, to: NodeId, id: u64, bytes: &Bytes) {
        let (network, answers) = (self.network.clone(), self.answers.0.clone());
        let query = sync::wrap(bytes);
        tokio::spawn(async move {
            let answer = network.request(to, query).await.ok();
            let bytes = answer.and_then(|answer| sync::unwrap(&answer));
            let from = to;
            let _ = answers.send(Event::Response { from, id, bytes }).await;
        });
    }

    /// Does what its mode says, once more.
    async fn attack(&mut self) {
        let others = self.network.peers();
        if others.is_empty() || self.replica.is_starting() {
            return;
        }
        match self.mode {
            Mode::FloodGossip => {
                for bytes in self.forger.flood(FLOOD) {
                    let _ = self.network.publish(&self.topic, bytes).await;
                }
            }
            Mode::FloodRequests => {
                let query = sync::wrap(&sync::hello());
                for peer in others {
                    for _ in 0..FLOOD_AT_ONCE {
                        let (network, query) = (self.network.clone(), query.clone());
                        tokio::spawn(async move {
                            for _ in 0..FLOOD {
                                let _ = network.request(peer.node, query.clone()).await;
                            }
                        });
                    }
                }
            }
            // Makes the others ask.
            Mode::GarbageSync | Mode::OversizedSync | Mode::ReplaySync => {
                for peer in others {
                    let query = sync::wrap(&sync::hello());
                    let network = self.network.clone();
                    tokio::spawn(async move { drop(network.request(peer.node, query).await) });
                }
            }
            Mode::ForgedPath => {
                if let Some(record) = self.forger.path(&self.replica) {
                    self.handle(Event::Local(vec![record])).await;
                }
            }
            Mode::Chatter => {
                let records = (0..CHATTER).map(|_| self.forger.holding()).collect();
                self.handle(Event::Local(records)).await;
            }
            mode => {
                if let Some(bytes) = self.forger.segment(mode, &self.replica) {
                    let _ = self.network.publish(&self.topic, bytes).await;
                }
            }
        }
    }
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Millis(u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX))
}

const ATTACK_EVERY: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_secs(5);
const KNOWN_AFTER: Duration = Duration::from_secs(5);
/// Records of a chatterer, each time: about 160 KiB.
const CHATTER: usize = 40;
/// Messages of a flood, each time.
const FLOOD: usize = 1000;
/// As many as one peer lets be asked at a time.
const FLOOD_AT_ONCE: usize = 16;
