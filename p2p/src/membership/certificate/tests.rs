use proptest::prelude::*;

use super::super::fixture::{
    DAY, NOW, certificate, cluster_key, delegated, delegation, genesis, identity, invite_key,
    longest_certificate, node,
};
use super::super::genesis::ClusterKey;
use super::*;

fn by_cluster(certificate: Certificate) -> Signed<Certificate> {
    Signed::new(certificate, &cluster_key())
}

fn open_delegation() -> Signed<Delegation> {
    let delegation = delegation(invite_key().id(), DelegationUse::Invite);
    Signed::new(delegation, &cluster_key())
}

fn by_ticket(change: impl FnOnce(&mut Certificate)) -> Signed<Certificate> {
    let mut certificate = delegated(10, open_delegation());
    change(&mut certificate);
    Signed::new(certificate, &invite_key())
}

fn check(certificate: &Signed<Certificate>) -> Result<(), CertificateError> {
    certificate.check(&genesis(), NOW).map(|_| ())
}

#[test]
fn a_chain_of_one_or_two_links_holds() {
    assert_eq!(check(&by_cluster(certificate(10))), Ok(()));
    assert_eq!(check(&by_ticket(|_| ())), Ok(()));
}

#[test]
fn an_issuer_signs_with_its_node_key() {
    let issuer = identity(20);
    let delegation = delegation(issuer.node_id(), DelegationUse::Issuer);
    let delegation = Signed::new(delegation, &cluster_key());
    let certificate = Signed::new(delegated(10, delegation), &issuer);
    assert_eq!(check(&certificate), Ok(()));
}

#[test]
fn only_the_named_issuer_counts() {
    let stranger = ClusterKey::from_seed([66; 32]);
    let stolen = Certificate {
        issuer: Issuer::Cluster,
        ..delegated(10, open_delegation())
    };
    let own_delegation = Signed::new(open_delegation().value().clone(), &stranger);
    for wrong in [
        Signed::new(certificate(10), &stranger),
        Signed::new(certificate(10), &identity(10)),
        // The ticket's key claims to be the cluster's, and the other way about.
        Signed::new(stolen, &invite_key()),
        by_cluster(delegated(10, open_delegation())),
        // A delegation that nobody but the holder stands behind.
        Signed::new(delegated(10, own_delegation), &invite_key()),
    ] {
        assert_eq!(check(&wrong), Err(CertificateError::Signature), "{wrong:?}");
    }
}

#[test]
fn a_delegate_gives_no_more_than_it_has() {
    let later = UnixTime(NOW.0 + 10 * DAY + 1);
    let all: Scopes = Scopes::all();
    for (wrong, expected) in [
        (
            by_ticket(|c| c.role = Role::Keeper),
            CertificateError::Rights,
        ),
        (by_ticket(|c| c.scopes = all), CertificateError::Rights),
        (
            by_ticket(|c| c.not_after = later),
            CertificateError::Lifetime,
        ),
    ] {
        assert_eq!(check(&wrong), Err(expected), "{wrong:?}");
    }
    assert_eq!(check(&by_ticket(|c| c.scopes = Scopes::default())), Ok(()));
}

#[test]
fn another_cluster_is_named() {
    let other = ClusterKey::from_seed([66; 32]).found("office".parse().unwrap(), [2; 16]);
    let found = other.cluster_id();
    let mut foreign = certificate(10);
    foreign.cluster = found;
    let expected = Err(CertificateError::Cluster { found });
    assert_eq!(check(&by_cluster(foreign)), expected);
    // A ticket's key, delegated by another cluster, signs for ours.
    let mut foreign = open_delegation().value().clone();
    foreign.cluster = found;
    let foreign = Signed::new(foreign, &ClusterKey::from_seed([66; 32]));
    let wrong = Signed::new(delegated(10, foreign), &invite_key());
    assert_eq!(check(&wrong), expected);
}

#[test]
fn a_certificate_lives_thirty_days_at_most() {
    let mut long = certificate(10);
    assert_eq!(long.not_after, UnixTime(NOW.0 + 30 * DAY));
    assert_eq!(long.renew_after(), UnixTime(NOW.0 + 20 * DAY));
    long.not_after.0 += 1;
    assert_eq!(check(&by_cluster(long)), Err(CertificateError::Lifetime));
    let delegated = delegated(10, open_delegation());
    assert_eq!(delegated.not_after, open_delegation().value().not_after);
}

#[test]
fn expiry_depends_on_the_clock_and_the_chain_does_not() {
    let certificate = by_cluster(certificate(10));
    let not_after = certificate.value().not_after;
    assert!(certificate.check(&genesis(), not_after).is_ok());
    let late = certificate.check(&genesis(), UnixTime(not_after.0 + 1));
    assert_eq!(late, Err(CertificateError::Expired { not_after }));
    assert!(certificate.verify_chain(&genesis()).is_ok());
    assert!(certificate.check(&genesis(), UnixTime(0)).is_ok());
}

#[test]
fn unknown_versions_are_named() {
    for found in [0, 2] {
        let mut other = certificate(10);
        other.version = found;
        let expected = Err(CertificateError::Version { found });
        assert_eq!(check(&by_cluster(other)), expected);
    }
}

#[test]
fn the_longest_certificate_can_be_read() {
    let longest = longest_certificate(10);
    assert!(longest.verify_chain(&genesis()).is_ok());
    let read = Signed::<Certificate>::decode(&longest.encode()).unwrap();
    assert_eq!(read, longest);
}

#[test]
fn a_certificate_is_not_a_delegation() {
    let certificate = by_cluster(certificate(10)).encode();
    if let Ok(delegation) = Signed::<Delegation>::decode(&certificate) {
        assert!(delegation.verify_chain(&genesis()).is_err());
    }
}

#[test]
fn every_cut_and_every_flipped_bit_is_noticed() {
    let bytes = by_ticket(|_| ()).encode();
    let holds = |bytes: &[u8]| match Signed::<Certificate>::decode(bytes) {
        Ok(certificate) => certificate.verify_chain(&genesis()).is_ok(),
        Err(_) => false,
    };
    assert!(holds(&bytes));
    for len in 0..bytes.len() {
        assert!(!holds(&bytes[..len]), "{len} bytes");
    }
    for bit in 0..bytes.len() * 8 {
        let mut bent = bytes.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        assert!(!holds(&bent), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(certificate) = Signed::<Certificate>::decode(&bytes) {
            prop_assert!(certificate.verify_chain(&genesis()).is_err());
        }
        if let Ok(delegation) = Signed::<Delegation>::decode(&bytes) {
            prop_assert!(delegation.verify_chain(&genesis()).is_err());
        }
    }

    #[test]
    fn rights_and_ages_of_any_kind_read_back(
        number in 1u8..200,
        age in any::<u64>(),
        read in prop::collection::vec("[a-z0-9*+_-]{1,50}", 0..=16),
    ) {
        let mut certificate = certificate(number);
        let read = read.iter().map(|text| text.parse().unwrap()).collect();
        certificate.scopes = Scopes::new(read, Vec::new()).unwrap();
        certificate.issued_at = UnixTime(age);
        certificate.not_after = UnixTime(age);
        let signed = by_cluster(certificate);
        let read = Signed::<Certificate>::decode(&signed.encode()).unwrap();
        prop_assert!(read.verify_chain(&genesis()).is_ok());
        prop_assert_eq!(read.value().node, node(number));
        prop_assert_eq!(read, signed);
    }
}
