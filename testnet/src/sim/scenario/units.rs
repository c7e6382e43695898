//! Numbers with units, and names of hosts, as people write them.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::seed::Seed;
use crate::sim::host::Index;

/// A time: `200us`, `50ms`, `1.5s`, `10min`, `3h`, `2d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Bytes: `500B`, `64KiB`, `1MB`, `2GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Bytes per second, written in bits: `250Mbit/s`, `1Gbit/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub u64);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let nanos = [
            ("us", 1e3),
            ("ms", 1e6),
            ("min", 60e9),
            ("s", 1e9),
            ("h", 3600e9),
            ("d", 86_400e9),
        ];
        let nanos = number(text, &nanos).ok_or_else(|| format!("not a time: {text:?}"))?;
        Ok(Span(Duration::from_nanos(nanos)))
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let units = [
            ("KiB", 1024.0),
            ("MiB", 1024.0 * 1024.0),
            ("GiB", 1024.0 * 1024.0 * 1024.0),
            ("kB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("B", 1.0),
        ];
        let bytes = number(text, &units).ok_or_else(|| format!("not a size: {text:?}"))?;
        Ok(Size(bytes))
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let units = [("kbit/s", 125.0), ("Mbit/s", 125e3), ("Gbit/s", 125e6)];
        let rate = number(text, &units).filter(|rate| *rate > 0);
        Ok(Rate(rate.ok_or_else(|| format!("not a rate: {text:?}"))?))
    }
}

/// A number before the first unit that fits.
fn number(text: &str, units: &[(&str, f64)]) -> Option<u64> {
    units.iter().find_map(|(unit, factor)| {
        let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        (number >= 0.0).then_some((number * factor).round() as u64)
    })
}

/// Some of the hosts: `all`, `none`, `3`, `2..5`, `4..`, `odd`, `even`, or `10%` drawn by lot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hosts {
    All,
    #[default]
    None,
    /// From the first up to the one before the last.
    Range(Index, Option<Index>),
    Odd,
    Even,
    Percent(u32),
}

impl Hosts {
    /// Which they are among `count`, ascending.
    pub(crate) fn among(self, count: usize, random: &mut Seed) -> Vec<Index> {
        let mut all: Vec<Index> = (0..count).collect();
        match self {
            Hosts::All => {}
            Hosts::None => all.clear(),
            Hosts::Range(first, end) => {
                all.retain(|host| *host >= first && end.is_none_or(|end| *host < end));
            }
            Hosts::Odd => all.retain(|host| host % 2 == 1),
            Hosts::Even => all.retain(|host| host % 2 == 0),
            Hosts::Percent(percent) => {
                let chosen = (count * percent as usize).div_ceil(100).min(count);
                while all.len() > chosen {
                    all.remove(random.below(all.len() as u64) as usize);
                }
            }
        }
        all
    }
}

impl FromStr for Hosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Hosts, String> {
        let hosts = match text {
            "all" => Some(Hosts::All),
            "none" => Some(Hosts::None),
            "odd" => Some(Hosts::Odd),
            "even" => Some(Hosts::Even),
            _ => match (text.strip_suffix('%'), text.split_once("..")) {
                (Some(percent), _) => percent.parse().ok().map(Hosts::Percent),
                (None, Some((first, ""))) => {
                    first.parse().ok().map(|first| Hosts::Range(first, None))
                }
                (None, Some((first, end))) => range(first, end),
                (None, None) => text
                    .parse()
                    .ok()
                    .map(|one| Hosts::Range(one, Some(one + 1))),
            },
        };
        hosts.ok_or_else(|| format!("not hosts: {text:?}"))
    }
}

fn range(first: &str, end: &str) -> Option<Hosts> {
    let (first, end): (Index, Index) = (first.parse().ok()?, end.parse().ok()?);
    (first < end).then_some(Hosts::Range(first, Some(end)))
}

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{:?}", self.0)
    }
}

macro_rules! from_text {
    ($($name:ty),*) => {
        $(impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        })*
    };
}

from_text!(Span, Size, Rate, Hosts);
