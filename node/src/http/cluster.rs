//! The admin API of the cluster: found, invite, join, leave, look at peers, revoke.

use std::sync::Arc;
use std::time::{Duration, Instant};

use attic_p2p::identity::Identity;
use attic_p2p::ids::{CacheId, NodeId};
use attic_p2p::membership::Role as MemberRole;
use attic_p2p::membership::address::Address;
use attic_p2p::membership::genesis::ClusterKey;
use attic_p2p::membership::hello::Refusal;
use attic_p2p::membership::invite::Terms;
use attic_p2p::membership::revocation::Subject;
use attic_p2p::membership::scopes::{Pattern, Scopes};
use attic_p2p::membership::ticket::{Ticket, TicketError};
use attic_p2p::network::{Direction as NetworkDirection, PeerInfo};
use attic_p2p::record::Record;
use attic_store::CacheName;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::api::cluster::{
    ClusterCache, ClusterInit, ClusterMade, ClusterStatus, ClusterView, InviteReply, InviteRequest,
    JoinReply, JoinRequest, JoinedCache, LeaveReply, LeaveRequest, LogUsage, RenamedCache,
    RevokeReply, Revoked, Role, Teller,
};
use crate::app::App;
use crate::auth::random;
use crate::http::admin::{JSON_LEN_MAX, blocking, json_body};
use crate::http::error::{Failure, Kind, chain};
use crate::http::ingest::joined;
use crate::mesh::files::ClusterFiles;
use crate::mesh::join::{Admitted, JoinError, ask_in};
use crate::mesh::members::{IssueError, founder, now};
use crate::mesh::names::host_name;
use crate::mesh::{Mesh, MeshError};

mod peers;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/cluster", get(show))
        .route("/cluster/init", post(init))
        .route("/cluster/invites", post(invite))
        .route("/cluster/join", post(join))
        .route("/cluster/leave", post(leave))
        .route("/peers", get(peers::list))
        .route("/peers/{node}/revoke", post(revoke))
}

/// Starts the mesh of a node that is in a cluster.
///
/// **Errors**: [`MeshError`]; the node should not run then, or it would seem to be a lone one.
pub(crate) async fn resume(app: &Arc<App>) -> Result<(), MeshError> {
    let files = ClusterFiles::new(&app.data);
    let charter = {
        let files = files.clone();
        joined(spawn_blocking(move || files.load()).await)?
    };
    if let Some(charter) = charter {
        let mesh = Mesh::start(app, &app.identity(), files, charter, None).await?;
        app.mesh.set(Some(mesh));
    }
    Ok(())
}

pub(crate) fn mesh_of(app: &App) -> Result<Arc<Mesh>, Failure> {
    let absent = || Failure::new(Kind::NoCluster, "this node is in no cluster");
    app.mesh.get().ok_or_else(absent)
}

