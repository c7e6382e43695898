//! This node's side of the cluster's membership: what the transport's gate asks, and issuing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use attic_p2p::directory::Directory;
use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::membership::Role;
use attic_p2p::membership::address::Address;
use attic_p2p::membership::certificate::{Certificate, Delegation, DelegationUse, Holder, Issuer};
use attic_p2p::membership::gate::{
    GateState, GateView, RefusedBy, Standing, judge_renewal, judge_renewed,
};
use attic_p2p::membership::genesis::{ClusterKey, Genesis};
use attic_p2p::membership::hello::Refusal;
use attic_p2p::membership::invite::{Invite, InviteError, InviteKey, Invites, Terms};
use attic_p2p::membership::revocation::{Revocation, Revocations, Subject};
use attic_p2p::membership::sealing::{OpeningKey, SealingKey};
use attic_p2p::membership::ticket::{Ticket, TicketError, TicketKind};
use attic_p2p::membership::time::UnixTime;
use attic_p2p::signed::Signed;
use futures::future::BoxFuture;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use crate::auth::random;
use crate::clock::unix_now;
use crate::http::error::chain;
use crate::mesh::files::{Charter, ClusterFileError, ClusterFiles};

/// What this node knows of who belongs to its cluster, and what it may say about that itself.
pub(crate) struct Members {
    files: ClusterFiles,
    cluster_key: Option<ClusterKey>,
    view: RwLock<Arc<GateView>>,
    invites: Mutex<Invites>,
    /// Learnt by handshake, until the log takes them.
    learnt: Mutex<Vec<Signed<Revocation>>>,
    /// Why nodes that were dialled did not let this one in, the latest last.
    refusals: Mutex<VecDeque<Refused>>,
    /// Of those who were met, the certificate they have.
    met: Mutex<BTreeMap<NodeId, Met>>,
    /// Told when something was learnt, adopted or refused.
    pub(crate) news: Notify,
    /// Told when this member has another certificate.
    pub(crate) renewed: Notify,
    /// Told when there is something for [`Members::take_learnt`].
    pub(crate) learnt_news: Notify,
}

/// Why a node that was dialled did not become a peer.
struct Refused {
    node: NodeId,
    refusal: Refusal,
    /// Whose word it is.
    by: RefusedBy,
}

/// What a node showed when it was met.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Met {
    pub(crate) role: Role,
    pub(crate) not_after: UnixTime,
}

impl Members {
    /// Of a node that is in a cluster.
    ///
    /// **Errors**: the file of open invitations is damaged.
    pub(crate) fn of_member(
        identity: &Identity,
        files: ClusterFiles,
        charter: Charter,
    ) -> Result<Members, ClusterFileError> {
        let invites = files.invites()?;
        let standing = Standing::Member(charter.certificate);
        let view = view(identity, charter.genesis, standing, &charter.cluster_key);
        Ok(Members::new(files, charter.cluster_key, view, invites))
    }

    /// The record that founded the cluster.
    pub(crate) fn genesis(&self) -> Genesis {
        self.view().genesis.clone()
    }

    /// Of a node that wants into a cluster. Nothing is written until it is a member.
    pub(crate) fn of_joiner(
        identity: &Identity,
        files: ClusterFiles,
        genesis: Genesis,
        standing: Standing,
    ) -> Members {
        let view = view(identity, genesis, standing, &None);
        Members::new(files, None, view, Invites::default())
    }

    fn new(
        files: ClusterFiles,
        cluster_key: Option<ClusterKey>,
        view: GateView,
        invites: Invites,
    ) -> Members {
        Members {
            files,
            cluster_key,
            view: RwLock::new(Arc::new(view)),
            invites: Mutex::new(invites),
            learnt: Mutex::default(),
            refusals: Mutex::default(),
            met: Mutex::default(),
            news: Notify::new(),
            renewed: Notify::new(),
            learnt_news: Notify::new(),
        }
    }

    /// What is known now.
    pub(crate) fn view(&self) -> Arc<GateView> {
        Arc::clone(&self.view.read().expect("no panic under this lock"))
    }

    /// This node's certificate; `None` while it is joining.
    pub(crate) fn certificate(&self) -> Option<Signed<Certificate>> {
        match &self.view().standing {
            Standing::Member(certificate) => Some(certificate.clone()),
            Standing::Joining(_) => None,
        }
    }

