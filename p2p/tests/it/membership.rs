//! Two nodes meet at the gate: who comes in, who does not, and what each is told.

use std::sync::{Arc, Mutex};

use attic_p2p::gate::{Answer, Gate};
use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::membership::address::Address;
use attic_p2p::membership::certificate::{Certificate, Delegation, DelegationUse, Holder, Issuer};
use attic_p2p::membership::gate::{
    GateState, GateView, MemberGate, RENEWAL_GRACE, RefusedBy, Standing, judge_renewal,
    judge_renewed,
};
use attic_p2p::membership::genesis::{ClusterKey, Genesis};
use attic_p2p::membership::hello::{Admission, Credential, Hello, Join, Refusal, Reply};
use attic_p2p::membership::invite::{Invite, InviteKey, Invites, Terms};
use attic_p2p::membership::revocation::{Revocation, Revocations, Subject};
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::membership::sealing::{OpeningKey, SealingKey};
use attic_p2p::membership::ticket::{Ticket, TicketKind};
use attic_p2p::membership::time::UnixTime;
use attic_p2p::membership::{Role, VERSION};
use attic_p2p::signed::Signed;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};

const NOW: UnixTime = UnixTime(1_800_000_000);
const DAY: u64 = 86_400;

const ISSUER: u8 = 1;
const MEMBER: u8 = 2;
const NEWCOMER: u8 = 3;

/// A node in memory. Everything it does is done at once.
struct Node {
    now: Mutex<UnixTime>,
    view: Mutex<GateView>,
    invites: Mutex<Invites>,
    disk_full: Mutex<bool>,
    met: Mutex<Vec<Certificate>>,
    refusals: Mutex<Vec<Refusal>>,
    refused_by: Mutex<Vec<RefusedBy>>,
}

#[derive(Clone)]
struct Handle(Arc<Node>);

impl GateState for Handle {
    fn now(&self) -> UnixTime {
        *self.0.now.lock().unwrap()
    }

    fn view(&self) -> Arc<GateView> {
        Arc::new(self.0.view.lock().unwrap().clone())
    }

    fn redeem(
        &self,
        invite: NodeId,
        joiner: NodeId,
        sealing_key: SealingKey,
    ) -> BoxFuture<'_, Result<Signed<Certificate>, Refusal>> {
        if *self.0.disk_full.lock().unwrap() {
            return ready(Err(Refusal::Unavailable)).boxed();
        }
        let mut invites = self.0.invites.lock().unwrap();
        let terms = invites.redeem(invite, joiner, self.now()).cloned();
        let certificate = terms.map(|terms| {
            let holder = Holder {
                node: joiner,
                sealing_key,
                role: terms.role,
                scopes: terms.scopes,
            };
            by_cluster(holder, self.now())
        });
        ready(certificate).boxed()
    }

    fn renew(&self, holder: Holder) -> BoxFuture<'_, Option<Signed<Certificate>>> {
        let able = !*self.0.disk_full.lock().unwrap();
        ready(able.then(|| by_cluster(holder, self.now()))).boxed()
    }

    fn learn(&self, revocations: Vec<Signed<Revocation>>) {
        let mut view = self.0.view.lock().unwrap();
        for revocation in revocations {
            view.revocations.insert(revocation, &genesis()).unwrap();
        }
    }

    fn adopt(&self, certificate: Signed<Certificate>) {
        self.0.view.lock().unwrap().standing = Standing::Member(certificate);
    }

    fn met(&self, certificate: &Certificate) {
        self.0.met.lock().unwrap().push(certificate.clone());
    }

    fn refused(&self, _: NodeId, refusal: &Refusal, by: RefusedBy) {
        self.0.refusals.lock().unwrap().push(refusal.clone());
        self.0.refused_by.lock().unwrap().push(by);
    }
}

impl Handle {
    fn new(number: u8, standing: Standing) -> Handle {
        let view = GateView {
            node: node(number),
            sealing_key: sealing_key(number),
            genesis: genesis(),
            standing,
            revocations: Revocations::default(),
            issues: number == ISSUER,
            issuers: Vec::new(),
        };
        Handle(Arc::new(Node {
            now: Mutex::new(NOW),
            view: Mutex::new(view),
            invites: Mutex::default(),
            disk_full: Mutex::default(),
            met: Mutex::default(),
            refusals: Mutex::default(),
            refused_by: Mutex::default(),
        }))
    }

