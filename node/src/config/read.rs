//! Reading settings from where they are written, without judging their values.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Default, ENV_PREFIX, KEYS, Key, UPSTREAM_KEYS};
use super::{ConfigError, Origin};

/// A value as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    Text(String),
    List(Vec<String>),
}

/// What somebody set, by full key name, and who.
pub(super) type Settings = BTreeMap<String, (Setting, Origin)>;

/// What a file says, without judging it.
#[derive(Default)]
pub(super) struct FileSettings {
    /// By full key name.
    pub(super) set: Settings,
    /// Its `[[upstream]]` tables, in their order.
    pub(super) upstreams: Vec<UpstreamTable>,
    /// What is wrong besides values.
    pub(super) faults: Vec<ConfigError>,
}

/// One `[[upstream]]` table.
#[derive(Clone, Debug)]
pub(super) struct UpstreamTable {
    /// Where it begins.
    pub(super) origin: Origin,
    /// By full key name.
    pub(super) set: Settings,
}

/// Settings of a file.
pub(super) fn read_file(file: &Path) -> Result<FileSettings, ConfigError> {
    let text = fs::read_to_string(file).map_err(|error| ConfigError::Read {
        file: file.to_owned(),
        reason: error.kind(),
    })?;
    let origin = |span: Range<usize>| Origin::File {
        file: file.to_owned(),
        line: 1 + text.as_bytes()[..span.start.min(text.len())]
            .iter()
            .filter(|b| **b == b'\n')
            .count(),
    };
    let table = DeTable::parse(&text).map_err(|error| ConfigError::Syntax {
        origin: origin(error.span().unwrap_or_default()),
        message: error.message().to_owned(),
    })?;
    let mut read = FileSettings::default();
    read_table("", table.get_ref(), &origin, &mut read);
    Ok(read)
}

fn read_table(
    section: &str,
    table: &DeTable<'_>,
    origin: &impl Fn(Range<usize>) -> Origin,
    into: &mut FileSettings,
) {
    for (name, value) in table {
        let full_name = match section {
            "" => name.get_ref().to_string(),
            section => format!("{section}.{}", name.get_ref()),
        };
        let origin_here = origin(name.span());
        match (value.get_ref(), Key::find(&full_name)) {
            (_, Some(key)) => match setting(key, value, &origin_here) {
                Ok(setting) => drop(into.set.insert(full_name, (setting, origin_here))),
                Err(fault) => into.faults.push(fault),
            },
            (DeValue::Array(tables), None) if full_name == UPSTREAM => {
                for table in tables {
                    read_upstream(table, origin, into);
                }
            }
            (other, None) if full_name == UPSTREAM => into.faults.push(ConfigError::Value {
                origin: origin_here,
                name: UPSTREAM,
                value: other.type_str().to_owned(),
                wanted: "tables that begin with [[upstream]]".to_owned(),
            }),
            (DeValue::Table(inner), None) if is_section(&full_name) => {
                read_table(&full_name, inner, origin, into);
            }
            (_, None) => into.faults.push(unknown(&full_name, origin_here)),
        }
    }
}

/// Reads one item of the list of upstreams.
fn read_upstream(
    item: &Spanned<DeValue<'_>>,
    origin: &impl Fn(Range<usize>) -> Origin,
    into: &mut FileSettings,
) {
    let DeValue::Table(table) = item.get_ref() else {
        return into.faults.push(ConfigError::Value {
            origin: origin(item.span()),
            name: UPSTREAM,
            value: item.get_ref().type_str().to_owned(),
            wanted: "tables that begin with [[upstream]]".to_owned(),
        });
    };
    let mut set = Settings::new();
    for (name, value) in table {
        let full_name = format!("{UPSTREAM}.{}", name.get_ref());
        let origin = origin(name.span());
        let read = match Key::find_of_upstream(&full_name) {
            Some(key) => setting(key, value, &origin),
            None => Err(unknown(&full_name, origin.clone())),
        };
        match read {
            Ok(setting) => drop(set.insert(full_name, (setting, origin))),
            Err(fault) => into.faults.push(fault),
        }
    }
    let origin = origin(item.span());
    into.upstreams.push(UpstreamTable { origin, set });
}

