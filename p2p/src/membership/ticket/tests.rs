use proptest::prelude::*;

use super::super::certificate::CertificateError;
use super::super::fixture::{
    DAY, NOW, cluster_key, delegation, genesis, holder, invite_key, node, terms, widest_delegation,
    widest_scopes,
};
use super::super::scopes::Scopes;
use super::*;

fn counted() -> Ticket {
    let addresses = vec![Address::new("/ip4/192.0.2.1/tcp/4001", node(20)).unwrap()];
    let kind = TicketKind::Counted(terms());
    Ticket::new(genesis(), addresses, invite_key(), kind).unwrap()
}

fn open_kind(change: impl FnOnce(&mut Delegation)) -> TicketKind {
    let mut delegation = delegation(invite_key().id(), DelegationUse::Invite);
    change(&mut delegation);
    TicketKind::Open(Box::new(Signed::new(delegation, &cluster_key())))
}

fn open() -> Ticket {
    Ticket::new(genesis(), Vec::new(), invite_key(), open_kind(|_| ())).unwrap()
}

fn parse(text: &str) -> Result<(), TicketError> {
    text.parse::<Ticket>().map(|_| ())
}

/// The text of a payload with a correct hash.
fn text_of(payload: &[u8]) -> String {
    format!(
        "{PREFIX}{}",
        BASE32.encode(&[payload, &checksum(payload)].concat())
    )
}

fn payload(ticket: &Ticket) -> Vec<u8> {
    let text = ticket.to_text();
    let bytes = BASE32.decode(&text.as_bytes()[PREFIX.len()..]).unwrap();
    bytes[..bytes.len() - 4].to_vec()
}

#[test]
fn a_ticket_survives_its_text() {
    for ticket in [counted(), open()] {
        let read: Ticket = ticket.to_text().parse().unwrap();
        assert_eq!(read.to_text(), ticket.to_text());
        assert_eq!(read.genesis(), ticket.genesis());
        assert_eq!(read.addresses(), ticket.addresses());
        assert_eq!(read.key().seed(), ticket.key().seed());
        assert_eq!(read.kind(), ticket.kind());
    }
}

#[test]
fn blanks_around_it_do_not_matter() {
    assert_eq!(parse(&format!(" \t{}\r\n", counted().to_text())), Ok(()));
}

#[test]
fn every_changed_character_is_refused() {
    let text = counted().to_text();
    for at in 0..text.len() {
        for other in (b'!'..=b'~').map(char::from) {
            if text[at..].starts_with(other) {
                continue;
            }
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert!(parse(&changed).is_err(), "{other:?} at {at}");
        }
    }
}

#[test]
fn every_lost_doubled_or_swapped_character_is_refused() {
    let text = counted().to_text();
    for at in 0..text.len() {
        let (before, after) = text.split_at(at);
        let lost = format!("{before}{}", &after[1..]);
        assert!(parse(&lost).is_err(), "lost at {at}");
        let doubled = format!("{before}{}{after}", &after[..1]);
        assert!(parse(&doubled).is_err(), "doubled at {at}");
        assert!(parse(before).is_err(), "cut at {at}");
        if let [first, second, ..] = after.as_bytes()
            && first != second
        {
            let (first, second) = (char::from(*first), char::from(*second));
            let swapped = format!("{before}{second}{first}{}", &after[2..]);
            assert!(parse(&swapped).is_err(), "swapped at {at}");
        }
    }
}

#[test]
fn each_kind_of_wrong_text_has_its_own_reason() {
    let text = counted().to_text();
    let mut newer = payload(&counted());
    newer[0] = 2;
    let mut ancient = payload(&counted());
    ancient[0] = 0;
    for (wrong, expected) in [
        ("", TicketError::NotATicket),
        ("hello", TicketError::NotATicket),
        ("attic", TicketError::NotATicket),
        ("attic-node", TicketError::NotATicket),
        (
            &format!("attic1{}", "a".repeat(9000)),
            TicketError::NotATicket,
        ),
        ("attic1", TicketError::Damaged),
        (&text[..text.len() - 8], TicketError::Damaged),
        (
            &text.to_uppercase().replace("ATTIC1", "attic1"),
            TicketError::Damaged,
        ),
        (&text.replace("attic1", "attic2"), TicketError::Newer),
        (&text_of(&newer), TicketError::Newer),
        (&text_of(&ancient), TicketError::Forged),
        (&text_of(b""), TicketError::Forged),
        (&text_of(&[1]), TicketError::Forged),
    ] {
        assert_eq!(parse(wrong), Err(expected), "{wrong}");
    }
}