    /// Whether this node can let others in by a counted ticket, and revoke.
    pub(crate) fn issues(&self) -> bool {
        self.cluster_key.is_some()
    }

    /// Takes what handshakes taught since the last call.
    pub(crate) fn take_learnt(&self) -> Vec<Signed<Revocation>> {
        std::mem::take(&mut self.learnt.lock().expect("no panic under this lock"))
    }

    /// Why nodes did not let this one in, the latest last.
    pub(crate) fn refusals(&self) -> Vec<(NodeId, Refusal)> {
        let refusals = self.refusals.lock().expect("no panic under this lock");
        let why = |refused: &Refused| (refused.node, refused.refusal.clone());
        refusals.iter().map(why).collect()
    }

    /// Who said last that this node is revoked, when it was dialled. Whether they are members is not
    /// looked at.
    pub(crate) fn shut_out_by(&self) -> Vec<NodeId> {
        let refusals = self.refusals.lock().expect("no panic under this lock");
        let says_so = |refused: &&Refused| {
            refused.by == RefusedBy::Listener && refused.refusal == Refusal::Revoked
        };
        let nodes = refusals.iter().filter(says_so).map(|refused| refused.node);
        nodes.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The revocation that this node's certificate falls under.
    pub(crate) fn own_revocation(&self) -> Option<Revocation> {
        let view = self.view();
        let Standing::Member(certificate) = &view.standing else {
            return None;
        };
        let found = view.revocations.concerning(certificate.value());
        found.map(|revocation| revocation.value().clone())
    }

    /// What a node showed when it was met last, since this one's start.
    pub(crate) fn met(&self, node: &NodeId) -> Option<Met> {
        let met = self.met.lock().expect("no panic under this lock");
        met.get(node).copied()
    }

    /// Whether this node's certificate should be renewed by somebody else now.
    pub(crate) fn wants_renewal(&self) -> Option<Signed<Certificate>> {
        let certificate = self.certificate()?;
        let due = now() >= certificate.value().renew_after();
        (due && !self.issues()).then_some(certificate)
    }

    /// The next certificate of a connected member that shows the one it has; `None` if it should
    /// have none, or not yet, or not from here.
    pub(crate) fn renew(
        &self,
        member: NodeId,
        certificate: &Signed<Certificate>,
    ) -> Option<Signed<Certificate>> {
        let holder = judge_renewal(&self.view(), now(), member, certificate);
        self.certify(holder.ok().flatten()?)
    }

    /// Takes on a certificate that somebody handed to this node on its request, durably if it can.
    ///
    /// **Errors**: it is none for this node; nothing has changed.
    pub(crate) fn take_renewed(&self, renewed: Signed<Certificate>) -> Result<(), Refusal> {
        judge_renewed(&self.view(), now(), &renewed)?;
        if let Err(error) = self.files.write_certificate(&renewed) {
            tracing::warn!(cause = chain(&error), "the new certificate was not kept");
        }
        self.set_certificate(renewed);
        Ok(())
    }

    /// Takes in a revocation that the directory holds; true if it was news.
    pub(crate) fn revoke_known(&self, revocation: &Signed<Revocation>) -> bool {
        let mut view = self.view.write().expect("no panic under this lock");
        let mut revocations = view.revocations.clone();
        let genesis = view.genesis.clone();
        match revocations.insert(revocation.clone(), &genesis) {
            Ok(true) => {
                *view = Arc::new(GateView {
                    revocations,
                    ..GateView::clone(&view)
                });
                true
            }
            Ok(false) | Err(_) => false,
        }
    }

    /// Takes in what the directory knows of revocations.
    pub(crate) fn take_revocations(&self, directory: &Directory) {
        for revocation in directory.revocations() {
            self.revoke_known(revocation);
        }
    }

    /// A revocation of `subject`, signed.
    ///
    /// **Errors**: [`IssueError::NotAnIssuer`].
    pub(crate) fn sign_revocation(
        &self,
        subject: Subject,
    ) -> Result<Signed<Revocation>, IssueError> {
        let key = self.cluster_key.as_ref().ok_or(IssueError::NotAnIssuer)?;
        let cluster = self.view().genesis.cluster_id();
        Ok(Signed::new(Revocation::new(cluster, subject, now()), key))
    }

    /// Takes back the counted tickets by which a node came, as far as they are good for more: it could
    /// come again under another key. Returns how many. Blocks on the disk.
    ///
    /// **Errors**: it could not be written down; all are as they were.
    pub(crate) fn withdraw_tickets_of(&self, node: NodeId) -> Result<u64, ClusterFileError> {
        let mut invites = self.invites.lock().expect("no panic under this lock");
        let of_node = invites.list().filter(|invite| {
            let is_open = invite.uses_left() > 0 && now() <= invite.terms().not_after;
            is_open && invite.redeemed().contains(&node)
        });
        let keys: Vec<NodeId> = of_node.map(Invite::key).collect();
        if keys.is_empty() {
            return Ok(0);
        }
        let mut next = invites.clone();
        let withdrawn = keys.into_iter().filter(|key| next.revoke(*key)).count();
        self.files.write_invites(&next)?;
        *invites = next;
        Ok(withdrawn as u64)
    }

    /// Makes a ticket: good for `uses` nodes, redeemed here; or, without, for whoever has it, at any
    /// member. Blocks on the disk.
    ///
    /// **Errors**: [`IssueError`]; no ticket exists then.
    pub(crate) fn invite(
        &self,
        terms: Terms,
        uses: Option<u32>,
        addresses: Vec<Address>,
    ) -> Result<Ticket, IssueError> {
        let cluster_key = self.cluster_key.as_ref().ok_or(IssueError::NotAnIssuer)?;
        let genesis = self.view().genesis.clone();
        let key = InviteKey::from_seed(random());
        let kind = match uses {
            None => {
                let delegation = Delegation {
                    version: attic_p2p::membership::VERSION,
                    cluster: genesis.cluster_id(),
                    key: key.id(),
                    usage: DelegationUse::Invite,
                    role: terms.role,
                    scopes: terms.scopes,
                    serial: random(),
                    not_after: terms.not_after,
                };
                TicketKind::Open(Box::new(Signed::new(delegation, cluster_key)))
            }
            Some(uses) => {
                let mut invites = self.invites.lock().expect("no panic under this lock");
                let mut next = invites.clone();
                next.add(Invite::new(key.id(), terms.clone(), uses)?, now())?;
                self.files.write_invites(&next)?;
                *invites = next;
                TicketKind::Counted(terms)
            }
        };
        Ok(Ticket::new(genesis, addresses, key, kind)?)
    }

    fn redeem_now(
        &self,
        invite: NodeId,
        joiner: NodeId,
        sealing_key: SealingKey,
    ) -> Result<Signed<Certificate>, Refusal> {
        let terms = {
            let mut invites = self.invites.lock().expect("no panic under this lock");
            let mut next = invites.clone();
            let terms = next.redeem(invite, joiner, now())?.clone();
            if next != *invites {
                self.files.write_invites(&next).map_err(|error| {
                    tracing::error!(cause = chain(&error), "an invitation cannot be redeemed");
                    Refusal::Unavailable
                })?;
                *invites = next;
            }
            terms
        };
        let holder = Holder {
            node: joiner,
            sealing_key,
            role: terms.role,
            scopes: terms.scopes,
        };
        self.certify(holder).ok_or(Refusal::TicketUnknown)
    }

    fn certify(&self, holder: Holder) -> Option<Signed<Certificate>> {
        let key = self.cluster_key.as_ref()?;
        let cluster = self.view().genesis.cluster_id();
        let certificate = Certificate::new(cluster, holder, Issuer::Cluster, now(), random());
        Some(Signed::new(certificate, key))
    }

    /// Renews this node's own certificate when it is due and the cluster's key is here.
    pub(crate) fn renew_own(&self) -> Result<bool, ClusterFileError> {
        let Some(certificate) = self.certificate() else {
            return Ok(false);
        };
        let due = now() >= certificate.value().renew_after();
        let Some(next) = due
            .then(|| self.certify(certificate.value().holder()))
            .flatten()
        else {
            return Ok(false);
        };
        self.files.write_certificate(&next)?;
        self.set_certificate(next);
        Ok(true)
    }

    fn set_certificate(&self, certificate: Signed<Certificate>) {
        let mut view = self.view.write().expect("no panic under this lock");
        let was_member = matches!(view.standing, Standing::Member(_));
        *view = Arc::new(GateView {
            standing: Standing::Member(certificate),
            ..GateView::clone(&view)
        });
        drop(view);
        self.news.notify_waiters();
        if was_member {
            self.renewed.notify_one();
        }
    }
}

/// What the transport's gate asks.
pub(crate) struct Door(pub(crate) Arc<Members>);

impl GateState for Door {
    fn now(&self) -> UnixTime {
        now()
    }

