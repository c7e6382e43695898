//! Keys and signatures, against those real Nix made.

use attic_store::narinfo::{NarInfo, Unverified};
use attic_store::signature::{KeyError, PublicKey, SecretKey, Signature, TrustedKeys};
use attic_store::store_path::StoreDir;
use proptest::prelude::{any, proptest};

use crate::golden;

fn app() -> NarInfo {
    NarInfo::parse(
        &golden::bytes("narinfo/app-zstd.narinfo"),
        &StoreDir::default(),
    )
    .unwrap()
}

fn secret() -> SecretKey {
    golden::text("keys/golden.sec").parse().unwrap()
}

fn public(name: &str) -> PublicKey {
    golden::text(&format!("keys/{name}.pub")).parse().unwrap()
}

fn fingerprint(info: &NarInfo) -> String {
    info.info.fingerprint(&StoreDir::default()).to_string()
}

#[test]
fn keys_print_as_nix_wrote_them() {
    assert_eq!(secret().to_text(), golden::text("keys/golden.sec"));
    assert_eq!(secret().public(), public("golden"));
    assert_eq!(
        public("golden").to_string(),
        golden::text("keys/golden.pub")
    );
    assert_eq!(public("golden").name(), "golden.test-1");
}

#[test]
fn fingerprint_lists_full_references_in_order() {
    assert_eq!(
        fingerprint(&app()),
        "1;/nix/store/fgsmsk0piymcgcqgj5b3xi2950s4q05d-app-2.0;\
         sha256:0r4g8fmfw86w8g2rqv2c6hkk8z2hw841cbk5g4hznbybak09z7xv;1640;\
         /nix/store/3xyv3iyj2f7ll4ddv6z8gzxn3kh05fd3-dep-1.0+a_b?c=d,\
         /nix/store/8rbsqf89wnrk5kr7qjfg2wm9bwcjqrl7-flat.bin,\
         /nix/store/fgsmsk0piymcgcqgj5b3xi2950s4q05d-app-2.0,\
         /nix/store/wmg8da1sdyw2gdkmdmz15lhr2g1m3hr8-notes.txt"
    );
}

#[test]
fn every_signature_nix_made_verifies() {
    let keys = TrustedKeys::new([public("golden"), public("other")]);
    let mut verified = 0;
    for name in golden::names("narinfo", ".narinfo") {
        let info = NarInfo::parse(&golden::bytes(&name), &StoreDir::default())
            .unwrap()
            .info;
        let fingerprint = info.fingerprint(&StoreDir::default());
        for signature in &info.signatures {
            let by = keys.verify(&fingerprint, std::slice::from_ref(signature));
            assert_eq!(
                by.map(PublicKey::name),
                Some(signature.key_name()),
                "{name}"
            );
            verified += 1;
        }
    }
    assert!(
        verified >= 8,
        "golden narinfos carry signatures: {verified}"
    );
}

#[test]
fn our_signature_is_the_one_nix_makes() {
    let info = app();
    let ours = secret().sign(fingerprint(&info).as_bytes());
    let theirs = info
        .info
        .signatures
        .iter()
        .find(|s| s.key_name() == "golden.test-1");
    assert_eq!(Some(&ours), theirs);
}

#[test]
fn a_signature_over_anything_else_does_not_verify() {
    let keys = TrustedKeys::new([public("golden")]);
    let changes: [fn(&mut NarInfo); 5] = [
        |info| info.info.nar_size += 1,
        |info| info.info.nar_hash = attic_store::hash::NarHash::of(b"other"),
        |info| drop(info.info.references.pop_last()),
        |info| info.info.path = info.info.references.first().unwrap().clone(),
        |info| {
            info.info
                .signatures
                .retain(|s| s.key_name() != "golden.test-1")
        },
    ];
    for (row, change) in changes.into_iter().enumerate() {
        let mut info = app();
        assert!(
            Unverified::new(info.clone())
                .verify(&keys, &StoreDir::default())
                .is_ok()
        );
        change(&mut info);
        let error = Unverified::new(info)
            .verify(&keys, &StoreDir::default())
            .unwrap_err();
        assert!(
            error.to_string().contains("no signature by a trusted key"),
            "change {row}"
        );
    }
}

#[test]
fn an_unsigned_property_may_change_and_a_bad_signature_beside_a_good_one_is_harmless() {
    let keys = TrustedKeys::new([public("golden")]);
    let mut info = app();
    info.url = "elsewhere".to_owned();
    info.compression = attic_store::narinfo::Compression::None;
    info.info.deriver = None;
    let forged = SecretKey::generate("golden.test-1", [7; 32])
        .unwrap()
        .sign(b"x");
    info.info.signatures.insert(0, forged);
    assert!(
        Unverified::new(info)
            .verify(&keys, &StoreDir::default())
            .is_ok()
    );
}