#[test]
fn fields_of_a_newer_program_are_skipped() {
    let longer = [payload(&counted()), vec![7; 40]].concat();
    assert_eq!(parse(&text_of(&longer)), Ok(()));
}

#[test]
fn an_open_ticket_needs_the_clusters_word_for_its_key() {
    let other = InviteKey::from_seed([78; 32]);
    let TicketKind::Open(delegation) = open_kind(|_| ()) else {
        unreachable!("open_kind makes open tickets");
    };
    let own_word = Signed::new(delegation.value().clone(), &invite_key());
    for kind in [
        open_kind(|delegation| delegation.key = other.id()),
        open_kind(|delegation| delegation.usage = DelegationUse::Issuer),
        open_kind(|delegation| delegation.version = 2),
        TicketKind::Open(Box::new(own_word)),
    ] {
        let outcome = Ticket::new(genesis(), Vec::new(), invite_key(), kind.clone());
        assert_eq!(outcome.err(), Some(TicketError::Forged), "{kind:?}");
        let smuggled = Ticket { kind, ..open() };
        assert_eq!(parse(&smuggled.to_text()), Err(TicketError::Forged));
    }
}

#[test]
fn an_open_ticket_makes_its_holder_a_member() {
    let sealing_key = holder(10, Scopes::default()).sealing_key;
    let certificate = open().certify(node(10), sealing_key, NOW, [9; 16]).unwrap();
    let value = certificate.check(&genesis(), NOW).unwrap();
    assert_eq!((value.node, value.sealing_key), (node(10), sealing_key));
    assert_eq!(value.scopes, open().terms().scopes);
    assert_eq!(value.not_after, open().terms().not_after);
    assert_eq!(counted().certify(node(10), sealing_key, NOW, [9; 16]), None);
}

#[test]
fn an_expired_ticket_says_so_and_gives_nothing_that_counts() {
    for ticket in [counted(), open()] {
        let not_after = ticket.terms().not_after;
        assert_eq!(ticket.check(not_after), Ok(()));
        let late = UnixTime(not_after.0 + 1);
        assert_eq!(ticket.check(late), Err(TicketError::Expired { not_after }));
    }
    let late = UnixTime(NOW.0 + 11 * DAY);
    let sealing_key = holder(10, Scopes::default()).sealing_key;
    let certificate = open()
        .certify(node(10), sealing_key, late, [9; 16])
        .unwrap();
    let not_after = open().terms().not_after;
    let expected = Err(CertificateError::Expired { not_after });
    assert_eq!(certificate.check(&genesis(), late), expected);
}

#[test]
fn the_longest_ticket_can_be_read() {
    let address = Address::new(&format!("/{}", "x".repeat(127)), node(20)).unwrap();
    let mut genesis = genesis();
    genesis.name = "n".repeat(64).parse().unwrap();
    let mut delegation = widest_delegation(&invite_key()).value().clone();
    delegation.cluster = genesis.cluster_id();
    delegation.usage = DelegationUse::Invite;
    delegation.scopes = widest_scopes();
    let kind = TicketKind::Open(Box::new(Signed::new(delegation, &cluster_key())));
    let ticket = Ticket::new(genesis, vec![address; 9], invite_key(), kind).unwrap();
    assert_eq!(ticket.addresses().len(), Ticket::ADDRESSES_MAX);
    assert_eq!(parse(&ticket.to_text()), Ok(()));
}

#[test]
fn five_addresses_are_refused() {
    let mut ticket = counted();
    ticket.addresses = vec![ticket.addresses[0].clone(); 5];
    assert_eq!(parse(&ticket.to_text()), Err(TicketError::Forged));
}

#[test]
fn debug_does_not_show_the_secret() {
    let ticket = open();
    let shown = format!("{ticket:?}");
    assert!(shown.contains(&ticket.key().id().to_string()));
    assert!(!shown.contains(&format!("{:?}", ticket.key().seed())));
    assert!(!shown.contains(&ticket.to_text()));
}

proptest! {
    #[test]
    fn any_text_can_be_read(text in "(attic1)?[a-z2-7 ]{0,200}") {
        prop_assert!(parse(&text).is_err());
    }

    #[test]
    fn any_payload_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(parse(&text_of(&bytes)).is_err());
        prop_assert!(parse(&text_of(&[&[VERSION], &bytes[..]].concat())).is_err());
    }

    #[test]
    fn any_damage_under_a_correct_hash_can_be_read(at in any::<prop::sample::Index>(), bits in 1u8..) {
        let mut bytes = payload(&open());
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        // Some of it is another, well-formed ticket; none of it may panic.
        let _ = parse(&text_of(&bytes));
    }
}
