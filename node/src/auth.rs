//! Who may write: the admin token, and what a request presents.
//!
//! Deciding needs the request's `Authorization` alone, so it happens before anything is looked up
//! and an answer to a stranger cannot depend on what is stored.

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::path::Path;

use data_encoding::{BASE64, HEXLOWER};

use crate::data_dir::{FileError, Secrecy, read_secret, replace_file};

/// The node's admin token, kept as a digest.
///
/// **Shape** of its file: 64 lower-case hexadecimal digits and a newline.
#[derive(Clone)]
pub(crate) struct AdminToken {
    digest: blake3::Hash,
}

/// What a request says about its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// It presents the admin token.
    Admin,
    /// It presents nothing.
    Anonymous,
    /// It presents something else.
    Stranger,
}

impl AdminToken {
    /// Reads the token in `file`, or makes one there.
    ///
    /// **Errors**: a file that others may read, or that cannot be used.
    pub(crate) fn load_or_create(file: &Path) -> Result<AdminToken, FileError> {
        let text = match read_secret(file) {
            Err(error) if error.is_not_found() => {
                let token = HEXLOWER.encode(&random::<32>()) + "\n";
                replace_file(file, &token, Secrecy::Secret)?;
                token
            }
            read => read?,
        };
        Ok(AdminToken::new(text.trim()))
    }

    fn new(token: &str) -> AdminToken {
        AdminToken {
            digest: blake3::hash(token.as_bytes()),
        }
    }

    /// Judges the value of an `Authorization` header: `Bearer <token>`, or `Basic` with the token
    /// as password. Comparing digests takes the same time wherever they differ.
    pub(crate) fn judge(&self, authorization: Option<&[u8]>) -> Caller {
        let Some(value) = authorization else {
            return Caller::Anonymous;
        };
        let presented = bearer(value).or_else(|| basic_password(value));
        match presented {
            Some(token) if !token.is_empty() && blake3::hash(&token) == self.digest => {
                Caller::Admin
            }
            _ => Caller::Stranger,
        }
    }
}

impl Debug for AdminToken {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_struct("AdminToken").finish_non_exhaustive()
    }
}

/// Bytes of the operating system's generator.
///
/// # Panics
/// When the system has none to give: nothing that needs a secret may go on then.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system provides randomness");
    bytes
}

fn bearer(value: &[u8]) -> Option<Vec<u8>> {
    scheme(value, b"bearer").map(<[u8]>::to_vec)
}

fn basic_password(value: &[u8]) -> Option<Vec<u8>> {
    let pair = BASE64.decode(scheme(value, b"basic")?).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// What follows `name`, which is matched without regard to case.
fn scheme<'a>(value: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = value.split_at_checked(name.len())?;
    let rest = rest
        .strip_prefix(b" ")
        .filter(|_| head.eq_ignore_ascii_case(name))?;
    Some(rest.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("admin-token");
        let first = AdminToken::load_or_create(&file).unwrap();
        let text = read_secret(&file).unwrap();
        assert_eq!(text.trim().len(), 64);
        let again = AdminToken::load_or_create(&file).unwrap();
        assert_eq!(first.digest, again.digest);
        let header = format!("Bearer {}", text.trim());
        assert_eq!(again.judge(Some(header.as_bytes())), Caller::Admin);
        assert!(!format!("{first:?}").contains(text.trim()));
    }

    #[test]
    fn authorization_forms() {
        let token = AdminToken::new("secret");
        let basic = |pair: &str| format!("Basic {}", BASE64.encode(pair.as_bytes()));
        let rows = [
            ("Bearer secret".to_owned(), Caller::Admin),
            ("bearer  secret ".to_owned(), Caller::Admin),
            (basic("anyone:secret"), Caller::Admin),
            (basic(":secret"), Caller::Admin),
            (basic("secret"), Caller::Stranger),
            (basic("secret:"), Caller::Stranger),
            (basic("a:b:secret"), Caller::Stranger),
            ("Basic !!!".to_owned(), Caller::Stranger),
            ("Bearer".to_owned(), Caller::Stranger),
            ("Bearer ".to_owned(), Caller::Stranger),
            ("Bearer secret2".to_owned(), Caller::Stranger),
            ("Digest secret".to_owned(), Caller::Stranger),
            (String::new(), Caller::Stranger),
        ];
        for (value, caller) in rows {
            assert_eq!(token.judge(Some(value.as_bytes())), caller, "{value}");
        }
        assert_eq!(token.judge(None), Caller::Anonymous);
    }

    #[test]
    fn an_empty_token_file_admits_nobody() {
        let token = AdminToken::new("");
        for value in ["Bearer ", "Basic Og==", ""] {
            assert_eq!(token.judge(Some(value.as_bytes())), Caller::Stranger);
        }
    }
}
