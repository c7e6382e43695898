//! Whether a content address names the path it stands beside. Pure.
//!
//! A path with a content address needs no signature: clients recompute the path from the address
//! and believe it. One that does not match makes some of them abort, so it is never published.
//!
//! **Source**: `makeFixedOutputPathFromCA` in `src/libstore/store-dir-config.cc` of Nix.

use attic_store::{PathInfo, StoreDir, StorePathHash, nixbase32};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// Whether the content address of `info`, if it has one, leads to its path, and, where that can
/// be seen, to its NAR.
pub(crate) fn is_consistent(info: &PathInfo, store_dir: &StoreDir) -> bool {
    let Some(ca) = &info.ca else { return true };
    let Some(address) = Address::parse(ca.as_str()) else {
        return false;
    };
    let Some(hash) = address.path_hash(info, store_dir) else {
        return false;
    };
    hash == *info.path.hash() && address.fits_nar(info)
}

/// A content address taken apart.
struct Address<'a> {
    method: Method,
    algorithm: &'a str,
    hash: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Text,
    Flat,
    Nar,
    Git,
}

impl Method {
    fn prefix(self) -> &'static str {
        match self {
            Method::Text | Method::Flat => "",
            Method::Nar => "r:",
            Method::Git => "git:",
        }
    }
}

impl Address<'_> {
    /// Reads the canonical text, whose digits are Nix's base 32.
    fn parse(text: &str) -> Option<Address<'_>> {
        let methods = [
            ("text:", Method::Text),
            ("fixed:r:", Method::Nar),
            ("fixed:git:", Method::Git),
            ("fixed:", Method::Flat),
        ];
        let (method, rest) = methods
            .into_iter()
            .find_map(|(head, method)| Some((method, text.strip_prefix(head)?)))?;
        let (algorithm, digits) = rest.split_once(':')?;
        let len = match algorithm {
            "md5" => 16,
            "sha1" => 20,
            "sha256" | "blake3" => 32,
            "sha512" => 64,
            _ => return None,
        };
        let hash = nixbase32::decode(digits, len).ok()?;
        Some(Address {
            method,
            algorithm,
            hash,
        })
    }

    /// The hash part of the path this address leads to; `None` if it allows no references and there
    /// are some.
    fn path_hash(&self, info: &PathInfo, store_dir: &StoreDir) -> Option<StorePathHash> {
        let name = info.path.name();
        let digest = format!("{}:{}", self.algorithm, HEXLOWER.encode(&self.hash));
        let hash = |kind: &str, digest: &str| store_path_hash(kind, digest, store_dir, name);
        match self.method {
            Method::Text if info.references.contains(&info.path) => None,
            Method::Text => Some(hash(&with_references("text", info, store_dir), &digest)),
            Method::Nar if self.algorithm == "sha256" => {
                Some(hash(&with_references("source", info, store_dir), &digest))
            }
            Method::Flat | Method::Nar | Method::Git => {
                let inner = Sha256::digest(format!("fixed:out:{}{digest}:", self.method.prefix()));
                let digest = format!("sha256:{}", HEXLOWER.encode(&inner));
                info.references
                    .is_empty()
                    .then(|| hash("output:out", &digest))
            }
        }
    }

    /// Whether the hash is that of the NAR, where it is one over the NAR as it stands: with a
    /// reference to itself, the hash part is blanked out first.
    fn fits_nar(&self, info: &PathInfo) -> bool {
        let is_nar_hash = self.method == Method::Nar
            && self.algorithm == "sha256"
            && !info.references.contains(&info.path);
        !is_nar_hash || self.hash == info.nar_hash.as_bytes()
    }
}

fn with_references(kind: &str, info: &PathInfo, store_dir: &StoreDir) -> String {
    let mut text = kind.to_owned();
    for reference in info.references.iter().filter(|path| **path != info.path) {
        text.push(':');
        text.push_str(&reference.full(store_dir));
    }
    if info.references.contains(&info.path) {
        text.push_str(":self");
    }
    text
}

fn store_path_hash(kind: &str, digest: &str, store_dir: &StoreDir, name: &str) -> StorePathHash {
    let whole = Sha256::digest(format!("{kind}:{digest}:{store_dir}:{name}"));
    let mut folded = [0; 20];
    for (index, byte) in whole.iter().enumerate() {
        folded[index % 20] ^= byte;
    }
    StorePathHash::from_bytes(folded)
}

