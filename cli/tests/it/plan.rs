//! Which paths a push sends.

use attic_node_cli::nix::LocalPath;
use attic_node_cli::push::Upstream;
use attic_node_cli::push::plan::{Filter, Planned, Tally, Verdict, decide};
use attic_node_core::api::PushSession;
use attic_store::signature::SecretKey;
use attic_store::store_path::{StoreDir, StorePath, StorePathHash};
use attic_store::{NarHash, PathInfo};

fn path(number: u8) -> LocalPath {
    let path = StorePath::new(StorePathHash::from_bytes([number; 20]), "x").unwrap();
    let info = PathInfo {
        path,
        nar_hash: NarHash::from_bytes([number; 32]),
        nar_size: 1000 + u64::from(number),
        references: Default::default(),
        deriver: None,
        ca: None,
        signatures: Vec::new(),
    };
    LocalPath {
        info,
        location: "/nonexistent".into(),
    }
}

fn signed(number: u8, key: &SecretKey, message: Option<&[u8]>) -> LocalPath {
    let mut path = path(number);
    let fingerprint = path.info.fingerprint(&StoreDir::default());
    path.info
        .add_signature(key.sign(message.unwrap_or(fingerprint.as_ref())));
    path
}

fn session(missing: &[u8], skip_signed_by: &[&SecretKey]) -> PushSession {
    PushSession {
        session: None,
        missing: missing
            .iter()
            .map(|n| StorePathHash::from_bytes([*n; 20]))
            .collect(),
        untold: Vec::new(),
        skip_signed_by: skip_signed_by
            .iter()
            .map(|key| key.public().to_string())
            .collect(),
        cache_everything: false,
        store_dir: "/nix/store".into(),
        public_key: "main:x".into(),
        chunker_version: 1,
        body_max: 1 << 20,
        requests_max: 1,
        nar_size_max: 1100,
        room: None,
    }
}

fn verdicts(paths: Vec<LocalPath>, session: &PushSession, filter: &Filter) -> Vec<Verdict> {
    let plan = decide(paths, &StoreDir::default(), session, filter);
    plan.into_iter()
        .map(|Planned { verdict, .. }| verdict)
        .collect()
}

const SEND: Verdict = Verdict::Send { unproven: None };

/// P7: a signature counts when the key made it, not when it bears the key's name.
#[test]
fn p7_only_a_signature_that_verifies_is_upstream() {
    let upstream = SecretKey::generate("cache.nixos.org-1", [1; 32]).unwrap();
    let impostor = SecretKey::generate("cache.nixos.org-1", [2; 32]).unwrap();
    let stranger = SecretKey::generate("stranger", [3; 32]).unwrap();
    let session = session(&[1, 2, 3, 4, 5], &[&upstream]);
    let paths = vec![
        signed(1, &upstream, None),
        signed(2, &impostor, None),
        signed(3, &upstream, Some(b"another path")),
        signed(4, &stranger, None),
        path(5),
    ];
    let name = || "cache.nixos.org-1".to_owned();
    let unproven = || Verdict::Send {
        unproven: Some(name()),
    };
    let upstream = Verdict::Upstream { key: name() };
    let heeded = Filter::new(&session, Upstream::Skip);
    assert_eq!(
        verdicts(paths.clone(), &session, &heeded),
        [upstream, unproven(), unproven(), SEND, SEND]
    );
    let ignored = Filter::new(&session, Upstream::Send);
    assert_eq!(
        verdicts(paths.clone(), &session, &ignored),
        [SEND, unproven(), unproven(), SEND, SEND]
    );
    let sent = decide(paths, &StoreDir::default(), &session, &ignored);
    let signatures = sent
        .iter()
        .map(|planned| planned.path.info.signatures.len());
    assert_eq!(Vec::from_iter(signatures), [1, 0, 0, 1, 0]);
}

#[test]
fn p7_cache_everything_overrules_the_keys() {
    let upstream = SecretKey::generate("up", [1; 32]).unwrap();
    let session = PushSession {
        cache_everything: true,
        ..session(&[1], &[&upstream])
    };
    let paths = vec![signed(1, &upstream, None)];
    assert_eq!(
        verdicts(paths, &session, &Filter::new(&session, Upstream::Skip)),
        [SEND]
    );
}

#[test]
fn a_key_that_cannot_be_read_filters_nothing() {
    let mut session = session(&[1], &[]);
    session.skip_signed_by = vec!["nonsense".into()];
    assert_eq!(
        verdicts(
            vec![path(1)],
            &session,
            &Filter::new(&session, Upstream::Skip)
        ),
        [SEND]
    );
}

#[test]
fn every_path_gets_a_verdict_and_is_counted() {
    let upstream = SecretKey::generate("up", [1; 32]).unwrap();
    let session = session(&[2, 3, 200, 201], &[&upstream]);
    let paths = vec![
        path(1),
        path(2),
        signed(3, &upstream, None),
        path(200),
        path(100),
    ];
    let plan = decide(
        paths,
        &StoreDir::default(),
        &session,
        &Filter::new(&session, Upstream::Skip),
    );
    let wanted = Tally {
        send: 1,
        cached: 2,
        upstream: 1,
        too_large: 1,
    };
    assert_eq!(Tally::of(&plan), wanted);
    assert_eq!(plan[3].verdict, Verdict::TooLarge { nar_size_max: 1100 });
}

#[test]
fn a_nar_that_does_not_fit_below_the_size_cap_is_not_sent() {
    let session = PushSession {
        room: Some(1050),
        ..session(&[50, 51, 101], &[])
    };
    let filter = Filter::new(&session, Upstream::Skip);
    let wanted = [
        SEND,
        Verdict::NoRoom { room: 1050 },
        Verdict::TooLarge { nar_size_max: 1100 },
        Verdict::Cached,
    ];
    let paths = [50, 51, 101, 99].map(path).to_vec();
    assert_eq!(verdicts(paths, &session, &filter), wanted);
}