    fn member(number: u8) -> Handle {
        let certificate = by_cluster(holder(number), NOW);
        Handle::new(number, Standing::Member(certificate))
    }

    fn newcomer(number: u8) -> Handle {
        Handle::new(number, Standing::Joining(invite_key()))
    }

    /// An issuer that handed out a ticket with [`invite_key`].
    fn issuer(uses: u32) -> Handle {
        let issuer = Handle::member(ISSUER);
        let terms = Terms {
            role: Role::Member,
            scopes: Scopes::read_all(),
            not_after: UnixTime(NOW.0 + DAY),
        };
        let invite = Invite::new(invite_key().id(), terms, uses).unwrap();
        issuer.0.invites.lock().unwrap().add(invite, NOW).unwrap();
        issuer
    }

    fn certificate(&self) -> Option<Certificate> {
        match &self.0.view.lock().unwrap().standing {
            Standing::Member(certificate) => Some(certificate.value().clone()),
            Standing::Joining(_) => None,
        }
    }

    fn refused_by(&self) -> Vec<RefusedBy> {
        self.0.refused_by.lock().unwrap().clone()
    }

    fn knows(&self, subject: Subject) -> bool {
        let view = self.0.view.lock().unwrap();
        view.revocations.of(subject).is_some()
    }

    /// With a certificate of its own that is made now.
    fn renewed(self) -> Handle {
        let certificate = by_cluster(holder(ISSUER), self.now());
        self.0.view.lock().unwrap().standing = Standing::Member(certificate);
        self
    }

    fn at(self, now: UnixTime) -> Handle {
        *self.0.now.lock().unwrap() = now;
        self
    }
}

fn cluster_key() -> ClusterKey {
    ClusterKey::from_seed([100; 32])
}

fn genesis() -> Genesis {
    cluster_key().found("office".parse().unwrap(), [0; 16])
}

fn invite_key() -> InviteKey {
    InviteKey::from_seed([101; 32])
}

fn node(number: u8) -> NodeId {
    Identity::from_seed([number; 32]).node_id()
}

fn sealing_key(number: u8) -> SealingKey {
    OpeningKey::of(&Identity::from_seed([number; 32])).sealing_key()
}

fn holder(number: u8) -> Holder {
    Holder {
        node: node(number),
        sealing_key: sealing_key(number),
        role: Role::Member,
        scopes: Scopes::all(),
    }
}

fn by_cluster(holder: Holder, now: UnixTime) -> Signed<Certificate> {
    let cluster = genesis().cluster_id();
    let certificate = Certificate::new(cluster, holder, Issuer::Cluster, now, [0; 16]);
    Signed::new(certificate, &cluster_key())
}

fn revocation(subject: Subject) -> Signed<Revocation> {
    let revocation = Revocation::new(genesis().cluster_id(), subject, NOW);
    Signed::new(revocation, &cluster_key())
}

fn open_ticket() -> Ticket {
    let delegation = Delegation {
        version: VERSION,
        cluster: genesis().cluster_id(),
        key: invite_key().id(),
        usage: DelegationUse::Invite,
        role: Role::Member,
        scopes: Scopes::read_all(),
        serial: [0; 16],
        not_after: UnixTime(NOW.0 + DAY),
    };
    let kind = TicketKind::Open(Box::new(Signed::new(delegation, &cluster_key())));
    Ticket::new(genesis(), Vec::new(), invite_key(), kind).unwrap()
}

fn with_open_ticket(number: u8) -> Handle {
    let certificate = open_ticket().certify(node(number), sealing_key(number), NOW, [0; 16]);
    Handle::new(number, Standing::Member(certificate.unwrap()))
}

fn answer(listener: &Handle, remote: NodeId, hello: &[u8]) -> Answer {
    let gate = MemberGate::new(listener.clone());
    gate.answer(remote, hello)
        .now_or_never()
        .expect("nodes in memory never wait")
}

