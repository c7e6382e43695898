//! Keeps the network's task running: builds the swarm, and builds it anew after a panic.
//!
//! A panic may happen in the task itself or in one of the tasks libp2p starts for connections. The
//! second would leave a connection that is neither alive nor closed, so both end the swarm with all
//! of its tasks. Peers, bans, addresses and ports outlive it.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::Multiaddr;
use libp2p::core::transport::{ListenerId, TransportError};
use libp2p::multiaddr::Protocol;
use libp2p::relay;
use libp2p::swarm::{self, Swarm};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::behaviour::Behaviour;
use crate::gate::Gate;
use crate::identity::Identity;
use crate::network::{Command, NetworkEvent, NetworkOptions, StartError, Status};
use crate::swarm::durable::Durable;
use crate::swarm::{End, Task};
use crate::upgrade;

/// How long the network rests after a panic; doubled by every further one, up to the second.
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(30);

/// Having run that long, a swarm counts as sound: the next rest is a short one again.
const SOUND_AFTER: Duration = Duration::from_secs(60);

/// Connections of nobody in particular close after it; members' are kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Between the swarm and the tasks of its connections, in messages each.
const CONNECTION_BUFFER: usize = 64;

/// Inbound streams of a connection whose protocol is not yet agreed on.
const NEGOTIATING_MAX: usize = 64;

/// Starts the supervisor; it ends at [`Command::Shutdown`] and when nobody can send commands.
pub(crate) fn start(
    options: NetworkOptions,
    gate: Arc<dyn Gate>,
    identity: Identity,
    inbox: mpsc::Receiver<Command>,
    events: mpsc::Sender<NetworkEvent>,
    status: watch::Sender<Arc<Status>>,
) -> Result<(), StartError> {
    let durable = Durable::new(options, identity.node_id(), events, status);
    let mut supervisor = Supervisor {
        gate,
        identity,
        durable,
        inbox,
    };
    let first = supervisor.build()?;
    // Its end is awaited through the inbox, which it owns: see `Network::shutdown`.
    tokio::spawn(async move { supervisor.run(first).await });
    Ok(())
}

struct Supervisor {
    gate: Arc<dyn Gate>,
    identity: Identity,
    durable: Durable,
    inbox: mpsc::Receiver<Command>,
}

/// A swarm and the tasks that libp2p started for it.
struct Generation {
    swarm: Swarm<Behaviour>,
    tasks: TaskTracker,
    /// Ends the tasks.
    stop: CancellationToken,
    /// Set by a task that panicked.
    failed: CancellationToken,
}

impl Supervisor {
    async fn run(mut self, first: Generation) {
        let mut generation = Some(first);
        let mut rest = REST_FIRST;
        loop {
            let begun = Instant::now();
            if let Some(generation) = generation.take() {
                match self.live(generation).await {
                    End::Shutdown => return,
                    End::Broken => {}
                }
                self.durable.on_restart();
            }
            if begun.elapsed() > SOUND_AFTER {
                rest = REST_FIRST;
            }
            if self.rest(rest).await.is_break() {
                return;
            }
            rest = (2 * rest).min(REST_MAX);
            match self.build() {
                Ok(built) => generation = Some(built),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "network");
                }
            }
        }
    }

    /// One life of the swarm. All of its tasks have ended when this returns.
    async fn live(&mut self, generation: Generation) -> End {
        let Generation {
            swarm,
            tasks,
            stop,
            failed,
        } = generation;
        let task = Task::new(swarm, &mut self.durable);
        let life = AssertUnwindSafe(task.run(&mut self.inbox)).catch_unwind();
        let end = tokio::select! {
            outcome = life => match outcome {
                Ok(end) => end,
                Err(_) => End::Broken,
            },
            () = failed.cancelled() => End::Broken,
        };
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        end
    }

    /// Rests, and refuses what is asked meanwhile.
    async fn rest(&mut self, time: Duration) -> ControlFlow<()> {
        let until = Instant::now() + time;
        loop {
            match timeout_at(until, self.inbox.recv()).await {
                Err(_) => return ControlFlow::Continue(()),
                Ok(None | Some(Command::Shutdown)) => return ControlFlow::Break(()),
                Ok(Some(command)) => self.durable.keep(command),
            }
        }
    }

    fn build(&mut self) -> Result<Generation, StartError> {
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let failed = CancellationToken::new();
        let executor = {
            let (tasks, stop, failed) = (tasks.clone(), stop.clone(), failed.clone());
            move |future: BoxFuture<'static, ()>| {
                let (stop, failed) = (stop.clone(), failed.clone());
                tasks.spawn(async move {
                    let caught = AssertUnwindSafe(future).catch_unwind();
                    if let Some(Err(_)) = stop.run_until_cancelled(caught).await {
                        failed.cancel();
                    }
                });
            }
        };
        let config = swarm::Config::with_executor(executor)
            .with_idle_connection_timeout(IDLE_TIMEOUT)
            .with_notify_handler_buffer_size(CONNECTION_BUFFER.try_into().expect("not zero"))
            .with_per_connection_event_buffer_size(CONNECTION_BUFFER)
            .with_max_negotiating_inbound_streams(NEGOTIATING_MAX);
        let me = self.identity.peer_id();
        let relays = self.durable.options.uses_relays();
        let (circuits, client) = relays.then(|| relay::client::new(me)).unzip();
        let transport = upgrade::transport(&self.identity, Arc::clone(&self.gate), circuits)
            .map_err(|error| StartError::Identity(error.into()))?;
        let behaviour = Behaviour::new(&self.identity, &self.durable.options, client)?;
        let mut swarm = Swarm::new(transport, behaviour, me, config);
        for address in &self.durable.options.external {
            swarm.add_external_address(address.clone());
        }
        self.durable.listeners.clear();
        let refused = |address: &Multiaddr, source| StartError::Listen {
            address: address.clone(),
            source,
        };
        // All before the first listens: a socket of IPv6 may ask for the port of IPv4 as well.
        for address in &self.durable.options.listen {
            look(address).map_err(|source| refused(address, source))?;
        }
        for (index, address) in self.durable.options.listen.iter().enumerate() {
            let listening = listen(&mut swarm, address);
            let listener = listening.map_err(|source| refused(address, source))?;
            self.durable.listeners.insert(listener, index);
        }
        Ok(Generation {
            swarm,
            tasks,
            stop,
            failed,
        })
    }
}

/// Fails if somebody else listens at an address.
///
/// libp2p shares ports, so that two programs of one user would take turns at the connections. A
/// socket that does not share tells whether the port is free.
fn look(address: &Multiaddr) -> io::Result<()> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    if let Some(Protocol::Tcp(port)) = parts.next()
        && port != 0
    {
        drop(TcpListener::bind((ip, port))?);
    }
    Ok(())
}

fn listen(swarm: &mut Swarm<Behaviour>, address: &Multiaddr) -> io::Result<ListenerId> {
    (swarm.listen_on(address.clone())).map_err(|error| match error {
        TransportError::Other(error) => error,
        TransportError::MultiaddrNotSupported(_) => io::ErrorKind::Unsupported.into(),
    })
}
