//! Judging who comes in, and letting in who may.
//!
//! The judgement is pure: a [`GateView`] is all that a node knows at one moment, and
//! [`judge_hello`] and [`judge_reply`] say what follows from it. [`MemberGate`] puts them at the
//! transport's door and does what they cannot: ask an issuer's table of invitations, which is on
//! disk, and pass on what was learnt.
//!
//! **Renewal happens here too.** A member whose certificate has passed two thirds of its life and
//! that dials an issuer is handed the next one with the answer, on the same terms. One that is
//! connected already asks for it, and is judged by the same rules: [`judge_renewal`]. An issuer
//! renews even a certificate that ran out, up to [`RENEWAL_GRACE`], and connects to its holder: a
//! laptop may sleep longer than 30 days, its key proves who it is, and where certificates are made,
//! revocations are known first. Everybody else refuses what has expired.
//!
//! **A member is never talked down.** The holder of an open ticket can write certificates for
//! others, with fewer rights than they have or a sealing key of its own choice. So what a listener
//! hands over is adopted only if the cluster or an issuer signed it, for the very keys of this
//! node.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::address::Address;
use super::certificate::{Certificate, DelegationUse, Holder, Issuer};
use super::genesis::Genesis;
use super::hello::{Admission, Credential, Hello, Join, Refusal, Reply};
use super::invite::InviteKey;
use super::revocation::{Revocation, Revocations, Subject};
use super::sealing::SealingKey;
use super::time::UnixTime;
use crate::gate;
use crate::gate::{Answer, Gate};
use crate::ids::NodeId;
use crate::signed::Signed;

/// How long after its end an issuer still renews a certificate.
pub const RENEWAL_GRACE: Duration = Duration::from_secs(180 * 24 * 60 * 60);

/// All that a judgement rests on, at one moment.
#[derive(Clone, Debug)]
pub struct GateView {
    /// This node.
    pub node: NodeId,
    /// What secrets for it are sealed to.
    pub sealing_key: SealingKey,
    /// The cluster it is in or wants into.
    pub genesis: Genesis,
    /// Which of the two.
    pub standing: Standing,
    /// Who is out.
    pub revocations: Revocations,
    /// Whether it redeems tickets and renews certificates.
    pub issues: bool,
    /// Who else does, for those it has to send away.
    pub issuers: Vec<Address>,
}

/// How a node stands to its cluster.
#[derive(Clone, Debug)]
pub enum Standing {
    /// It holds a counted ticket with this key.
    Joining(InviteKey),
    /// It holds this certificate, which may have expired.
    Member(Signed<Certificate>),
}

/// What a hello that is not refused leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The dialer comes in.
    Admit,
    /// It should be given its next certificate. If none can be made, `otherwise` holds.
    Renew {
        /// Whom and what for.
        holder: Holder,
        /// Admitted with the certificate it has, or refused.
        otherwise: Result<(), Refusal>,
    },
    /// It comes in if this ticket lets one more in.
    Redeem {
        /// The public half of the ticket's key.
        invite: NodeId,
        /// For its certificate.
        sealing_key: SealingKey,
    },
}

/// What follows from the hello of `remote`, whose key the handshake has proved.
///
/// **Errors**: why it stays out.
pub fn judge_hello(
    view: &GateView,
    now: UnixTime,
    remote: NodeId,
    hello: &Hello,
) -> Result<Judgement, Refusal> {
    match &hello.credential {
        Credential::Member(certificate) => judge_member(view, now, remote, certificate),
        Credential::Join(join) => judge_join(view, remote, join),
    }
}