/// Runs the upgrade of both sides. The error is what the dialer heard.
fn meet(dialer: &Handle, listener: &Handle) -> Result<(), Refusal> {
    let (from, to) = (dialer.view().node, listener.view().node);
    let gate = MemberGate::new(dialer.clone());
    let answer = answer(listener, from, &gate.hello(to));
    let heard = dialer.0.refusals.lock().unwrap().len();
    match gate.accept(to, &answer.reply) {
        Ok(()) => {
            assert!(answer.admit, "both sides agree");
            Ok(())
        }
        Err(refusal) => {
            let heard = dialer.0.refusals.lock().unwrap()[heard].clone();
            assert_eq!(refusal.to_string(), heard.to_string());
            Err(heard)
        }
    }
}

/// What `listener` answers `remote` to this hello.
fn told(listener: &Handle, remote: u8, hello: &Hello) -> Result<(), Refusal> {
    let answer = answer(listener, node(remote), &hello.encode());
    match Reply::decode(&answer.reply).unwrap() {
        Reply::Admitted(_) => {
            assert!(answer.admit);
            Ok(())
        }
        Reply::Refused(refusal) => {
            assert!(!answer.admit);
            Err(refusal)
        }
    }
}

fn showing(certificate: Signed<Certificate>) -> Hello {
    Hello {
        credential: Credential::Member(certificate),
        revocations_digest: [0; 32],
    }
}

fn proving(key: &InviteKey, joiner: u8, listener: u8) -> Hello {
    let cluster = genesis().cluster_id();
    let join = Join::new(
        key,
        cluster,
        node(joiner),
        node(listener),
        sealing_key(joiner),
    );
    Hello {
        credential: Credential::Join(join),
        revocations_digest: [0; 32],
    }
}

#[test]
fn members_let_each_other_in() {
    assert_eq!(
        meet(&Handle::member(MEMBER), &Handle::member(NEWCOMER)),
        Ok(())
    );
}

#[test]
fn a_counted_ticket_makes_a_member_who_then_is_let_in_everywhere() {
    let (issuer, newcomer) = (Handle::issuer(1), Handle::newcomer(NEWCOMER));
    assert_eq!(meet(&newcomer, &issuer), Ok(()));
    let certificate = newcomer.certificate().unwrap();
    assert_eq!(certificate.node, node(NEWCOMER));
    assert_eq!(certificate.scopes, Scopes::read_all());
    assert_eq!(meet(&newcomer, &Handle::member(MEMBER)), Ok(()));
}

#[test]
fn a_used_up_ticket_lets_nobody_else_in() {
    let issuer = Handle::issuer(1);
    assert_eq!(meet(&Handle::newcomer(NEWCOMER), &issuer), Ok(()));
    let second = meet(&Handle::newcomer(NEWCOMER + 1), &issuer);
    assert_eq!(second, Err(Refusal::TicketUsedUp));
}

#[test]
fn a_lost_answer_is_given_again() {
    let issuer = Handle::issuer(1);
    let newcomer = Handle::newcomer(NEWCOMER);
    let hello = MemberGate::new(newcomer.clone()).hello(node(ISSUER));
    assert!(answer(&issuer, node(NEWCOMER), &hello).admit);
    assert_eq!(meet(&newcomer, &issuer), Ok(()));
}

#[test]
fn an_expired_ticket_is_named() {
    let late = UnixTime(NOW.0 + DAY + 1);
    let not_after = UnixTime(NOW.0 + DAY);
    let outcome = meet(&Handle::newcomer(NEWCOMER), &Handle::issuer(1).at(late));
    assert_eq!(outcome, Err(Refusal::TicketExpired { not_after }));
}

#[test]
fn an_unknown_ticket_is_named() {
    let outcome = meet(&Handle::newcomer(NEWCOMER), &Handle::member(ISSUER));
    assert_eq!(outcome, Err(Refusal::TicketUnknown));
}

#[test]
fn an_issuer_that_cannot_write_promises_nothing() {
    let issuer = Handle::issuer(1);
    *issuer.0.disk_full.lock().unwrap() = true;
    let newcomer = Handle::newcomer(NEWCOMER);
    assert_eq!(meet(&newcomer, &issuer), Err(Refusal::Unavailable));
    assert_eq!(newcomer.certificate(), None);
}