#[cfg(test)]
mod tests {
    use attic_store::StorePath;

    use super::*;

    /// Paths that Nix 2.8 made: path, NAR hash, content address, references.
    const GOLDEN: [(&str, &str, &str, &[&str]); 6] = [
        (
            "gh6gngpps65xwz0yyhjd3jcmx7b2447c-hi-flat",
            "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=",
            "fixed:sha256:1r3v22qkypccqifzbww5lrn6hf1chi23m6zzkyvb8bvg457nxslq",
            &[],
        ),
        (
            "96idzzhjgx5gw4w3xr67y4pv1p85syd6-hi-rec",
            "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=",
            "fixed:r:sha256:1xmr8jicvzszfzpz46g37mlpvbzjl2wpwvl2b05psipssyp1sm8h",
            &[],
        ),
        (
            "5a251m7dribdbda3y90f5hxx0csjs3p4-hi",
            "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=",
            "fixed:sha1:fd540npwk7x370s4s2jzpx74wf365jjm",
            &[],
        ),
        (
            "bh8rdrlkjrvv33dhyf45bm0q8cwvkfna-hi",
            "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=",
            "fixed:r:sha512:28z0zkd9vf0lpfdxx0wq0qj3852bj1x6d2jx73wknv7yighyzic0p3xsr1vwmc5zj0i\
             smm9g3lqgczckyydyxrrifx1ljh4j5x44r1q",
            &[],
        ),
        (
            "l2sh994mfg6gmpmf9f0vjzqf4y60l3sl-debconf-1.5.82.drv",
            "sha256:6af6cac328ee5b1df701965b4553a049b7a9c176c2e2b0e6b37793380578d0dd",
            "text:sha256:0nzfbli521h7smi452zbl0vpwxr56qcpb07q54z76hb0syljclqp",
            &["ziw53v6flcjj03p416bbf6my5v3zmlda-debconf_1.5.82_all.deb"],
        ),
        (
            "yvjk1w95rfcgyy1571baccs5yp70pq1m-self-ref",
            "sha256:bcd7f7ce9cd46bbf9a68c57695b915574d200e7c2cd9b2d99fc8adda54fa1d95",
            "fixed:r:sha256:1v34ydlrvadxn6xn6crssg4b1swd34axr68d3snw7g8cc5a0r82w",
            &["yvjk1w95rfcgyy1571baccs5yp70pq1m-self-ref"],
        ),
    ];

    fn golden() -> impl Iterator<Item = PathInfo> {
        GOLDEN
            .into_iter()
            .map(|(path, nar_hash, ca, references)| PathInfo {
                path: path.parse().unwrap(),
                nar_hash: nar_hash.parse().unwrap(),
                nar_size: 120,
                references: references
                    .iter()
                    .map(|path| path.parse().unwrap())
                    .collect(),
                deriver: None,
                ca: Some(ca.parse().unwrap()),
                signatures: Vec::new(),
            })
    }

    #[test]
    fn what_nix_made_is_consistent() {
        for info in golden() {
            assert!(is_consistent(&info, &StoreDir::default()), "{}", info.path);
        }
    }

    #[test]
    fn a_change_of_anything_is_noticed() {
        let other_dir: StoreDir = "/gnu/store".parse().unwrap();
        let stranger: StorePath = "03ks1k8gr5wnd1lr4gqf0spx54gh0jn8-x".parse().unwrap();
        for info in golden() {
            assert!(!is_consistent(&info, &other_dir), "{}", info.path);
            let mut more = info.clone();
            more.references.insert(StorePath::clone(&stranger));
            assert!(!is_consistent(&more, &StoreDir::default()), "{}", info.path);
            for foreign in golden().filter(|foreign| foreign.ca != info.ca) {
                let swapped = PathInfo {
                    ca: foreign.ca,
                    ..info.clone()
                };
                assert!(
                    !is_consistent(&swapped, &StoreDir::default()),
                    "{}",
                    info.path
                );
            }
        }
    }

    #[test]
    fn a_nar_address_must_name_the_nar() {
        let mut info = golden().nth(1).unwrap();
        info.nar_hash = attic_store::NarHash::of(b"other");
        assert!(!is_consistent(&info, &StoreDir::default()));
        info.ca = None;
        assert!(is_consistent(&info, &StoreDir::default()));
    }
}