    fn view(&self) -> Arc<GateView> {
        self.0.view()
    }

    fn redeem(
        &self,
        invite: NodeId,
        joiner: NodeId,
        sealing_key: SealingKey,
    ) -> BoxFuture<'_, Result<Signed<Certificate>, Refusal>> {
        let members = Arc::clone(&self.0);
        let redeemed = spawn_blocking(move || members.redeem_now(invite, joiner, sealing_key));
        Box::pin(async move { redeemed.await.unwrap_or(Err(Refusal::Unavailable)) })
    }

    fn renew(&self, holder: Holder) -> BoxFuture<'_, Option<Signed<Certificate>>> {
        let renewed = self.0.certify(holder);
        Box::pin(std::future::ready(renewed))
    }

    fn learn(&self, revocations: Vec<Signed<Revocation>>) {
        for revocation in revocations {
            if self.0.revoke_known(&revocation) {
                let mut learnt = self.0.learnt.lock().expect("no panic under this lock");
                if learnt.len() < LEARNT_MAX {
                    learnt.push(revocation);
                }
                self.0.learnt_news.notify_one();
            }
        }
        self.0.news.notify_waiters();
    }

    fn adopt(&self, certificate: Signed<Certificate>) {
        let is_member = self.0.certificate().is_some();
        self.0.set_certificate(certificate.clone());
        if is_member {
            let files = self.0.files.clone();
            spawn_blocking(move || {
                if let Err(error) = files.write_certificate(&certificate) {
                    tracing::warn!(cause = chain(&error), "the new certificate was not kept");
                }
            });
        }
    }

    fn met(&self, certificate: &Certificate) {
        let mut met = self.0.met.lock().expect("no panic under this lock");
        if met.len() >= MET_MAX && !met.contains_key(&certificate.node) {
            met.pop_first();
        }
        let latest = Met {
            role: certificate.role,
            not_after: certificate.not_after,
        };
        met.insert(certificate.node, latest);
        drop(met);
        let mut refusals = self.0.refusals.lock().expect("no panic under this lock");
        refusals.retain(|refused| refused.node != certificate.node);
    }

    fn refused(&self, remote: NodeId, refusal: &Refusal, by: RefusedBy) {
        let mut refusals = self.0.refusals.lock().expect("no panic under this lock");
        refusals.retain(|refused| refused.node != remote);
        if refusals.len() == REFUSALS_MAX {
            refusals.pop_front();
        }
        refusals.push_back(Refused {
            node: remote,
            refusal: refusal.clone(),
            by,
        });
        drop(refusals);
        self.0.news.notify_waiters();
    }
}