#[test]
fn a_member_sends_a_counted_ticket_to_the_issuers() {
    let member = Handle::member(MEMBER);
    let issuer = Address::new("/ip4/192.0.2.1/tcp/4001", node(ISSUER)).unwrap();
    member.0.view.lock().unwrap().issuers = vec![issuer.clone(); 9];
    let outcome = meet(&Handle::newcomer(NEWCOMER), &member);
    let issuers = vec![issuer; Refusal::ISSUERS_MAX];
    assert_eq!(outcome, Err(Refusal::NotAnIssuer { issuers }));
}

#[test]
fn an_open_ticket_is_good_at_every_member() {
    let newcomer = with_open_ticket(NEWCOMER);
    assert_eq!(meet(&newcomer, &Handle::member(MEMBER)), Ok(()));
    assert_eq!(meet(&Handle::member(MEMBER), &newcomer), Ok(()));
}

#[test]
fn who_has_not_joined_lets_nobody_in() {
    let outcome = meet(&Handle::member(MEMBER), &Handle::newcomer(NEWCOMER));
    assert_eq!(outcome, Err(Refusal::NotJoined));
}

#[test]
fn certificates_of_others_and_of_nobody_are_refused() {
    let member = Handle::member(MEMBER);
    let own_word = by_cluster(holder(NEWCOMER), NOW).value().clone();
    let own_word = Signed::new(own_word, &Identity::from_seed([NEWCOMER; 32]));
    for wrong in [by_cluster(holder(ISSUER), NOW), own_word] {
        let outcome = told(&member, NEWCOMER, &showing(wrong));
        assert_eq!(outcome, Err(Refusal::NotAMember));
    }
}

#[test]
fn members_of_another_cluster_are_named() {
    let key = ClusterKey::from_seed([99; 32]);
    let foreign = key.found("office".parse().unwrap(), [0; 16]);
    let id = foreign.cluster_id();
    let certificate = Certificate::new(id, holder(NEWCOMER), Issuer::Cluster, NOW, [0; 16]);
    let certificate = Signed::new(certificate, &key);
    let member = Handle::member(MEMBER);
    let outcome = told(&member, NEWCOMER, &showing(certificate.clone()));
    assert_eq!(outcome, Err(Refusal::OtherCluster));
    // The other way about: the one who was dialled is the stranger.
    let stranger = Handle::new(NEWCOMER, Standing::Member(certificate));
    stranger.0.view.lock().unwrap().genesis = foreign;
    assert_eq!(meet(&stranger, &member), Err(Refusal::OtherCluster));
    assert_eq!(meet(&member, &stranger), Err(Refusal::OtherCluster));
}

#[test]
fn a_ticket_of_another_cluster_is_named() {
    let newcomer = Handle::newcomer(NEWCOMER);
    let foreign = ClusterKey::from_seed([99; 32]).found("office".parse().unwrap(), [0; 16]);
    newcomer.0.view.lock().unwrap().genesis = foreign;
    assert_eq!(
        meet(&newcomer, &Handle::issuer(1)),
        Err(Refusal::OtherCluster)
    );
}

#[test]
fn a_proof_is_good_for_its_two_ends_alone() {
    let issuer = Handle::issuer(5);
    let good = proving(&invite_key(), NEWCOMER, ISSUER);
    assert_eq!(told(&issuer, NEWCOMER, &good), Ok(()));
    // Overheard and sent by another, or sent on by whom it was for.
    let overheard = told(&issuer, MEMBER, &good);
    assert_eq!(overheard, Err(Refusal::BadProof));
    let sent_on = told(&issuer, NEWCOMER, &proving(&invite_key(), NEWCOMER, MEMBER));
    assert_eq!(sent_on, Err(Refusal::BadProof));
    // Under the name of a ticket whose key is not known.
    let mut forged = proving(&InviteKey::from_seed([98; 32]), NEWCOMER, ISSUER);
    if let Credential::Join(join) = &mut forged.credential {
        join.invite = invite_key().id();
    }
    assert_eq!(told(&issuer, NEWCOMER, &forged), Err(Refusal::BadProof));
}