fn judge_member(
    view: &GateView,
    now: UnixTime,
    remote: NodeId,
    certificate: &Signed<Certificate>,
) -> Result<Judgement, Refusal> {
    let certificate = certificate.verify_chain(&view.genesis)?;
    if certificate.node != remote {
        return Err(Refusal::NotAMember);
    }
    if view.revocations.concerning(certificate).is_some() {
        return Err(Refusal::Revoked);
    }
    let not_after = certificate.not_after;
    let otherwise = match now > not_after {
        true => Err(Refusal::Expired { not_after }),
        false => Ok(()),
    };
    let due = certificate.renew_after() <= now && now <= not_after.plus(RENEWAL_GRACE);
    if view.issues && due {
        let holder = certificate.holder();
        return Ok(Judgement::Renew { holder, otherwise });
    }
    otherwise.map(|()| Judgement::Admit)
}

/// For whom to make a next certificate, when the connected member `remote` shows the one it has;
/// `None` if it is not due, or not made here.
///
/// **Errors**: why `remote` should have none.
pub fn judge_renewal(
    view: &GateView,
    now: UnixTime,
    remote: NodeId,
    certificate: &Signed<Certificate>,
) -> Result<Option<Holder>, Refusal> {
    match judge_member(view, now, remote, certificate)? {
        Judgement::Renew { holder, .. } => Ok(Some(holder)),
        Judgement::Admit | Judgement::Redeem { .. } => Ok(None),
    }
}

/// The certificate that `remote` hands to this node on its request, if this node should adopt it.
///
/// **Errors**: why not.
pub fn judge_renewed<'a>(
    view: &GateView,
    now: UnixTime,
    renewed: &'a Signed<Certificate>,
) -> Result<&'a Certificate, Refusal> {
    let certificate = require_for_us(view, now, renewed)?;
    match view.revocations.concerning(certificate) {
        Some(_) => Err(Refusal::Revoked),
        None => Ok(certificate),
    }
}

fn judge_join(view: &GateView, remote: NodeId, join: &Join) -> Result<Judgement, Refusal> {
    let proof = join.proof.verify(&join.invite);
    let proof = proof.map_err(|_| Refusal::BadProof)?;
    if proof.cluster != view.genesis.cluster_id() {
        return Err(Refusal::OtherCluster);
    }
    if proof.joiner != remote || proof.listener != view.node {
        return Err(Refusal::BadProof);
    }
    if view.revocations.of(Subject::Node(remote)).is_some() {
        return Err(Refusal::Revoked);
    }
    if view.revocations.of(Subject::Invite(join.invite)).is_some() {
        return Err(Refusal::TicketRevoked);
    }
    if !view.issues {
        let issuers = view.issuers.iter().take(Refusal::ISSUERS_MAX);
        return Err(Refusal::NotAnIssuer {
            issuers: issuers.cloned().collect(),
        });
    }
    Ok(Judgement::Redeem {
        invite: join.invite,
        sealing_key: proof.sealing_key,
    })
}

/// What a dialer takes from a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The listener's, checked.
    pub certificate: Signed<Certificate>,
    /// Its new certificate, checked.
    pub granted: Option<Signed<Certificate>>,
    /// Revocations of this cluster, each checked; some may be known already.
    pub revocations: Vec<Signed<Revocation>>,
}

/// What follows from the reply of `remote`, whose key the handshake has proved.
///
/// **Errors**: why the listener did not let us in, or why we do not want it.
pub fn judge_reply(
    view: &GateView,
    now: UnixTime,
    remote: NodeId,
    reply: Reply,
) -> Result<Accepted, Refusal> {
    let admission = match reply {
        Reply::Admitted(admission) => *admission,
        Reply::Refused(refusal) => return Err(refusal),
    };
    let certificate = admission.certificate.verify_chain(&view.genesis)?;
    if certificate.node != remote {
        return Err(Refusal::NotAMember);
    }
    let not_after = certificate.not_after;
    // It will ask for the next one.
    let renewable = view.issues && now <= not_after.plus(RENEWAL_GRACE);
    if now > not_after && !renewable {
        return Err(Refusal::Expired { not_after });
    }
    let mut learnt = Revocations::default();
    for revocation in &admission.revocations {
        let inserted = learnt.insert(revocation.clone(), &view.genesis);
        inserted.map_err(|_| Refusal::Malformed)?;
    }
    let revoked = |certificate: &Certificate| {
        let known = [&view.revocations, &learnt];
        known
            .iter()
            .any(|set| set.concerning(certificate).is_some())
    };
    if revoked(certificate) {
        return Err(Refusal::Revoked);
    }
    match &admission.granted {
        Some(granted) => {
            let granted = require_for_us(view, now, granted)?;
            if revoked(granted) {
                return Err(Refusal::Revoked);
            }
        }
        None if matches!(view.standing, Standing::Joining(_)) => return Err(Refusal::Malformed),
        None => {}
    }
    Ok(Accepted {
        certificate: admission.certificate,
        granted: admission.granted,
        revocations: admission.revocations,
    })
}