fn view(
    identity: &Identity,
    genesis: Genesis,
    standing: Standing,
    cluster_key: &Option<ClusterKey>,
) -> GateView {
    GateView {
        node: identity.node_id(),
        sealing_key: OpeningKey::of(identity).sealing_key(),
        genesis,
        standing,
        revocations: Revocations::default(),
        issues: cluster_key.is_some(),
        issuers: Vec::new(),
    }
}

/// What makes the founder of a cluster its first member: a keeper that may do everything.
pub(crate) fn founder(identity: &Identity, genesis: Genesis, key: ClusterKey) -> Charter {
    let holder = Holder {
        node: identity.node_id(),
        sealing_key: OpeningKey::of(identity).sealing_key(),
        role: Role::Keeper,
        scopes: attic_p2p::membership::scopes::Scopes::all(),
    };
    let cluster = genesis.cluster_id();
    let certificate = Certificate::new(cluster, holder, Issuer::Cluster, now(), random());
    Charter {
        certificate: Signed::new(certificate, &key),
        genesis,
        cluster_key: Some(key),
    }
}

pub(crate) fn now() -> UnixTime {
    UnixTime(unix_now())
}

/// Why no ticket or revocation was made.
#[derive(Debug, Error)]
pub(crate) enum IssueError {
    /// The cluster's key is on another node.
    #[error("this node does not hold the cluster's key: ask the node that founded the cluster")]
    NotAnIssuer,
    /// The invitation is out of bounds.
    #[error(transparent)]
    Invite(#[from] InviteError),
    /// The ticket contradicts itself.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// It could not be written down.
    #[error(transparent)]
    File(#[from] ClusterFileError),
}

/// Most revocations that wait for the log; gossip brings the others.
const LEARNT_MAX: usize = 256;
/// Most nodes whose certificate is remembered.
const MET_MAX: usize = 1024;
/// Most nodes whose refusal is remembered.
const REFUSALS_MAX: usize = 64;
/// How long a newcomer tries the addresses of its ticket.
pub(crate) const JOIN_PATIENCE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::DataDir;

    fn node(seed: u8) -> NodeId {
        Identity::from_seed([seed; 32]).node_id()
    }

    /// A member with the cluster's key, and what its gate asks.
    fn founded(dir: &std::path::Path) -> (Door, ClusterKey) {
        let key = ClusterKey::from_seed([1; 32]);
        let genesis = key.found("office".parse().unwrap(), [2; 16]);
        let identity = Identity::from_seed([3; 32]);
        let charter = founder(&identity, genesis, key.clone());
        let files = ClusterFiles::new(&DataDir::new(dir));
        files.found(&charter).unwrap();
        let members = Members::of_member(&identity, files, charter).unwrap();
        (Door(Arc::new(members)), key)
    }

    #[test]
    fn a_word_of_others_is_no_proof_of_a_revocation_and_goes_when_they_let_us_in() {
        let dir = tempfile::tempdir().unwrap();
        let (door, key) = founded(dir.path());
        let members = &door.0;
        door.refused(node(7), &Refusal::Revoked, RefusedBy::Listener);
        door.refused(node(8), &Refusal::Revoked, RefusedBy::Listener);
        // It is the other that is out.
        door.refused(node(9), &Refusal::Revoked, RefusedBy::Us);
        let mut said = members.shut_out_by();
        said.sort();
        let mut wanted = vec![node(7), node(8)];
        wanted.sort();
        assert_eq!(said, wanted);
        assert_eq!(members.own_revocation(), None);

        door.refused(node(7), &Refusal::NotJoined, RefusedBy::Listener);
        let holder = Holder {
            node: node(8),
            sealing_key: OpeningKey::of(&Identity::from_seed([8; 32])).sealing_key(),
            role: Role::Member,
            scopes: attic_p2p::membership::scopes::Scopes::read_all(),
        };
        let certificate = members.certify(holder).unwrap();
        door.met(certificate.value());
        assert_eq!(members.shut_out_by(), []);

        let cluster = members.view().genesis.cluster_id();
        let own = Revocation::new(cluster, Subject::Node(node(3)), UnixTime(5));
        door.learn(vec![Signed::new(own.clone(), &key)]);
        assert_eq!(members.own_revocation(), Some(own));
    }

    #[test]
    fn who_says_that_this_node_is_out_is_remembered_of_a_few() {
        let dir = tempfile::tempdir().unwrap();
        let (door, _) = founded(dir.path());
        for seed in 10..200 {
            door.refused(node(seed), &Refusal::Revoked, RefusedBy::Listener);
        }
        assert_eq!(door.0.shut_out_by().len(), REFUSALS_MAX);
    }

    #[test]
    fn tickets_of_who_is_revoked_are_good_for_nobody_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let (door, _) = founded(dir.path());
        let members = &door.0;
        let ticket = |uses| {
            let terms = Terms {
                role: Role::Member,
                scopes: attic_p2p::membership::scopes::Scopes::read_all(),
                not_after: now().plus(Duration::from_secs(3600)),
            };
            let ticket = members.invite(terms, Some(uses), Vec::new()).unwrap();
            ticket.key().id()
        };
        let (shared, other, used) = (ticket(3), ticket(3), ticket(1));
        let key = OpeningKey::of(&Identity::from_seed([8; 32])).sealing_key();
        for (invite, joiner) in [(shared, 7), (shared, 8), (other, 8), (used, 7)] {
            members.redeem_now(invite, node(joiner), key).unwrap();
        }
        assert_eq!(members.withdraw_tickets_of(node(7)).unwrap(), 1);
        assert_eq!(members.withdraw_tickets_of(node(7)).unwrap(), 0);
        let refused = members.redeem_now(shared, node(9), key);
        assert_eq!(refused.unwrap_err(), Refusal::TicketUnknown);
        members.redeem_now(other, node(9), key).unwrap();
        let kept = ClusterFiles::new(&DataDir::new(dir.path())).invites();
        assert_eq!(kept.unwrap().list().count(), 2);
    }
}