#[test]
fn the_revoked_stay_out_on_both_sides() {
    let member = Handle::member(MEMBER);
    let revoked = Handle::member(NEWCOMER);
    member.learn(vec![revocation(Subject::Node(node(NEWCOMER)))]);
    assert_eq!(meet(&revoked, &member), Err(Refusal::Revoked));
    assert_eq!(meet(&member, &revoked), Err(Refusal::Revoked));
    assert_eq!(revoked.refused_by(), [RefusedBy::Listener]);
    assert_eq!(member.refused_by(), [RefusedBy::Us]);
}

/// Who is refused need not believe the listener, and does not if that shows no proof.
#[test]
fn the_revoked_are_shown_why() {
    let subject = Subject::Node(node(NEWCOMER));
    let member = Handle::member(MEMBER);
    member.learn(vec![revocation(subject)]);
    let told = Handle::member(NEWCOMER);
    assert_eq!(meet(&told, &member), Err(Refusal::Revoked));
    assert!(told.knows(subject));
    let joining = Handle::newcomer(NEWCOMER);
    assert_eq!(meet(&joining, &member), Err(Refusal::Revoked));
    assert!(joining.knows(subject));

    let lied_to = Handle::member(NEWCOMER);
    let gate = MemberGate::new(lied_to.clone());
    let of_cluster = Revocation::new(genesis().cluster_id(), subject, NOW);
    let forged = Signed::new(of_cluster, &InviteKey::from_seed([98; 32]));
    for reply in [
        Reply::Refused(Refusal::Revoked).encode(),
        Reply::encode_revoked(&forged),
    ] {
        assert!(gate.accept(node(MEMBER), &reply).is_err());
        assert!(!lied_to.knows(subject));
    }
    assert_eq!(lied_to.refused_by(), [RefusedBy::Listener; 2]);
}

#[test]
fn a_revoked_node_does_not_come_back_with_a_ticket() {
    let issuer = Handle::issuer(5);
    issuer.learn(vec![revocation(Subject::Node(node(NEWCOMER)))]);
    assert_eq!(
        meet(&Handle::newcomer(NEWCOMER), &issuer),
        Err(Refusal::Revoked)
    );
}

#[test]
fn a_revoked_ticket_lets_nobody_in_and_nobody_stay() {
    let revoked = vec![revocation(Subject::Invite(invite_key().id()))];
    let issuer = Handle::issuer(5);
    issuer.learn(revoked.clone());
    let outcome = meet(&Handle::newcomer(NEWCOMER), &issuer);
    assert_eq!(outcome, Err(Refusal::TicketRevoked));
    let outcome = meet(&with_open_ticket(NEWCOMER), &issuer);
    assert_eq!(outcome, Err(Refusal::Revoked));
}

#[test]
fn revocations_travel_with_the_answer() {
    let member = Handle::member(MEMBER);
    let subject = Subject::Node(node(9));
    member.learn(vec![revocation(subject)]);
    let dialer = Handle::member(NEWCOMER);
    assert_eq!(meet(&dialer, &member), Ok(()));
    assert!(dialer.knows(subject));
    // Who knows them all is told nothing.
    let hello = MemberGate::new(dialer).hello(node(MEMBER));
    let reply = answer(&member, node(NEWCOMER), &hello).reply;
    let Reply::Admitted(admission) = Reply::decode(&reply).unwrap() else {
        panic!("members are admitted");
    };
    assert_eq!(admission.revocations, []);
}

