//! Text forms of configuration values: durations, sizes, counts. Pure.

use std::time::Duration;

use attic_p2p::Multiaddr;
use attic_p2p::network::is_node_address;
use attic_store::PublicKey;
use url::Url;

/// Reads a duration: a whole number and one of `ms s m h d`, with or without a space between.
///
/// **Errors**: what a duration looks like, as a phrase.
pub fn duration(text: &str) -> Result<Duration, String> {
    let scaled = with_unit(text, |unit| match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    });
    let millis = scaled.ok_or("a duration such as \"90s\", \"15m\", \"24h\" or \"7d\"")?;
    Ok(Duration::from_millis(millis))
}

/// Reads a size in bytes: a number and one of `B KiB MiB GiB TiB kB KB MB GB TB`, or none. A decimal
/// fraction of a unit is rounded down to whole bytes.
///
/// **Errors**: what a size looks like, as a phrase.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let scaled = size_of_number(text.trim());
    scaled.ok_or_else(|| "a size such as \"500 MB\", \"1.5 GiB\" or \"1 TiB\"".to_owned())
}

fn size_of_number(text: &str) -> Option<u64> {
    let Some((whole, rest)) = text.split_once('.') else {
        return with_unit(text, size_unit);
    };
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (fraction, unit) = rest.split_at(digits);
    // Half a byte is nothing.
    let factor = size_unit(unit.trim_start()).filter(|factor| *factor > 1)?;
    let is_number = whole.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || !(1..=FRACTION_DIGITS_MAX).contains(&fraction.len()) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().ok()? * u128::from(factor) / scale;
    whole.checked_add(u64::try_from(part).ok()?)
}

fn size_unit(unit: &str) -> Option<u64> {
    match unit {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "TiB" => Some(1 << 40),
        "kB" | "KB" => Some(1000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        "TB" => Some(1_000_000_000_000),
        _ => None,
    }
}

/// Reads a filter of log lines: a level, or a list of levels and `target=level`.
///
/// `tracing` itself takes a misspelt level for a target, and would log nothing else.
///
/// **Errors**: what a filter looks like, as a phrase.
pub(crate) fn log_filter(text: &str) -> Result<String, String> {
    let is_level = |text: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    let in_target = |c: char| c.is_ascii_alphanumeric() || "_-:".contains(c);
    let is_target = |text: &str| !text.is_empty() && text.chars().all(in_target);
    let mut parts = text.split(',').map(str::trim);
    let fits = parts.all(|part| match part.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(part),
    });
    let wanted =
        "off, error, warn, info, debug or trace, or a list such as \"info,attic_store=debug\"";
    fits.then(|| text.to_owned())
        .ok_or_else(|| wanted.to_owned())
}

/// Reads a whole number between `min` and `max`.
///
/// **Errors**: the range, as a phrase.
pub(crate) fn count(text: &str, min: usize, max: usize) -> Result<usize, String> {
    let number = text
        .trim()
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("a whole number from {min} to {max}"))
}

/// Reads a share as `0%` to `100%`.
///
/// **Errors**: what a share looks like, as a phrase.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    let number = with_unit(text, |unit| (unit == "%").then_some(1));
    let number = number
        .and_then(|number| u8::try_from(number).ok())
        .filter(|n| *n <= 100);
    number
        .map(|n| f64::from(n) / 100.0)
        .ok_or_else(|| "a share from 0% to 100%".to_owned())
}

/// Reads `true` or `false`.
///
/// **Errors**: the two, as a phrase.
pub(crate) fn switch(text: &str) -> Result<bool, String> {
    text.trim().parse().map_err(|_| "true or false".to_owned())
}

/// Reads the multiaddr of a node and keeps it as text.
///
/// **Errors**: what such a multiaddr looks like, as a phrase.
pub(crate) fn multiaddr(text: &str) -> Result<String, String> {
    let address: Option<Multiaddr> = text.trim().parse().ok();
    let address = address.filter(is_node_address);
    let address = address.ok_or("the multiaddr of a TCP port, \"/ip4/192.0.2.7/tcp/7746\"")?;
    Ok(address.to_string())
}

/// Reads what a node is called.
///
/// **Errors**: what a name looks like, as a phrase.
pub(crate) fn node_name(text: &str) -> Result<String, String> {
    let name = text.trim();
    let is_name = !name.is_empty() && name.len() <= NAME_LEN_MAX;
    match is_name && name.chars().all(is_name_char) {
        true => Ok(name.to_owned()),
        false => Err(format!("1 to {NAME_LEN_MAX} of [0-9A-Za-z ._-]")),
    }
}

/// Whether a character may be in a node's name.
pub(crate) fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || " ._-".contains(c)
}

/// Longest name of a node, in characters.
pub(crate) const NAME_LEN_MAX: usize = 64;

/// Reads the multiaddr of a node that is named in it, and keeps it as text.
///
/// **Errors**: what such a multiaddr looks like, as a phrase.
pub(crate) fn relay(text: &str) -> Result<String, String> {
    let text = multiaddr(text)?;
    let named = (text.parse::<Multiaddr>().ok())
        .and_then(|address| address.iter().last().map(|part| part.tag() == "p2p"));
    match named {
        Some(true) => Ok(text),
        _ => {
            Err("a multiaddr that ends in the peer id of the relay, \"…/p2p/12D3Koo…\"".to_owned())
        }
    }
}

/// Reads the URL of a server that speaks HTTP.
///
/// **Errors**: what such a URL looks like, as a phrase.
pub(crate) fn server_url(text: &str) -> Result<String, String> {
    let text = text.trim();
    let url = Url::parse(text).ok();
    let good = url.filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    });
    match good {
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err("the URL of a server, \"https://s3.example.org\"".to_owned()),
    }
}

