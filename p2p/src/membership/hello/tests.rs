use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::fixture::{
    NOW, certificate, cluster_key, genesis, holder, invite_key, longest_certificate, node,
};
use super::super::revocation::Subject;
use super::super::scopes::Scopes;
use super::*;

fn member_hello() -> Hello {
    let certificate = Signed::new(certificate(10), &cluster_key());
    Hello {
        credential: Credential::Member(certificate),
        revocations_digest: [3; 32],
    }
}

fn join_hello() -> Hello {
    let sealing_key = holder(10, Scopes::default()).sealing_key;
    let cluster = genesis().cluster_id();
    let join = Join::new(&invite_key(), cluster, node(10), node(20), sealing_key);
    Hello {
        credential: Credential::Join(join),
        revocations_digest: [3; 32],
    }
}

fn revocations(count: usize) -> Vec<Signed<Revocation>> {
    let revocation = Revocation {
        upto_seq: Some(u64::MAX),
        ..Revocation::new(
            genesis().cluster_id(),
            Subject::Node(node(11)),
            UnixTime(u64::MAX),
        )
    };
    vec![Signed::new(revocation, &cluster_key()); count]
}

fn admission(revocation_count: usize) -> Reply {
    Reply::Admitted(Box::new(Admission {
        certificate: longest_certificate(20),
        granted: Some(longest_certificate(10)),
        revocations: revocations(revocation_count),
    }))
}

fn refusals() -> Vec<Refusal> {
    let not_after = NOW;
    let address = Address::new("/ip4/192.0.2.1/tcp/4001", node(20)).unwrap();
    vec![
        Refusal::NotAMember,
        Refusal::OtherCluster,
        Refusal::Expired { not_after },
        Refusal::Revoked,
        Refusal::TicketExpired { not_after },
        Refusal::TicketUsedUp,
        Refusal::TicketUnknown,
        Refusal::TicketRevoked,
        Refusal::BadProof,
        Refusal::NotAnIssuer {
            issuers: Vec::new(),
        },
        Refusal::NotAnIssuer {
            issuers: vec![address; 2],
        },
        Refusal::NotJoined,
        Refusal::Unavailable,
        Refusal::VersionTooNew { known: 1 },
        Refusal::Malformed,
    ]
}

#[test]
fn messages_read_back() {
    for hello in [member_hello(), join_hello()] {
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }
    for reply in refusals().into_iter().map(Reply::Refused) {
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }
}

#[test]
fn the_longest_messages_fit() {
    let reply = admission(Admission::REVOCATIONS_MAX);
    let bytes = reply.encode();
    assert!(bytes.len() <= GATE_MESSAGE_LEN_MAX, "{} bytes", bytes.len());
    assert_eq!(Reply::decode(&bytes), Ok(reply));
    let too_many = admission(Admission::REVOCATIONS_MAX + 1).encode();
    assert_eq!(Reply::decode(&too_many), Err(Refusal::Malformed));
}

#[test]
fn a_newer_version_is_told_before_anything_else_is_read() {
    let newer = [2, 0xff, 0xff];
    let expected = Refusal::VersionTooNew { known: VERSION };
    assert_eq!(Hello::decode(&newer), Err(expected.clone()));
    assert_eq!(Reply::decode(&newer), Err(expected));
    assert_eq!(Hello::decode(&[0]), Err(Refusal::Malformed));
    assert_eq!(Hello::decode(&[]), Err(Refusal::Malformed));
}

#[test]
fn fields_of_a_newer_program_are_skipped() {
    let longer = [join_hello().encode(), vec![7; 40]].concat();
    assert_eq!(Hello::decode(&longer), Ok(join_hello()));
    let endless = [join_hello().encode(), vec![7; GATE_MESSAGE_LEN_MAX]].concat();
    assert_eq!(Hello::decode(&endless), Err(Refusal::Malformed));
}

#[test]
fn every_refusal_has_one_line_of_its_own() {
    let texts: Vec<_> = refusals().iter().map(Refusal::to_string).collect();
    let distinct: BTreeSet<_> = texts.iter().collect();
    assert_eq!(distinct.len(), texts.len(), "{texts:?}");
    for text in texts {
        assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    }
}

#[test]
fn every_cut_of_a_hello_is_refused() {
    let bytes = join_hello().encode();
    for len in 0..bytes.len() {
        assert_eq!(
            Hello::decode(&bytes[..len]),
            Err(Refusal::Malformed),
            "{len}"
        );
    }
}

#[test]
fn no_flipped_bit_makes_another_proof() {
    let bytes = join_hello().encode();
    for bit in 8..bytes.len() * 8 {
        let mut bent = bytes.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        let Ok(hello) = Hello::decode(&bent) else {
            continue;
        };
        match &hello.credential {
            Credential::Join(join) if join.invite == invite_key().id() => {
                // What is left of the message is the digest, which nothing rests on.
                let same = hello.credential == join_hello().credential;
                assert!(
                    same || join.proof.verify(&join.invite).is_err(),
                    "bit {bit}"
                );
            }
            Credential::Join(join) => {
                assert!(join.proof.verify(&join.invite).is_err(), "bit {bit}");
            }
            Credential::Member(certificate) => {
                assert!(certificate.verify_chain(&genesis()).is_err(), "bit {bit}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for bytes in [bytes.clone(), [&[VERSION], &bytes[..]].concat()] {
            let _ = Hello::decode(&bytes);
            let _ = Reply::decode(&bytes);
        }
    }

    #[test]
    fn any_damage_can_be_read(at in any::<prop::sample::Index>(), bits in 1u8..) {
        let mut bytes = admission(3).encode();
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        let _ = Reply::decode(&bytes);
    }
}
