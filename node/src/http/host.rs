//! Which names a request may address this node by. Pure.
//!
//! A web page can make a browser resolve a name the page's owner controls to this machine's
//! loopback address and then talk to the node as if it were that page's own server. Such a request
//! carries the foreign name; an address or `localhost` cannot be rebound.

use std::net::IpAddr;

/// The names that are answered to.
#[derive(Clone, Debug, Default)]
pub(crate) struct AllowedHosts {
    /// Lower case.
    names: Vec<String>,
}

impl AllowedHosts {
    /// Answers to `names`, given in lower case, besides addresses and `localhost`.
    pub(crate) fn new(names: Vec<String>) -> AllowedHosts {
        AllowedHosts { names }
    }

    /// Judges the value of a `Host` header, or the authority of an absolute target.
    pub(crate) fn allow(&self, authority: &[u8]) -> bool {
        let Ok(authority) = std::str::from_utf8(authority) else {
            return false;
        };
        let Some(host) = host(authority.trim()) else {
            return false;
        };
        if is_address(host) || host.eq_ignore_ascii_case("localhost") {
            return true;
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        self.names
            .iter()
            .any(|name| name.eq_ignore_ascii_case(host))
    }
}

/// The host without its port; `None` if the port is no number.
fn host(authority: &str) -> Option<&str> {
    let bracket = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[bracket..].split_once(':') {
        None => Some(authority),
        Some((_, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(&authority[..authority.len() - port.len() - 1])
        }
        Some(_) => None,
    }
}

fn is_address(host: &str) -> bool {
    let unbracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match unbracketed {
        Some(host) => host.parse().is_ok_and(|address: IpAddr| address.is_ipv6()),
        None => host.parse().is_ok_and(|address: IpAddr| address.is_ipv4()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_listed_names_are_allowed() {
        let hosts = AllowedHosts::new(vec!["cache.lan".to_owned()]);
        let allowed = [
            "127.0.0.1",
            "127.0.0.1:7745",
            "10.1.2.3:80",
            "[::1]",
            "[::1]:7745",
            "localhost",
            "LocalHost:7745",
            "cache.lan",
            "Cache.LAN.:1",
        ];
        for host in allowed {
            assert!(hosts.allow(host.as_bytes()), "{host}");
        }
        let refused = [
            "",
            ":80",
            "evil.example",
            "localhost.evil.example",
            "evil.example:7745",
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f.0.0.1",
            "::1",
            "[127.0.0.1]",
            "[::1",
            "cache.lan:x",
            "user@cache.lan",
            "cache.lan/",
            "a:cache.lan",
        ];
        for host in refused {
            assert!(!hosts.allow(host.as_bytes()), "{host}");
        }
        assert!(!hosts.allow(b"\xff"));
    }
}