fn setting(
    key: &Key,
    value: &Spanned<DeValue<'_>>,
    origin: &Origin,
) -> Result<Setting, ConfigError> {
    let is_bare = matches!(value.get_ref(), DeValue::Integer(_) | DeValue::Boolean(_));
    let wanted = match is_bare && !key.may_be_bare() {
        true => "text in quotes",
        false => "text, a number or a list of texts",
    };
    let setting = setting_from_toml(value).filter(|_| key.may_be_bare() || !is_bare);
    setting.ok_or_else(|| ConfigError::Value {
        origin: origin.clone(),
        name: key.name,
        value: value.get_ref().type_str().to_owned(),
        wanted: wanted.to_owned(),
    })
}

/// Where upstreams are listed.
const UPSTREAM: &str = "upstream";

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.section == name)
}

fn setting_from_toml(value: &Spanned<DeValue<'_>>) -> Option<Setting> {
    match value.get_ref() {
        DeValue::Array(items) => items
            .iter()
            .map(scalar)
            .collect::<Option<_>>()
            .map(Setting::List),
        _ => scalar(value).map(Setting::Text),
    }
}

fn scalar(value: &Spanned<DeValue<'_>>) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Settings of the environment. A variable that is no key but looks like one, or like the
/// end of one, is refused; others with our prefix belong to somebody else.
pub(super) fn read_env(env: &BTreeMap<OsString, OsString>) -> (Settings, Vec<ConfigError>) {
    let (mut set, mut faults) = (BTreeMap::new(), Vec::new());
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else {
            continue;
        };
        // The command line's own, though a key ends like it.
        if name == ENDPOINT_VARIABLE {
            continue;
        }
        let origin = Origin::Env(name.to_owned());
        let Some(key) = KEYS.iter().find(|key| key.env_name() == name) else {
            let meant = nearest(name, KEYS.iter().map(Key::env_name), MISSPELT_MIN);
            let meant = meant.or_else(|| ending_like(name));
            faults.extend(meant.map(|nearest| ConfigError::UnknownKey {
                origin,
                name: name.to_owned(),
                nearest: Some(nearest),
            }));
            continue;
        };
        let text = value.to_string_lossy();
        set.insert(key.full_name(), (setting_from_text(key, &text), origin));
    }
    (set, faults)
}

/// Which node the command line asks.
const ENDPOINT_VARIABLE: &str = "ATTIC_NODE_ENDPOINT";

/// The variable of a key that ends with the same words as `name`, which lacks those before them:
/// `ATTIC_NODE_STORE_SIZE_CAP` for `ATTIC_NODE_SIZE_CAP`.
fn ending_like(name: &str) -> Option<String> {
    let words = name.strip_prefix(ENV_PREFIX)?;
    let end = format!("_{words}");
    let mut known = KEYS.iter().map(Key::env_name);
    known.find(|known| !words.is_empty() && known.ends_with(&end))
}

/// A value from a place without types: a list is written with commas or spaces.
pub(super) fn setting_from_text(key: &Key, text: &str) -> Setting {
    if key.default != Default::EmptyList {
        return Setting::Text(text.to_owned());
    }
    let items = text.split([',', ' ']).filter(|item| !item.is_empty());
    Setting::List(items.map(str::to_owned).collect())
}

/// The error for a key called `name` that does not exist.
pub(super) fn unknown(name: &str, origin: Origin) -> ConfigError {
    let keys = || KEYS.iter().chain(UPSTREAM_KEYS);
    let sections = keys().map(|key| key.section.to_owned());
    let nearest = nearest(
        name,
        keys().map(Key::full_name).chain(sections),
        SUGGESTION_MIN,
    );
    ConfigError::UnknownKey {
        origin,
        name: name.to_owned(),
        nearest,
    }
}

/// The most similar of `known`, when it is similar enough to be what was meant.
fn nearest(name: &str, known: impl Iterator<Item = String>, min: f64) -> Option<String> {
    let scored = known.map(|known| (strsim::normalized_damerau_levenshtein(name, &known), known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= min).then_some(best.1)
}

/// Similarity from which a known name is worth suggesting for one that is refused anyway.
const SUGGESTION_MIN: f64 = 0.6;
/// Similarity from which a variable is taken for a misspelt key: one or two wrong letters.
const MISSPELT_MIN: f64 = 0.85;
