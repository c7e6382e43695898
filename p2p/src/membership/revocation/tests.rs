use proptest::prelude::*;

use super::super::fixture::{
    NOW, certificate, cluster_key, delegated, delegation, genesis, identity, invite_key, node,
    revocation,
};
use super::super::genesis::ClusterKey;
use super::*;

fn cutting(subject: Subject, upto_seq: Option<u64>, at: u64) -> Signed<Revocation> {
    let revocation = Revocation {
        upto_seq,
        ..Revocation::new(genesis().cluster_id(), subject, UnixTime(at))
    };
    Signed::new(revocation, &cluster_key())
}

fn all(revocations: &[Signed<Revocation>]) -> Revocations {
    let mut set = Revocations::default();
    for revocation in revocations {
        set.insert(revocation.clone(), &genesis()).unwrap();
    }
    set
}

#[test]
fn the_cluster_alone_revokes() {
    let subject = Subject::Node(node(10));
    let stranger = ClusterKey::from_seed([66; 32]);
    let foreign = stranger
        .found("office".parse().unwrap(), [2; 16])
        .cluster_id();
    let newer = Revocation {
        version: 2,
        ..revocation(subject).value().clone()
    };
    for (wrong, expected) in [
        (
            Signed::new(revocation(subject).value().clone(), &stranger),
            RevocationError::Signature,
        ),
        (
            Signed::new(Revocation::new(foreign, subject, NOW), &cluster_key()),
            RevocationError::Cluster { found: foreign },
        ),
        (
            Signed::new(newer, &cluster_key()),
            RevocationError::Version { found: 2 },
        ),
    ] {
        let mut set = Revocations::default();
        assert_eq!(set.insert(wrong, &genesis()), Err(expected));
        assert!(set.is_empty());
    }
}

#[test]
fn saying_it_again_changes_nothing() {
    let mut set = Revocations::default();
    let revocation = revocation(Subject::Node(node(10)));
    assert_eq!(set.insert(revocation.clone(), &genesis()), Ok(true));
    let digest = set.digest();
    assert_eq!(set.insert(revocation, &genesis()), Ok(false));
    assert_eq!((set.len(), set.digest()), (1, digest));
}

#[test]
fn the_strictest_cut_stays() {
    let subject = Subject::Node(node(10));
    let cuts = [None, Some(300), Some(7), Some(128)].map(|upto| cutting(subject, upto, NOW.0));
    for start in 0..cuts.len() {
        let mut turned = cuts.clone();
        turned.rotate_left(start);
        let kept = all(&turned).of(subject).unwrap().upto_seq;
        assert_eq!(kept, Some(7));
    }
}

#[test]
fn a_delegate_takes_its_certificates_along() {
    let delegated_by = |key, usage| {
        let delegation = delegation(key, usage);
        delegated(10, Signed::new(delegation, &cluster_key()))
    };
    let (ticket, issuer) = (invite_key().id(), identity(20).node_id());
    let by_ticket = delegated_by(ticket, DelegationUse::Invite);
    let by_issuer = delegated_by(issuer, DelegationUse::Issuer);
    for (subject, certificate, concerned) in [
        (Subject::Node(node(10)), &certificate(10), true),
        (Subject::Node(node(10)), &by_ticket, true),
        (Subject::Node(node(11)), &certificate(10), false),
        (Subject::Invite(ticket), &by_ticket, true),
        (Subject::Node(ticket), &by_ticket, false),
        (Subject::Node(issuer), &by_issuer, true),
        (Subject::Invite(issuer), &by_issuer, false),
        (Subject::Invite(node(10)), &certificate(10), false),
    ] {
        let set = all(&[revocation(subject)]);
        assert_eq!(
            set.concerning(certificate).is_some(),
            concerned,
            "{subject:?}"
        );
    }
}

#[test]
fn the_latest_come_first() {
    let on = |number, at| cutting(Subject::Node(node(number)), None, at);
    let set = all(&[on(10, 5), on(11, 9), on(12, 7)]);
    let latest: Vec<_> = set.latest(2).iter().map(|r| r.value().at.0).collect();
    assert_eq!(latest, [9, 7]);
}

#[test]
fn a_full_set_keeps_the_lowest_subjects() {
    let (key, genesis) = (cluster_key(), genesis());
    let cluster = genesis.cluster_id();
    let numbered = |number: usize| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let subject = Subject::Node(NodeId::from_bytes(bytes));
        Signed::new(Revocation::new(cluster, subject, NOW), &key)
    };
    let mut set = Revocations::default();
    for number in 1..=Revocations::COUNT_MAX {
        assert_eq!(set.insert(numbered(number), &genesis), Ok(true));
    }
    let beyond = numbered(Revocations::COUNT_MAX + 1);
    assert_eq!(set.insert(beyond, &genesis), Ok(false));
    assert_eq!(set.insert(numbered(0), &genesis), Ok(true));
    assert_eq!(set.len(), Revocations::COUNT_MAX);
    let last = numbered(Revocations::COUNT_MAX).value().subject;
    assert_eq!(set.of(last), None);
}

#[test]
fn the_longest_revocation_can_be_read() {
    let longest = cutting(Subject::Invite(node(10)), Some(u64::MAX), u64::MAX);
    assert_eq!(Signed::decode(&longest.encode()), Ok(longest));
}

/// Whoever is dialled may be of a version that cannot read them.
#[test]
fn the_end_of_a_cache_is_no_matter_of_the_handshake() {
    let ended = cutting(Subject::Cache(CacheId::from_bytes([7; 16])), None, 1);
    assert_eq!(Signed::decode(&ended.encode()), Ok(ended.clone()));
    assert!(all(&[ended]).is_empty());
}

/// A few subjects and a few ways to revoke them, so that they collide.
fn some_revocation() -> impl Strategy<Value = Signed<Revocation>> {
    let upto = prop::option::of(0u64..300);
    (0u8..4, any::<bool>(), upto, 0u64..3).prop_map(|(number, invite, upto, at)| {
        let key = NodeId::from_bytes([number; 32]);
        let subject = match invite {
            true => Subject::Invite(key),
            false => Subject::Node(key),
        };
        cutting(subject, upto, at)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn order_and_repetition_mean_nothing(
        (told, shuffled) in prop::collection::vec(some_revocation(), 0..12)
            .prop_flat_map(|told| (Just(told.clone()), Just(told).prop_shuffle())),
    ) {
        let repeated = [&shuffled[..], &told].concat();
        prop_assert_eq!(all(&told).digest(), all(&repeated).digest());
        prop_assert_eq!(all(&told), all(&repeated));
    }

    #[test]
    fn digests_differ_where_sets_do(
        one in prop::collection::vec(some_revocation(), 0..6),
        two in prop::collection::vec(some_revocation(), 0..6),
    ) {
        let (one, two) = (all(&one), all(&two));
        prop_assert_eq!(one == two, one.digest() == two.digest());
    }

    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(revocation) = Signed::<Revocation>::decode(&bytes) {
            prop_assert!(revocation.check(&genesis()).is_err());
        }
    }
}
