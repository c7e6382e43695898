//! Where a node is, and what opens it.

use std::fmt::{self, Debug, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

use attic_store::cache_name::CacheName;
use reqwest::Url;
use reqwest::header::HeaderValue;
use thiserror::Error;

/// Where a node is: `http://host[:port]`, without a trailing slash.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

impl Endpoint {
    /// The substituter URL of one of its caches.
    pub fn cache_url(&self, cache: &CacheName) -> String {
        format!("{self}/{cache}")
    }

    /// Whether it can only be this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// What messages call the node: `local` on this machine, else its host.
    pub fn display_name(&self) -> &str {
        if self.is_loopback() {
            "local"
        } else {
            self.0.host_str().unwrap_or("node")
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        let url = Url::parse(text).map_err(|_| EndpointError::Shape)?;
        match url.scheme() {
            "http" => {}
            "https" => return Err(EndpointError::Tls),
            _ => return Err(EndpointError::Shape),
        }
        let bare = url.username().is_empty() && url.password().is_none();
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if bare && plain && url.has_host() {
            Ok(Endpoint(url))
        } else {
            Err(EndpointError::Shape)
        }
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
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
    /// Not `http://host[:port]`.
    #[error("not of the form http://host:port")]
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