#[test]
fn a_key_of_another_name_or_no_key_is_not_trusted() {
    let renamed = golden::text("keys/golden.pub").replacen("golden.test-1", "renamed", 1);
    for keys in [
        TrustedKeys::default(),
        TrustedKeys::new([renamed.parse().unwrap()]),
    ] {
        assert!(
            Unverified::new(app())
                .verify(&keys, &StoreDir::default())
                .is_err()
        );
    }
}

#[test]
fn checks_of_one_list_are_bounded() {
    let keys = TrustedKeys::new([public("golden")]);
    let info = app().info;
    let fingerprint = info.fingerprint(&StoreDir::default());
    let good = info.signatures[0].clone();
    let bad = SecretKey::generate("golden.test-1", [7; 32])
        .unwrap()
        .sign(b"x");
    let mut list = vec![bad.clone(); TrustedKeys::CHECKS_MAX - 1];
    list.push(good);
    assert!(keys.verify(&fingerprint, &list).is_some());
    list.insert(0, bad);
    assert!(keys.verify(&fingerprint, &list).is_none());
}

#[test]
fn malformed_keys_and_signatures_are_refused_without_repeating_them() {
    let secret_text = golden::text("keys/golden.sec");
    let rows = [
        ("", "key has no : after its name"),
        ("name", "key has no : after its name"),
        (
            ":AAAA",
            "key name is not 1 to 256 visible ASCII characters without :",
        ),
        (
            "a b:AAAA",
            "key name is not 1 to 256 visible ASCII characters without :",
        ),
        (
            "ä:AAAA",
            "key name is not 1 to 256 visible ASCII characters without :",
        ),
        ("name:", "key holds 0 bytes, not"),
        ("name:AAAA", "key holds 3 bytes, not"),
        ("name:A", "key is not base64 after its name"),
        ("name:AAAA\n", "key is not base64 after its name"),
        ("name:a:AAAA", "key is not base64 after its name"),
    ];
    for (text, reason) in rows {
        for error in [
            text.parse::<Signature>().unwrap_err(),
            text.parse::<PublicKey>().unwrap_err(),
            text.parse::<SecretKey>().unwrap_err(),
        ] {
            assert!(error.to_string().starts_with(reason), "{text}: {error}");
        }
    }
    assert!(secret_text.parse::<PublicKey>().is_err());
    assert!(
        secret_text.parse::<Signature>().is_ok(),
        "64 bytes are 64 bytes"
    );
}

/// Found by fuzzing: the base64 decoder takes padding inside the text, so that one signature had many
/// texts.
#[test]
fn padding_inside_base64_is_refused() {
    let bytes = [7; 64];
    let padded_inside = format!(
        "k:{}{}",
        data_encoding::BASE64.encode(&bytes[..32]),
        data_encoding::BASE64.encode(&bytes[32..])
    );
    assert_eq!(padded_inside.parse::<Signature>(), Err(KeyError::Base64));
    assert_eq!(
        padded_inside.parse::<SecretKey>().err(),
        Some(KeyError::Base64)
    );
}

#[test]
fn halves_of_a_secret_key_must_belong_together() {
    let one = SecretKey::generate("k", [1; 32]).unwrap().to_text();
    let two = SecretKey::generate("k", [2; 32]).unwrap().to_text();
    let bytes = |text: &str| data_encoding::BASE64.decode(&text.as_bytes()[2..]).unwrap();
    let mixed = [&bytes(&one)[..32], &bytes(&two)[32..]].concat();
    let text = format!("k:{}", data_encoding::BASE64.encode(&mixed));
    let error = text.parse::<SecretKey>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "halves of secret key do not belong together"
    );
}

#[test]
fn debug_of_a_secret_key_shows_its_name_only() {
    assert_eq!(format!("{:?}", secret()), "SecretKey(golden.test-1:…)");
}

proptest! {
    #[test]
    fn what_a_key_signs_it_verifies_and_no_other_does(seed in any::<[u8; 32]>(), message in any::<Vec<u8>>()) {
        let key = SecretKey::generate("k-1", seed).unwrap();
        let signature: Signature = key.sign(&message).to_string().parse().unwrap();
        assert!(key.public().verify(&message, &signature));
        let mut other = seed;
        other[0] ^= 1;
        assert!(!SecretKey::generate("k-1", other).unwrap().public().verify(&message, &signature));
        assert_eq!(key.to_text().parse::<SecretKey>().unwrap().public(), key.public());
    }

    #[test]
    fn any_text_is_a_signature_that_prints_back_or_an_error(text in "[ -~]{0,8}:[A-Za-z0-9+/]{85,86}={0,3}") {
        if let Ok(signature) = text.parse::<Signature>() {
            assert_eq!(signature.to_string(), text);
            assert_eq!(postcard::from_bytes::<Signature>(&postcard::to_stdvec(&signature).unwrap()).unwrap(), signature);
        }
    }
}