async fn init(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<(StatusCode, Json<ClusterMade>), Failure> {
    let ClusterInit { name } = json_body(&app, request, JSON_LEN_MAX).await?;
    let _membership = app.membership.lock().await;
    let mesh = found(&app, name).await?;
    let made = ClusterMade {
        cluster: mesh.cluster,
        name: mesh.name.clone(),
    };
    Ok((StatusCode::CREATED, Json(made)))
}

/// Makes a cluster of this node alone, and its public caches the cluster's. Private ones are shared
/// when somebody says so, never by the way.
async fn found(app: &Arc<App>, name: Option<String>) -> Result<Arc<Mesh>, Failure> {
    if app.mesh.get().is_some() {
        return Err(Failure::new(
            Kind::InCluster,
            "this node is in a cluster already",
        ));
    }
    let name = name.unwrap_or_else(host_name);
    let name = name
        .parse()
        .map_err(|error| Failure::bad_request(format!("name of the cluster: {error}")))?;
    let key = ClusterKey::from_seed(random());
    let genesis = key.found(name, random());
    let charter = founder(&app.identity(), genesis, key);
    let files = ClusterFiles::new(&app.data);
    {
        let (files, charter) = (files.clone(), charter.clone());
        joined(spawn_blocking(move || files.found(&charter)).await).map_err(Failure::internal)?;
    }
    let mesh = start(app, &app.identity(), files, charter, None).await?;
    let (sharing, shared) = (Arc::clone(app), Arc::clone(&mesh));
    let done = spawn_blocking(move || {
        for cache in sharing.caches.snapshot().values() {
            if cache.settings.public && cache.settings.shared_as.is_none() {
                shared.announcer.share(&sharing, cache)?;
            }
        }
        Ok(())
    });
    joined(done.await).map_err(|error: crate::mesh::announce::ShareError| {
        tracing::error!(cause = chain(&error), "a cache could not be shared");
        Failure::internal(error)
    })?;
    Ok(mesh)
}

pub(crate) async fn start(
    app: &Arc<App>,
    identity: &Identity,
    files: ClusterFiles,
    charter: crate::mesh::files::Charter,
    newcomer: Option<Vec<attic_p2p::Multiaddr>>,
) -> Result<Arc<Mesh>, Failure> {
    let started = Mesh::start(app, identity, files.clone(), charter, newcomer).await;
    match started {
        Ok(mesh) => {
            app.mesh.set(Some(Arc::clone(&mesh)));
            Ok(mesh)
        }
        Err(error) => {
            tracing::error!(cause = chain(&error), "the mesh does not start");
            let left = joined(spawn_blocking(move || files.leave()).await);
            if let Err(error) = left {
                tracing::error!(cause = chain(&error), "the cluster's files remain");
            }
            Err(Failure::new(Kind::Internal, format!("{error}")))
        }
    }
}

async fn invite(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<(StatusCode, Json<InviteReply>), Failure> {
    let request: InviteRequest = json_body(&app, request, JSON_LEN_MAX).await?;
    let scopes = scopes(&request)?;
    if request.expires_seconds == 0 {
        return Err(Failure::bad_request("a ticket must be good for a while"));
    }
    let mesh = match app.mesh.get() {
        Some(mesh) => mesh,
        None => {
            let _membership = app.membership.lock().await;
            match app.mesh.get() {
                Some(mesh) => mesh,
                None => found(&app, None).await?,
            }
        }
    };
    let terms = Terms {
        role: match request.role {
            Role::Member => MemberRole::Member,
            Role::Keeper => MemberRole::Keeper,
        },
        scopes,
        not_after: now().plus(Duration::from_secs(
            request.expires_seconds.min(TICKET_AGE_MAX),
        )),
    };
    wait_for_addresses(&mesh).await;
    let own = mesh.addresses(&app.config.mesh).into_iter();
    let addresses = match request.uses {
        Some(_) => own.map(|address| (mesh.me, address)).collect(),
        None => {
            wait_for_introductions(&mesh).await;
            mesh.addresses_of_all(&app.config.mesh)
        }
    };
    let addresses: Vec<Address> = addresses
        .iter()
        .filter_map(|(node, address)| Address::new(&address.to_string(), *node).ok())
        .collect();
    let ticket = blocking(move || {
        mesh.members
            .invite(terms, request.uses, addresses)
            .map_err(issue_failure)
    });
    let ticket = ticket.await?.to_text();
    Ok((StatusCode::CREATED, Json(InviteReply { ticket })))
}

/// A network that has just started does not know yet where it listens.
async fn wait_for_addresses(mesh: &Mesh) {
    for _ in 0..ADDRESS_TRIES {
        if !mesh.network.listen_addresses().is_empty() {
            return;
        }
        sleep(ADDRESS_PAUSE).await;
    }
}

/// Nodes that have just connected do not say at once where they listen.
async fn wait_for_introductions(mesh: &Mesh) {
    let told =
        |peer: &PeerInfo| peer.direction == NetworkDirection::Outbound || peer.addresses.len() > 1;
    for _ in 0..ADDRESS_TRIES {
        if mesh.network.peers().iter().all(told) {
            return;
        }
        sleep(ADDRESS_PAUSE).await;
    }
}

fn scopes(request: &InviteRequest) -> Result<Scopes, Failure> {
    let parse = |texts: &[String]| -> Result<Vec<Pattern>, Failure> {
        texts
            .iter()
            .map(|text| {
                text.parse()
                    .map_err(|error| Failure::bad_request(format!("pattern {text}: {error}")))
            })
            .collect()
    };
    Scopes::new(parse(&request.read)?, parse(&request.write)?).map_err(Failure::bad_request)
}

fn issue_failure(error: IssueError) -> Failure {
    match &error {
        IssueError::NotAnIssuer => Failure::new(Kind::NotIssuer, error),
        IssueError::Invite(_) | IssueError::Ticket(_) => Failure::bad_request(error),
        IssueError::File(_) => Failure::internal(error),
    }
}

async fn join(State(app): State<Arc<App>>, request: Request) -> Result<Json<JoinReply>, Failure> {
    let JoinRequest { ticket } = json_body(&app, request, JSON_LEN_MAX).await?;
    let ticket: Ticket = ticket.trim().parse().map_err(ticket_failure)?;
    let _membership = app.membership.lock().await;
    if let Some(mesh) = app.mesh.get() {
        let message = match mesh.cluster == ticket.genesis().cluster_id() {
            true => "this node is in this cluster already",
            false => "this node is in another cluster: leave it first",
        };
        return Err(Failure::new(Kind::InCluster, message));
    }
    let files = ClusterFiles::new(&app.data);
    let mut identity = app.identity();
    let mut admitted = ask_in(&identity, &files, &ticket).await;
    let is_revoked = matches!(&admitted, Err(JoinError::Refused(Refusal::Revoked)));
    if is_revoked {
        // A key that was revoked is out for ever; whoever gave the ticket may let its owner in again.
        identity = Identity::generate();
        admitted = ask_in(&identity, &files, &ticket).await;
    }
    let Admitted {
        charter,
        by,
        addresses,
    } = admitted.map_err(join_failure)?;
    if is_revoked {
        let (app, identity) = (Arc::clone(&app), identity.clone());
        let replaced = spawn_blocking(move || app.replace_identity(identity)).await;
        joined(replaced).map_err(Failure::internal)?;
    }
    {
        let (files, charter) = (files.clone(), charter.clone());
        let made = spawn_blocking(move || {
            files.found(&charter)?;
            files.take_back_owned(charter.genesis.cluster_id())
        });
        joined(made.await).map_err(Failure::internal)?;
    }
    let before: Vec<CacheName> = local_caches(&app);
    let mesh = start(&app, &identity, files, charter, Some(addresses)).await?;
    // To its end, also if nobody waits for the answer any more.
    let settling = {
        let (app, mesh) = (Arc::clone(&app), Arc::clone(&mesh));
        tokio::spawn(async move {
            let caught_up = catch_up(&mesh).await;
            let settled = settle(&app, &mesh, &before).await;
            settled.map(|(renamed, dropped)| (caught_up, renamed, dropped))
        })
    };
    let (caught_up, renamed, dropped) = joined(settling.await)?;
    let caches = joined_caches(&app, &mesh);
    Ok(Json(JoinReply {
        cluster: mesh.cluster,
        name: mesh.name.clone(),
        admitted_by: by,
        caches,
        renamed,
        dropped,
        new_identity: is_revoked,
        incomplete: !caught_up,
    }))
}

pub(crate) fn local_caches(app: &App) -> Vec<CacheName> {
    let snapshot = app.caches.snapshot();
    let local = snapshot
        .values()
        .filter(|cache| cache.settings.shared_as.is_none());
    local.map(|cache| cache.name.clone()).collect()
}

/// Waits until this node has all that a member has, the newest settings of each cache among it, and the
/// keys of private caches that may be for it ([`lacks_no_key`]). False if not all has come that a member
/// has; if only keys are missing, whoever has them may be away.
async fn catch_up(mesh: &Mesh) -> bool {
    let started = Instant::now();
    loop {
        let has_all = has_all_of_a_member(mesh);
        let patience = match has_all {
            true => CACHES_PATIENCE,
            false => CATCH_UP_PATIENCE,
        };
        if (has_all && lacks_no_key(mesh)) || started.elapsed() >= patience {
            return has_all;
        }
        let _ = timeout(CATCH_UP_PAUSE, mesh.caches_changed.notified()).await;
    }
}

/// Whether this node has what one of the members connected now has.
fn has_all_of_a_member(mesh: &Mesh) -> bool {
    // A cluster that was made just now has a log without a word for a moment. The first is of caches,
    // and that its author is a member follows.
    let mut members = mesh.view.members().into_iter();
    let is_told = members.any(|member| member.node != mesh.me);
    is_told && mesh.view.has_caught_up() && mesh.view.has_all_of_a_peer()
}

/// Takes on the cluster's caches that are known, and makes room for those whose name is taken here.
pub(crate) async fn settle(
    app: &Arc<App>,
    mesh: &Arc<Mesh>,
    local: &[CacheName],
) -> Result<(Vec<RenamedCache>, Vec<CacheName>), Failure> {
    let (app, mesh, local) = (Arc::clone(app), Arc::clone(mesh), local.to_vec());
    let settled = blocking(move || {
        let made = make_room(&app, &mesh, &local);
        // From now on caches of this node keep their names.
        mesh.announcer.settle();
        let adopted = mesh
            .announcer
            .adopt_caches(&app)
            .and_then(|()| mesh.announcer.finish_coming_back(&app))
            .and_then(|()| mesh.announcer.take_keys(&app));
        let made = made?;
        adopted.map_err(Failure::internal)?;
        Ok(made)
    });
    settled.await
}

/// Whether no private cache waits for its key that this node's certificate may be good for. Which those
/// are called is not known before.
fn lacks_no_key(mesh: &Mesh) -> bool {
    let Some(certificate) = mesh.members.certificate() else {
        return true;
    };
    let known = mesh.view.caches();
    let is_open = |pattern: &Pattern| match pattern.as_str().parse::<CacheName>() {
        Ok(name) => !known
            .iter()
            .any(|(_, _, config)| config.genesis.name == name),
        // It stands for many.
        Err(_) => true,
    };
    let scopes = &certificate.value().scopes;
    let mut patterns = scopes.read().iter().chain(scopes.write());
    !(patterns.any(is_open) && mesh.view.has_unopened_caches())
}

/// Takes `local` caches out of the way of the cluster's: those without paths go, others get another
/// name. A cache that this node left with the cluster is in nobody's way.
fn make_room(
    app: &App,
    mesh: &Mesh,
    local: &[CacheName],
) -> Result<(Vec<RenamedCache>, Vec<CacheName>), Failure> {
    let (mut renamed, mut dropped) = (Vec::new(), Vec::new());
    for (id, name, config) in mesh.announcer.readable_caches() {
        let returns = mesh.announcer.left_behind(app, id, &config);
        let is_here =
            app.caches.find_shared(&id).is_some() || returns.map_err(Failure::internal)?.is_some();
        let taken = app.caches.find(name.as_str());
        let Some(cache) = taken.filter(|_| !is_here && local.contains(&name)) else {
            continue;
        };
        // The key of a cache that this node owns in another cluster is of use there.
        let is_owned = cache.settings.left.is_some() && cache.secret.is_some();
        if app.store.paths(&cache.name, None, 1)?.is_empty() && !is_owned {
            app.caches.destroy(&cache.name, &app.store)?;
            dropped.push(name);
        } else {
            let to = app.caches.rename(&cache.name, mesh.cluster, &app.store)?;
            renamed.push(RenamedCache { from: name, to });
        }
        app.narinfos.clear();
    }
    Ok((renamed, dropped))
}

fn joined_caches(app: &App, mesh: &Mesh) -> Vec<JoinedCache> {
    let address = app.addresses.get().and_then(|addresses| addresses.first());
    let address = address.map_or("127.0.0.1:7745", String::as_str);
    let known = mesh.view.caches();
    let snapshot = app.caches.snapshot();
    let shared = snapshot.values().filter(|cache| {
        let id = cache.settings.shared_as;
        known.iter().any(|(known, _, _)| Some(*known) == id)
    });
    shared
        .map(|cache| {
            // Of a cache that this node owns the cluster may not have heard the newest yet.
            let view = cache.view();
            JoinedCache {
                name: cache.name.clone(),
                founded_as: cache.settings.founded_as.clone(),
                public_key: view.public_key,
                old_public_keys: view.old_public_keys,
                substituter: format!("http://{address}/{}", cache.name),
            }
        })
        .collect()
}

fn ticket_failure(error: TicketError) -> Failure {
    match error {
        TicketError::Expired { .. } => Failure::new(Kind::TicketExpired, error),
        _ => Failure::new(Kind::BadTicket, error),
    }
}

fn join_failure(error: JoinError) -> Failure {
    match error {
        JoinError::Ticket(error) => ticket_failure(error),
        JoinError::Refused(refusal @ Refusal::TicketExpired { .. }) => {
            Failure::new(Kind::TicketExpired, refusal)
        }
        JoinError::Refused(refusal @ Refusal::TicketUsedUp) => {
            Failure::new(Kind::TicketUsedUp, refusal)
        }
        JoinError::Refused(refusal @ Refusal::Revoked) => Failure::new(Kind::Revoked, refusal),
        JoinError::Refused(_) | JoinError::Unclear(_) => Failure::new(Kind::NotAdmitted, error),
        JoinError::Nobody(_) => Failure::new(Kind::NobodyReached, error),
        JoinError::Network(_) => Failure::internal(error),
    }
}

async fn leave(
    State(app): State<Arc<App>>,
    Json(request): Json<LeaveRequest>,
) -> Result<Json<LeaveReply>, Failure> {
    let _membership = app.membership.lock().await;
    let mesh = mesh_of(&app)?;
    if mesh.members.issues() && !request.delete_cluster_key {
        let message = "this node holds the cluster key: without it nobody is let in, revoked or \
                       renewed any more";
        return Err(Failure::new(Kind::HoldsClusterKey, message));
    }
    let handed_over = mesh.hand_over(&app).await;
    mesh.say_farewell().await;
    app.mesh.set(None);
    mesh.stop().await;
    let files = ClusterFiles::new(&app.data);
    let leaving = Arc::clone(&app);
    let done = blocking(move || {
        let app = leaving;
        files.keep_owned(mesh.cluster).map_err(Failure::internal)?;
        for cache in app.caches.snapshot().values() {
            let Some(id) = cache.settings.shared_as else {
                continue;
            };
            match files.owner_seed(&id).map_err(Failure::internal)? {
                Some(_) => app.caches.unshare(&cache.name, mesh.cluster)?,
                None => app.caches.unshare_without_key(&cache.name, mesh.cluster)?,
            };
        }
        app.narinfos.clear();
        files.leave().map_err(Failure::internal)
    });
    done.await?;
    Ok(Json(LeaveReply {
        handed_off: handed_over.handed_off,
        only_here: handed_over.left,
    }))
}

async fn show(State(app): State<Arc<App>>) -> Result<Json<ClusterView>, Failure> {
    let mesh = mesh_of(&app)?;
    let certificate = mesh.members.certificate();
    let certificate = certificate.as_ref().map(|signed| signed.value());
    let is_keeper = certificate.is_some_and(|own| own.role == MemberRole::Keeper);
    let (_, segments, bytes) = mesh.view.sizes();
    let known = mesh.view.caches();
    let snapshot = app.caches.snapshot();
    let shared = snapshot.values().filter_map(|cache| {
        let id = cache.settings.shared_as?;
        let (_, _, config) = known.iter().find(|(known, _, _)| *known == id)?;
        Some((id, cache, config))
    });
    let view = mesh.view.clone();
    let ids: Vec<CacheId> = shared.clone().map(|(id, _, _)| id).collect();
    let paths = blocking(move || Ok(ids.into_iter().map(|id| view.count_paths(id)).sum()));
    let paths = paths.await?;
    let caches = shared.map(|(id, cache, config)| ClusterCache {
        name: cache.name.clone(),
        founded_as: cache.settings.founded_as.clone(),
        public_keys: config.public_keys.iter().map(ToString::to_string).collect(),
        public: config.public,
        writable: cache.secret.is_some(),
        readers: mesh.view.readers(id).max(1),
    });
    Ok(Json(ClusterView {
        cluster: mesh.cluster,
        name: mesh.name.clone(),
        node: mesh.me,
        role: role(is_keeper),
        certificate_expires: mesh.certificate_expires(),
        revoked: revoked(&mesh),
        issuer: mesh.members.issues(),
        keeper: is_keeper,
        members: members(&mesh),
        connected: mesh.network.peers().len() as u64,
        caches: caches.collect(),
        paths,
        log: LogUsage { segments, bytes },
        bucket: crate::http::bucket::brief(&app),
    }))
}

fn role(is_keeper: bool) -> Role {
    if is_keeper {
        Role::Keeper
    } else {
        Role::Member
    }
}

/// The cluster in a few words; `None` in none.
pub(crate) fn brief(app: &App) -> Option<ClusterStatus> {
    let mesh = app.mesh.get()?;
    let status = mesh.network.status();
    Some(ClusterStatus {
        name: mesh.name.clone(),
        members: members(&mesh),
        connected: status.peers.len() as u64,
        banned: status.bans.len() as u64,
        renamed: renamed(app),
        certificate_expires: mesh.certificate_expires(),
        revoked: revoked(&mesh),
        untold_paths: mesh.announcer.untold_paths(),
    })
}

/// How many members there are, this one included: its log may not show yet that it is one.
fn members(mesh: &Mesh) -> u64 {
    let known = mesh.view.members();
    let is_counted = known.iter().any(|member| member.node == mesh.me) || mesh.view.is_out(mesh.me);
    known.len() as u64 + u64::from(!is_counted)
}

/// Caches of the cluster that have another name here, ordered by that.
fn renamed(app: &App) -> Vec<RenamedCache> {
    let snapshot = app.caches.snapshot();
    let renamed = snapshot.values().filter_map(|cache| {
        let from = cache.settings.founded_as.clone()?;
        let to = cache.name.clone();
        Some(RenamedCache { from, to })
    });
    renamed.collect()
}

/// What this node knows of its own revocation. Strangers at the address of a member are not heard.
fn revoked(mesh: &Mesh) -> Option<Revoked> {
    let proven_at = mesh.members.own_revocation().map(|own| own.at.0);
    let said_by = mesh.members.shut_out_by().into_iter();
    let said_by = said_by.filter(|node| mesh.view.member(*node).is_some());
    let said_by = said_by.map(|node| Teller {
        node,
        name: mesh.names.of(&node, None).name,
    });
    let said_by: Vec<Teller> = said_by.collect();
    (proven_at.is_some() || !said_by.is_empty()).then_some(Revoked { proven_at, said_by })
}

async fn revoke(
    State(app): State<Arc<App>>,
    Path(node): Path<String>,
) -> Result<Json<RevokeReply>, Failure> {
    let mesh = mesh_of(&app)?;
    let node: NodeId = node
        .parse()
        .map_err(|_| Failure::new(Kind::NoSuchPeer, "not the id of a node"))?;
    if node == mesh.me {
        let message = "this is the node itself: it goes with `attic-node leave`";
        return Err(Failure::new(Kind::BadRequest, message));
    }
    if mesh.view.member(node).is_none() {
        return Err(Failure::new(
            Kind::NoSuchPeer,
            "no member of the cluster has this id",
        ));
    }
    let revocation = mesh
        .members
        .sign_revocation(Subject::Node(node))
        .map_err(issue_failure)?;
    mesh.members.revoke_known(&revocation);
    let members = Arc::clone(&mesh.members);
    let withdrawn = blocking(move || {
        let withdrawn = members.withdraw_tickets_of(node);
        withdrawn.map_err(Failure::internal)
    });
    // Whoever is revoked is out though its tickets cannot be taken back.
    let withdrawn = withdrawn.await;
    let (announcer, granting) = (Arc::clone(&mesh.announcer), Arc::clone(&app));
    blocking(move || {
        announcer.say_all(vec![Record::Revoke(revocation)]);
        // What is pushed from now on is sealed under keys that the node does not get.
        announcer.grant_to_all(&granting).map_err(Failure::from)
    })
    .await?;
    mesh.network.ban(node, REVOKED_BAN, "revoked").await;
    let caches = mesh.view.made_by(node).into_iter();
    let caches = caches.map(|(id, name)| {
        let local = app.caches.find_shared(&id);
        local.map_or(name, |cache| cache.name.clone())
    });
    Ok(Json(RevokeReply {
        tickets_withdrawn: withdrawn?,
        caches: caches.collect(),
    }))
}

/// Ten years: a later end is a mistake.
const TICKET_AGE_MAX: u64 = 10 * 365 * 24 * 3600;
const ADDRESS_TRIES: u32 = 50;
const ADDRESS_PAUSE: Duration = Duration::from_millis(20);
/// How long joining waits for what a member has.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(15);
/// How long it waits for the keys of private caches: they may be for others.
const CACHES_PATIENCE: Duration = Duration::from_secs(10);
const CATCH_UP_PAUSE: Duration = Duration::from_millis(20);
const REVOKED_BAN: Duration = Duration::from_secs(3600);
