//! Hashes and Nix's base 32.

use attic_store::hash::{ChunkId, FileHash, NarHash};
use attic_store::nixbase32;
use proptest::prelude::{any, proptest};

use crate::golden;

#[test]
fn every_form_nix_writes_is_read_and_written() {
    for line in golden::text("hashes.txt").lines() {
        let forms: Vec<&str> = line.split(' ').collect();
        let [hex, nix32, base64, sri] = forms[..] else {
            panic!("four forms: {line}")
        };
        let hash = NarHash::from_nix32(nix32).unwrap();
        assert_eq!(hash.hex(), hex);
        assert_eq!(hash.sri(), sri);
        assert_eq!(hash.nix32(), nix32);
        assert_eq!(hash.to_string(), format!("sha256:{nix32}"));
        for text in [
            format!("sha256:{hex}"),
            format!("sha256:{base64}"),
            sri.to_owned(),
        ] {
            assert_eq!(text.parse(), Ok(hash), "{text}");
        }
        assert_eq!(format!("sha256:{}", hex.to_uppercase()).parse(), Ok(hash));
    }
}

#[test]
fn base32_of_every_length_is_as_nix_writes_it() {
    for line in golden::text("base32.txt").lines() {
        let (hex, nix32) = line.split_once(' ').unwrap();
        let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        assert_eq!(nixbase32::encode(&bytes), nix32);
        assert_eq!(nixbase32::decode(nix32, bytes.len()), Ok(bytes));
    }
}

#[test]
fn text_that_is_no_hash_is_refused_by_its_reason() {
    let digits = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
    let rows = [
        (
            digits.to_owned(),
            "hash does not start with sha256: or sha256-",
        ),
        (
            format!("sha1:{digits}"),
            "hash does not start with sha256: or sha256-",
        ),
        (
            format!("SHA256:{digits}"),
            "hash does not start with sha256: or sha256-",
        ),
        (String::new(), "hash does not start with sha256: or sha256-"),
        (
            format!("sha256:{}", &digits[1..]),
            "hash has 51 digits, which no form of a 32-byte hash has",
        ),
        (
            "sha256:".to_owned(),
            "hash has 0 digits, which no form of a 32-byte hash has",
        ),
        (
            format!("sha256:e{}", &digits[1..]),
            "hash is not Nix base 32: character 0 is not one of 0123456789abcdfghijklmnpqrsvwxyz",
        ),
        (
            format!("sha256:{}U", &digits[..51]),
            "hash is not Nix base 32: character 51 is not one of 0123456789abcdfghijklmnpqrsvwxyz",
        ),
        (
            format!("sha256:2{}", &digits[1..]),
            "hash is not Nix base 32: first character is too large for the length",
        ),
        (format!("sha256:{}", "g".repeat(64)), "hash is not hex"),
        (
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3h=uFUu".to_owned(),
            "hash is not base64",
        ),
        (format!("sha256-{}", "=".repeat(44)), "hash is not base64"),
        (
            "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=".to_owned(),
            "hash is not base64",
        ),
        (
            format!("sha256:{}é", &digits[..50]),
            "hash is not Nix base 32: character",
        ),
    ];
    for (text, reason) in rows {
        let error = text.parse::<FileHash>().unwrap_err().to_string();
        assert!(error.starts_with(reason), "{text}: {error}");
    }
}

#[test]
fn chunk_ids_are_blake3_in_lower_case_hex_only() {
    let id = ChunkId::of(b"");
    let hex = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
    assert_eq!(id.to_string(), hex);
    assert_eq!(hex.parse(), Ok(id));
    for text in [&hex.to_uppercase(), &hex[1..], "", &"é".repeat(32)] {
        assert!(text.parse::<ChunkId>().is_err(), "{text}");
    }
}

#[test]
fn hashes_are_text_in_json_and_bare_bytes_in_postcard() {
    let hash = NarHash::of(b"");
    let json = "\"sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\"";
    assert_eq!(serde_json::to_string(&hash).unwrap(), json);
    assert_eq!(serde_json::from_str::<NarHash>(json).unwrap(), hash);
    let bytes = postcard::to_stdvec(&hash).unwrap();
    assert_eq!(bytes, hash.as_bytes());
    assert_eq!(postcard::from_bytes::<NarHash>(&bytes).unwrap(), hash);
    assert!(postcard::from_bytes::<NarHash>(&bytes[1..]).is_err());
}

proptest! {
    #[test]
    fn base32_round_trips(bytes in any::<Vec<u8>>()) {
        let text = nixbase32::encode(&bytes);
        assert_eq!(text.len(), nixbase32::encoded_len(bytes.len()));
        assert_eq!(nixbase32::decode(&text, bytes.len()), Ok(bytes));
    }

    #[test]
    fn base32_that_decodes_is_the_only_text_of_its_bytes(text in "[0-9a-df-np-sv-z]{0,60}", len in 0usize..40) {
        if let Ok(bytes) = nixbase32::decode(&text, len) {
            assert_eq!(nixbase32::encode(&bytes), text);
        }
    }

    #[test]
    fn any_text_is_a_hash_or_an_error(text in "(sha256[:-])?.{0,70}") {
        if let Ok(hash) = text.parse::<NarHash>() {
            assert_eq!(hash.to_string().parse(), Ok(hash));
            assert_eq!(hash.sri().parse(), Ok(hash));
        }
    }

    #[test]
    fn base32_sorts_as_little_endian_numbers(a in any::<[u8; 20]>(), b in any::<[u8; 20]>()) {
        let by_value = a.iter().rev().cmp(b.iter().rev());
        assert_eq!(nixbase32::encode(&a).cmp(&nixbase32::encode(&b)), by_value);
    }
}