/// The certificate, if this node should adopt it.
fn require_for_us<'a>(
    view: &GateView,
    now: UnixTime,
    granted: &'a Signed<Certificate>,
) -> Result<&'a Certificate, Refusal> {
    let granted = granted.check(&view.genesis, now)?;
    let by_issuer = match &granted.issuer {
        Issuer::Cluster => true,
        Issuer::Delegate(delegation) => delegation.value().usage == DelegationUse::Issuer,
    };
    if !by_issuer || granted.node != view.node || granted.sealing_key != view.sealing_key {
        return Err(Refusal::Malformed);
    }
    Ok(granted)
}

/// What a [`MemberGate`] asks of its node. Called from many connections at once.
pub trait GateState: Send + Sync + 'static {
    /// The time. May be wrong; never waits.
    fn now(&self) -> UnixTime;

    /// What the node knows, as of now. Never waits for disk or network.
    fn view(&self) -> Arc<GateView>;

    /// Lets `joiner` in by the ticket with this key, and gives it its certificate.
    ///
    /// **Order**: the use is durable before this is ready. **Cancellation**: dropped when the
    /// joiner goes away; the use may then be counted, and asking again succeeds.
    ///
    /// **Errors**: those of [`super::invite::Invites::redeem`], [`Refusal::Unavailable`] when the
    /// use could not be written down.
    fn redeem(
        &self,
        invite: NodeId,
        joiner: NodeId,
        sealing_key: SealingKey,
    ) -> BoxFuture<'_, Result<Signed<Certificate>, Refusal>>;

    /// Makes a member's next certificate; `None` if that cannot be done. Nothing is counted.
    fn renew(&self, holder: Holder) -> BoxFuture<'_, Option<Signed<Certificate>>>;

    /// Takes in checked revocations. Never waits: durability may come later, gossip brings them
    /// again.
    fn learn(&self, revocations: Vec<Signed<Revocation>>);

    /// Takes on a checked certificate of this node. Never waits: if it is lost, the issuer gives
    /// another.
    fn adopt(&self, certificate: Signed<Certificate>);

    /// Hears of the certificate of somebody who is about to be connected: it was checked, and is
    /// its latest. Never waits.
    fn met(&self, certificate: &Certificate);

    /// Hears why `remote`, which we dialled, is not connected: for `join` and `peers` to tell.
    fn refused(&self, remote: NodeId, refusal: &Refusal, by: RefusedBy);
}

/// Whose word a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBy {
    /// The listener said it, and may lie.
    Listener,
    /// We do not want the listener.
    Us,
}

/// The transport's gate of a node that is in a cluster or wants into one.
pub struct MemberGate<S> {
    state: S,
}

impl<S: GateState> MemberGate<S> {
    /// The gate of the node with this state.
    pub fn new(state: S) -> MemberGate<S> {
        MemberGate { state }
    }

