//! Who asks: a key id and a secret, given, or found where AWS's own tools look first.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

/// What signs requests. Shown without the secret.
#[derive(Clone)]
pub struct Credentials {
    pub(super) key_id: String,
    pub(super) secret: Zeroizing<String>,
    pub(super) session_token: Option<Zeroizing<String>>,
}

/// No credentials were found.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// One of two variables that belong together is missing.
    #[error("{present} is set, but {missing} is not")]
    Half {
        /// The variable that is set.
        present: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// The file could not be read.
    #[error("read {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The file has no such profile, or no credentials in it.
    #[error("{path} has no {missing} in profile [{profile}]")]
    Profile {
        /// The file.
        path: PathBuf,
        /// The profile.
        profile: String,
        /// What it lacks.
        missing: &'static str,
    },
    /// There is nowhere to look.
    #[error(
        "no credentials for S3\nhint: name the files of the key id and of the secret, or set {KEY_ID} and {SECRET}"
    )]
    Nowhere,
}

impl Credentials {
    /// These; white space around them does not count.
    pub fn new(key_id: &str, secret: &str) -> Credentials {
        Credentials {
            key_id: key_id.trim().to_owned(),
            secret: Zeroizing::new(secret.trim().to_owned()),
            session_token: None,
        }
    }

    /// Those that variables name: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, with
    /// `AWS_SESSION_TOKEN` if it is set; else those of the profile `AWS_PROFILE`, or `default`, in the
    /// file `AWS_SHARED_CREDENTIALS_FILE`, or `~/.aws/credentials`.
    ///
    /// Blocks while it reads the file.
    ///
    /// **Errors**: nothing is there, or half of it.
    pub fn look_up(
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Credentials, CredentialsError> {
        match (variable(KEY_ID), variable(SECRET)) {
            (Some(key_id), Some(secret)) => {
                let secret = Zeroizing::new(secret);
                let session_token = variable("AWS_SESSION_TOKEN").map(Zeroizing::new);
                return Ok(Credentials {
                    session_token,
                    ..Credentials::new(&key_id, &secret)
                });
            }
            (Some(_), None) => return Err(half(KEY_ID, SECRET)),
            (None, Some(_)) => return Err(half(SECRET, KEY_ID)),
            (None, None) => {}
        }
        let named = variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
        let at_home = || Some(Path::new(&variable("HOME")?).join(".aws/credentials"));
        let path = match named {
            Some(path) => path,
            None => match at_home().filter(|path| path.exists()) {
                Some(path) => path,
                None => return Err(CredentialsError::Nowhere),
            },
        };
        let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
        from_file(path, profile)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Credentials");
        shown.field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

fn from_file(path: PathBuf, profile: String) -> Result<Credentials, CredentialsError> {
    let text = match fs::read_to_string(&path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) => {
            let reason = error.to_string();
            return Err(CredentialsError::File { path, reason });
        }
    };
    let value = |name| value_in(&text, &profile, name);
    let (key_id, secret) = (value("aws_access_key_id"), value("aws_secret_access_key"));
    let missing = match (key_id, secret) {
        (Some(key_id), Some(secret)) => {
            let token = value("aws_session_token").map(|token| Zeroizing::new(token.to_owned()));
            return Ok(Credentials {
                session_token: token,
                ..Credentials::new(key_id, secret)
            });
        }
        (None, _) => "aws_access_key_id",
        (_, None) => "aws_secret_access_key",
    };
    Err(CredentialsError::Profile {
        path,
        profile,
        missing,
    })
}

/// The last value of `name` in the section `profile` of an INI text.
fn value_in<'a>(text: &'a str, profile: &str, name: &str) -> Option<&'a str> {
    let mut is_here = false;
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            is_here = section.trim() == profile;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| is_here) {
            let is_it = key.trim().eq_ignore_ascii_case(name);
            found = Some(value.trim())
                .filter(|value| is_it && !value.is_empty())
                .or(found);
        }
    }
    found
}

fn half(present: &'static str, missing: &'static str) -> CredentialsError {
    CredentialsError::Half { present, missing }
}

const KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET: &str = "AWS_SECRET_ACCESS_KEY";

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found with these variables: key id, secret and token, or the error.
    fn found(variables: &[(&str, &str)]) -> Result<(String, String, Option<String>), String> {
        let variable = |name: &'static str| {
            let set = variables.iter().find(|(known, _)| *known == name);
            set.map(|(_, value)| (*value).to_owned())
        };
        let found = Credentials::look_up(variable).map_err(|error| error.to_string())?;
        let token = found.session_token.map(|token| token.to_string());
        Ok((found.key_id, found.secret.to_string(), token))
    }

    #[test]
    fn the_environment_comes_before_the_file() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("credentials");
        fs::write(
            &file,
            "# mine\n[default]\naws_access_key_id = one\naws_secret_access_key=two=2\n\n\
             [ other ]\nAWS_ACCESS_KEY_ID=three\naws_secret_access_key = four\n\
             aws_session_token = five\n[half]\naws_access_key_id = six\n",
        )
        .expect("write");
        let path = file.to_str().expect("UTF-8");
        let at = ("AWS_SHARED_CREDENTIALS_FILE", path);
        let is = |key_id: &str, secret: &str, token: Option<&str>| {
            Ok((
                key_id.to_owned(),
                secret.to_owned(),
                token.map(str::to_owned),
            ))
        };
        assert_eq!(
            found(&[(KEY_ID, "a "), (SECRET, "b"), at]),
            is("a", "b", None)
        );
        assert_eq!(found(&[at]), is("one", "two=2", None));
        assert_eq!(
            found(&[at, ("AWS_PROFILE", "other")]),
            is("three", "four", Some("five"))
        );
        let half = found(&[at, ("AWS_PROFILE", "half")]).expect_err("no secret");
        assert!(
            half.ends_with("has no aws_secret_access_key in profile [half]"),
            "{half}"
        );
        let absent = found(&[at, ("AWS_PROFILE", "none")]).expect_err("no profile");
        assert!(
            absent.ends_with("has no aws_access_key_id in profile [none]"),
            "{absent}"
        );
        let half = found(&[(SECRET, "b"), at]).expect_err("half");
        assert_eq!(
            half,
            "AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not"
        );
        let nowhere = found(&[("HOME", folder.path().to_str().expect("UTF-8"))]);
        assert!(
            nowhere
                .expect_err("nothing")
                .starts_with("no credentials for S3")
        );
    }

    #[test]
    fn what_is_shown_holds_no_secret() {
        let shown = format!("{:?}", Credentials::new("the id", "the secret"));
        assert!(
            shown.contains("the id") && !shown.contains("the secret"),
            "{shown}"
        );
    }
}