/// Reads the URL of a binary cache; a `/` at its end makes it a folder to which names are added.
///
/// **Errors**: what such a URL looks like, as a phrase.
pub(crate) fn upstream_url(text: &str) -> Result<Url, String> {
    let wanted = "the URL of a binary cache, \"https://cache.nixos.org\"";
    let mut url = Url::parse(text.trim()).map_err(|_| wanted.to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wanted.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{wanted}: credentials are not sent to upstreams"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{wanted}: without parameters"));
    }
    if !url.path().ends_with('/') {
        let folder = format!("{}/", url.path());
        url.set_path(&folder);
    }
    Ok(url)
}

/// Reads a public key.
///
/// **Errors**: what one looks like, as a phrase.
pub(crate) fn public_key(text: &str) -> Result<PublicKey, String> {
    let wanted = |error| format!("a key, \"name:base64\" ({error})");
    text.trim().parse().map_err(wanted)
}

/// Splits `text` into number and unit and multiplies; `None` for anything else and on overflow.
fn with_unit(text: &str, factor: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(factor(unit.trim_start())?)
}

/// Digits behind the point of a size.
const FRACTION_DIGITS_MAX: usize = 18;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let rows = [
            ("90s", Some(90_000)),
            ("250ms", Some(250)),
            (" 15 m ", Some(900_000)),
            ("24h", Some(86_400_000)),
            ("7d", Some(604_800_000)),
            ("0s", Some(0)),
            ("90", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1.5h", None),
            ("1h30m", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ];
        for (text, millis) in rows {
            assert_eq!(
                duration(text).ok(),
                millis.map(Duration::from_millis),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes() {
        let rows = [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("32 MiB", Some(32 << 20)),
            ("32MiB", Some(32 << 20)),
            ("500 MB", Some(500_000_000)),
            ("1 TiB", Some(1 << 40)),
            ("1 PiB", None),
            ("1.5 GiB", Some(3 << 29)),
            ("0.5MiB", Some(512 << 10)),
            ("1.50 MB", Some(1_500_000)),
            // 104,857.6 bytes.
            ("0.1 MiB", Some(104_857)),
            ("0.3 GB", Some(300_000_000)),
            ("0.000000000000000001 TiB", Some(0)),
            ("0.0000000000000000001 TiB", None),
            ("16777215.999999999999 TiB", Some(u64::MAX - 1)),
            ("16777216.0 TiB", None),
            ("1.5", None),
            ("1.5 B", None),
            ("1. GiB", None),
            (".5 GiB", None),
            ("1 .5 GiB", None),
            ("1. 5 GiB", None),
            ("1.5.5 GiB", None),
            ("1,5 GiB", None),
            ("-1.5 GiB", None),
            ("32 mib", None),
            ("MiB", None),
            ("20000000 TiB", None),
        ];
        for (text, bytes) in rows {
            assert_eq!(size(text).ok(), bytes, "{text}");
        }
    }

    #[test]
    fn addresses_are_of_tcp_ports() {
        let peer = "12D3KooWRYyfRQXYSSu1fyfQ8xLBbbWkBgBGx1y8Ao3nBqyDsSKh";
        let plain = "/ip4/192.0.2.7/tcp/7746".to_owned();
        let named = format!("/dns4/cache.example.org/tcp/7746/p2p/{peer}");
        let through = format!("{plain}/p2p/{peer}/p2p-circuit/p2p/{peer}");
        for text in [plain, named, through] {
            assert_eq!(multiaddr(&text), Ok(text.clone()));
        }
        for text in [
            "",
            "/ip4/192.0.2.7/udp/7746/quic-v1",
            "/ip4/192.0.2.7/tcp/0",
            "/ip4/0.0.0.0/tcp/7746",
            "/tcp/7746",
            "/ip4/192.0.2.7",
            "192.0.2.7:7746",
        ] {
            assert!(multiaddr(text).is_err(), "{text}");
        }
    }

    #[test]
    fn upstreams_are_folders_on_the_web() {
        let rows = [
            ("https://cache.nixos.org", "https://cache.nixos.org/"),
            ("http://[::1]:80/a/b", "http://[::1]/a/b/"),
            ("http://h:81/a/", "http://h:81/a/"),
        ];
        for (text, url) in rows {
            assert_eq!(upstream_url(text).unwrap().as_str(), url);
        }
        for text in [
            "",
            "cache.nixos.org",
            "ftp://h/",
            "file:///tmp",
            "https://user:secret@h/",
            "https://h/?priority=1",
            "https://h/#x",
        ] {
            let error = upstream_url(text).unwrap_err();
            assert!(!error.contains("secret"), "{text}");
        }
    }

    #[test]
    fn a_relay_is_named() {
        let peer = "12D3KooWRYyfRQXYSSu1fyfQ8xLBbbWkBgBGx1y8Ao3nBqyDsSKh";
        let named = format!("/dns4/relay.example.org/tcp/7746/p2p/{peer}");
        assert_eq!(relay(&named), Ok(named.clone()));
        for text in [
            "",
            "/ip4/192.0.2.7/tcp/7746",
            &format!("{named}/p2p-circuit"),
            peer,
        ] {
            assert!(relay(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(
            ["0%", "50 %", "100%"].map(percent),
            [Ok(0.0), Ok(0.5), Ok(1.0)]
        );
        for text in ["", "50", "101%", "300%", "-1%", "0.5"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_keep_their_range() {
        assert_eq!(count("4096", 1, 5000), Ok(4096));
        for text in ["0", "5001", "", "x", "-1", "1.0"] {
            assert_eq!(
                count(text, 1, 5000).unwrap_err(),
                "a whole number from 1 to 5000"
            );
        }
    }
}