    async fn admit(
        &self,
        remote: NodeId,
        hello: Result<Hello, Refusal>,
    ) -> Result<Admission, Refusal> {
        let hello = hello?;
        let view = self.state.view();
        let Standing::Member(certificate) = &view.standing else {
            return Err(Refusal::NotJoined);
        };
        let shown = match &hello.credential {
            Credential::Member(shown) => Some(shown),
            Credential::Join(_) => None,
        };
        let granted = match judge_hello(&view, self.state.now(), remote, &hello)? {
            Judgement::Admit => None,
            Judgement::Renew { holder, otherwise } => {
                let renewed = self.state.renew(holder).await;
                if renewed.is_none() {
                    otherwise?;
                }
                renewed
            }
            Judgement::Redeem {
                invite,
                sealing_key,
            } => Some(self.state.redeem(invite, remote, sealing_key).await?),
        };
        if let Some(latest) = granted.as_ref().or(shown) {
            self.state.met(latest.value());
        }
        let revocations = match hello.revocations_digest == view.revocations.digest() {
            true => Vec::new(),
            false => view.revocations.latest(Admission::REVOCATIONS_MAX),
        };
        Ok(Admission {
            certificate: certificate.clone(),
            granted,
            revocations,
        })
    }

    /// The revocation for which `remote` is refused.
    fn revocation_of(&self, remote: NodeId, shown: &Credential) -> Option<Signed<Revocation>> {
        let revocations = &self.state.view().revocations;
        let found = match shown {
            Credential::Member(certificate) => revocations.concerning(certificate.value()),
            Credential::Join(_) => revocations.signed(Subject::Node(remote)),
        };
        found.cloned()
    }

    /// Learns from a refusal what proves it, whoever sent that.
    fn learn_from_refusal(&self, reply: &[u8]) {
        let Some(revocation) = Reply::revocation_in(reply) else {
            return;
        };
        if revocation.check(&self.state.view().genesis).is_ok() {
            self.state.learn(vec![revocation]);
        }
    }

    fn take(&self, remote: NodeId, reply: Reply) -> Result<(), Refusal> {
        let accepted = judge_reply(&self.state.view(), self.state.now(), remote, reply)?;
        self.state.met(accepted.certificate.value());
        if !accepted.revocations.is_empty() {
            self.state.learn(accepted.revocations);
        }
        if let Some(granted) = accepted.granted {
            self.state.adopt(granted);
        }
        Ok(())
    }
}

impl<S: GateState> Gate for MemberGate<S> {
    fn hello(&self, remote: NodeId) -> Vec<u8> {
        let view = self.state.view();
        let credential = match &view.standing {
            Standing::Member(certificate) => Credential::Member(certificate.clone()),
            Standing::Joining(key) => {
                let cluster = view.genesis.cluster_id();
                let join = Join::new(key, cluster, view.node, remote, view.sealing_key);
                Credential::Join(join)
            }
        };
        let revocations_digest = view.revocations.digest();
        Hello {
            credential,
            revocations_digest,
        }
        .encode()
    }

    fn answer(&self, remote: NodeId, hello: &[u8]) -> BoxFuture<'_, Answer> {
        let hello = Hello::decode(hello);
        Box::pin(async move {
            let shown = hello.as_ref().ok().map(|hello| hello.credential.clone());
            let refusal = match self.admit(remote, hello).await {
                Ok(admission) => {
                    let reply = Reply::Admitted(Box::new(admission)).encode();
                    return Answer { reply, admit: true };
                }
                Err(refusal) => refusal,
            };
            let proof = shown
                .filter(|_| refusal == Refusal::Revoked)
                .and_then(|shown| self.revocation_of(remote, &shown));
            let reply = match proof {
                Some(revocation) => Reply::encode_revoked(&revocation),
                None => Reply::Refused(refusal).encode(),
            };
            Answer {
                reply,
                admit: false,
            }
        })
    }

    fn accept(&self, remote: NodeId, reply: &[u8]) -> Result<(), gate::Refusal> {
        let said = Reply::decode(reply);
        let by = match &said {
            Ok(Reply::Refused(_)) => RefusedBy::Listener,
            Ok(Reply::Admitted(_)) | Err(_) => RefusedBy::Us,
        };
        let taken = said.and_then(|said| self.take(remote, said));
        taken.map_err(|refusal| {
            self.learn_from_refusal(reply);
            self.state.refused(remote, &refusal, by);
            gate::Refusal::new(refusal)
        })
    }
}