#[test]
fn an_expired_member_is_refused_by_members_and_renewed_by_issuers() {
    let not_after = UnixTime(NOW.0 + 30 * DAY);
    let late = UnixTime(not_after.0 + 60 * DAY);
    let laptop = Handle::member(NEWCOMER).at(late);
    let fresh = |number| {
        let certificate = by_cluster(holder(number), late);
        Handle::new(number, Standing::Member(certificate)).at(late)
    };
    let (member, issuer) = (fresh(MEMBER), fresh(ISSUER));
    assert_eq!(meet(&laptop, &member), Err(Refusal::Expired { not_after }));
    assert_eq!(meet(&member, &laptop), Err(Refusal::Expired { not_after }));
    // An issuer that cannot make one refuses too.
    *issuer.0.disk_full.lock().unwrap() = true;
    assert_eq!(meet(&laptop, &issuer), Err(Refusal::Expired { not_after }));
    *issuer.0.disk_full.lock().unwrap() = false;
    // The issuer that dials connects, so that it can be asked.
    assert_eq!(meet(&issuer, &laptop), Ok(()));
    assert_eq!(laptop.certificate().unwrap().issued_at, NOW);
    assert_eq!(meet(&laptop, &issuer), Ok(()));
    assert_eq!(laptop.certificate().unwrap().issued_at, late);
    assert_eq!(laptop.certificate().unwrap().holder(), holder(NEWCOMER));
    assert_eq!(meet(&laptop, &member), Ok(()));
}

#[test]
fn nobody_is_renewed_after_the_grace() {
    let not_after = UnixTime(NOW.0 + 30 * DAY);
    let late = UnixTime(not_after.plus(RENEWAL_GRACE).0 + 1);
    let issuer = Handle::issuer(1).at(late);
    let laptop = Handle::member(NEWCOMER).at(late);
    assert_eq!(meet(&laptop, &issuer), Err(Refusal::Expired { not_after }));
    let issuer = issuer.renewed();
    assert_eq!(meet(&issuer, &laptop), Err(Refusal::Expired { not_after }));
}

#[test]
fn a_certificate_is_renewed_after_two_thirds_and_not_before() {
    for (day, renewed) in [(19, false), (20, true), (30, true)] {
        let now = UnixTime(NOW.0 + day * DAY);
        let member = Handle::member(MEMBER).at(now);
        assert_eq!(meet(&member, &Handle::issuer(1).at(now)), Ok(()));
        let issued_at = member.certificate().unwrap().issued_at;
        assert_eq!(issued_at == now, renewed, "day {day}");
    }
}

#[test]
fn an_issuer_that_cannot_renew_still_lets_a_valid_member_in() {
    let now = UnixTime(NOW.0 + 25 * DAY);
    let issuer = Handle::issuer(1).at(now);
    *issuer.0.disk_full.lock().unwrap() = true;
    let member = Handle::member(MEMBER).at(now);
    assert_eq!(meet(&member, &issuer), Ok(()));
    assert_eq!(member.certificate().unwrap().issued_at, NOW);
}

/// A member that is connected for so long that it never dials asks for its next certificate.
#[test]
fn a_connected_member_is_renewed_by_the_rules_of_the_gate() {
    let due = UnixTime(NOW.0 + 20 * DAY);
    let view = |handle: &Handle| handle.0.view.lock().unwrap().clone();
    let issuer = view(&Handle::issuer(1));
    let ask = |issuer: &GateView, now, remote, certificate: &Signed<Certificate>| {
        judge_renewal(issuer, now, node(remote), certificate)
    };
    let certificate = by_cluster(holder(MEMBER), NOW);
    let renewed = Ok(Some(holder(MEMBER)));
    let expired = UnixTime(NOW.0 + 31 * DAY);
    assert_eq!(ask(&issuer, due, MEMBER, &certificate), renewed);
    assert_eq!(ask(&issuer, expired, MEMBER, &certificate), renewed);
    assert_eq!(ask(&issuer, NOW, MEMBER, &certificate), Ok(None));
    let member = view(&Handle::member(NEWCOMER));
    assert_eq!(ask(&member, due, MEMBER, &certificate), Ok(None));
    assert_eq!(
        ask(&issuer, due, NEWCOMER, &certificate),
        Err(Refusal::NotAMember)
    );
    let mut revoking = issuer.clone();
    let revocation = revocation(Subject::Node(node(MEMBER)));
    revoking.revocations.insert(revocation, &genesis()).unwrap();
    assert_eq!(
        ask(&revoking, due, MEMBER, &certificate),
        Err(Refusal::Revoked)
    );
}

