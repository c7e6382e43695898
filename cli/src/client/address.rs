//! Where a node is, and what opens it.

use std::fmt::{self, Debug, Display, Formatter};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use attic_store::cache_name::CacheName;
use reqwest::Url;
use reqwest::header::HeaderValue;
use thiserror::Error;

/// Where a node is: `http://host[:port]`, without a trailing slash, or `unix:/path`.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Place);

#[derive(Clone, PartialEq, Eq)]
enum Place {
    Http(Url),
    /// A socket of this machine; an absolute path.
    Unix(PathBuf),
}

impl Endpoint {
    /// The substituter URL of one of its caches; `None` where Nix cannot connect to.
    pub fn cache_url(&self, cache: &CacheName) -> Option<String> {
        match &self.0 {
            Place::Http(_) => Some(format!("{self}/{cache}")),
            Place::Unix(_) => None,
        }
    }

    /// What URLs of its routes begin with, without a trailing slash.
    pub(super) fn base_url(&self) -> &str {
        match &self.0 {
            Place::Http(url) => url.as_str().trim_end_matches('/'),
            Place::Unix(_) => "http://localhost",
        }
    }

    /// The socket to connect to, if it is one.
    pub(super) fn unix_socket(&self) -> Option<&Path> {
        match &self.0 {
            Place::Http(_) => None,
            Place::Unix(path) => Some(path),
        }
    }

    /// Whether it can only be this machine.
    pub fn is_loopback(&self) -> bool {
        let Place::Http(url) = &self.0 else {
            return true;
        };
        let host = url.host_str().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// What messages call the node: `local` on this machine, else its host.
    pub fn display_name(&self) -> &str {
        match &self.0 {
            Place::Http(url) if !self.is_loopback() => url.host_str().unwrap_or("node"),
            Place::Http(_) | Place::Unix(_) => "local",
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let absolute = path.starts_with('/').then(|| Place::Unix(path.into()));
            return absolute.map(Endpoint).ok_or(EndpointError::Shape);
        }
        let url = Url::parse(text).map_err(|_| EndpointError::Shape)?;
        match url.scheme() {
            "http" => {}
            "https" => return Err(EndpointError::Tls),
            _ => return Err(EndpointError::Shape),
        }
        let bare = url.username().is_empty() && url.password().is_none();
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if bare && plain && url.has_host() {
            Ok(Endpoint(Place::Http(url)))
        } else {
            Err(EndpointError::Shape)
        }
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Http(_) => f.write_str(self.base_url()),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Debug for Endpoint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// What is wrong with the text of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// Neither `http://host[:port]` nor `unix:/path`.
    #[error("not of the form http://host:port or unix:/path")]
    Shape,
    /// TLS is not built in.
    #[error("https is not supported; use http, or a tunnel")]
    Tls,
}

/// The node's admin token. `Debug` does not show it.
#[derive(Clone)]
pub struct Token(HeaderValue);

impl Token {
    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        let header = HeaderValue::from_str(&format!("Bearer {text}"));
        let mut header = header.ok().filter(|_| !text.is_empty()).ok_or(TokenError)?;
        header.set_sensitive(true);
        Ok(Token(header))
    }
}

impl Debug for Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Not one line of visible characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not one line of text")]
pub struct TokenError;