#[test]
fn a_member_adopts_only_a_renewal_of_an_issuer_for_its_own_keys() {
    let view = Handle::member(NEWCOMER).0.view.lock().unwrap().clone();
    let by_ticket = open_ticket().certify(node(NEWCOMER), sealing_key(NEWCOMER), NOW, [0; 16]);
    let good = by_cluster(holder(NEWCOMER), NOW);
    assert_eq!(judge_renewed(&view, NOW, &good), Ok(good.value()));
    for (what, offered) in [
        ("made with an open ticket", by_ticket.unwrap()),
        ("of another node", by_cluster(holder(MEMBER), NOW)),
        ("expired", by_cluster(holder(NEWCOMER), UnixTime(0))),
    ] {
        assert!(judge_renewed(&view, NOW, &offered).is_err(), "{what}");
    }
}

/// Whoever is connected shows when its certificate ends.
#[test]
fn both_ends_hear_of_each_others_latest_certificate() {
    let due = UnixTime(NOW.0 + 20 * DAY);
    let member = Handle::member(MEMBER).at(due);
    let issuer = Handle::issuer(1).at(due);
    meet(&member, &issuer).unwrap();
    let met = |handle: &Handle| handle.0.met.lock().unwrap().clone();
    assert_eq!(met(&issuer), [member.certificate().unwrap()]);
    assert_eq!(met(&member), [issuer.certificate().unwrap()]);
}

/// What a dialer makes of an admission by the member [`MEMBER`].
fn accepts(
    dialer: &Handle,
    granted: Option<Signed<Certificate>>,
    revocations: Vec<Signed<Revocation>>,
) -> bool {
    let admission = Admission {
        certificate: by_cluster(holder(MEMBER), NOW),
        granted,
        revocations,
    };
    let reply = Reply::Admitted(Box::new(admission)).encode();
    let gate = MemberGate::new(dialer.clone());
    gate.accept(node(MEMBER), &reply).is_ok()
}

#[test]
fn nobody_is_talked_into_another_certificate() {
    let ticket = open_ticket();
    let by_ticket = ticket.certify(node(NEWCOMER), sealing_key(NEWCOMER), NOW, [0; 16]);
    let other_keys = Holder {
        sealing_key: sealing_key(MEMBER),
        ..holder(NEWCOMER)
    };
    for (what, granted) in [
        ("made with an open ticket by a stranger", by_ticket.unwrap()),
        ("with another's sealing key", by_cluster(other_keys, NOW)),
        ("of another node", by_cluster(holder(MEMBER), NOW)),
        ("expired", by_cluster(holder(NEWCOMER), UnixTime(0))),
    ] {
        let dialer = Handle::member(NEWCOMER);
        assert!(!accepts(&dialer, Some(granted), Vec::new()), "{what}");
        assert_eq!(dialer.certificate().unwrap().holder(), holder(NEWCOMER));
    }
    let good = by_cluster(holder(NEWCOMER), NOW);
    assert!(accepts(&Handle::member(NEWCOMER), Some(good), Vec::new()));
}

#[test]
fn a_newcomer_wants_a_certificate_for_its_ticket() {
    assert!(!accepts(&Handle::newcomer(NEWCOMER), None, Vec::new()));
}

#[test]
fn forged_revocations_end_the_connection_and_are_not_learnt() {
    let subject = Subject::Node(node(9));
    let forged = revocation(subject).value().clone();
    let forged = Signed::new(forged, &Identity::from_seed([MEMBER; 32]));
    let dialer = Handle::member(NEWCOMER);
    assert!(!accepts(&dialer, None, vec![forged]));
    assert!(!dialer.knows(subject));
}

#[test]
fn garbage_and_newer_versions_are_answered() {
    let member = Handle::member(MEMBER);
    let too_new = Refusal::VersionTooNew { known: VERSION };
    let mut longest = vec![0; 64 * 1024];
    longest[0] = VERSION;
    for (hello, expected) in [
        (&b""[..], Refusal::Malformed),
        (b"\x01", Refusal::Malformed),
        (b"GET / HTTP/1.1", too_new.clone()),
        (b"\x02", too_new),
        (&longest, Refusal::Malformed),
    ] {
        let answer = answer(&member, node(NEWCOMER), hello);
        assert_eq!(Reply::decode(&answer.reply), Ok(Reply::Refused(expected)));
        assert!(!answer.admit);
    }
}
