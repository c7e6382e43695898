//! Settings as the text of a configuration file, documented.

use std::fmt::Write;

use super::Origin;
use super::keys::{Default, KEYS, Key, UPSTREAM_KEYS};
use super::read::{Setting, UpstreamTable};

/// The configuration file in which each key has the value `lookup` finds for it, with these upstreams.
pub(super) fn render(
    lookup: impl Fn(&Key) -> (Option<Setting>, Origin),
    upstreams: &[UpstreamTable],
) -> String {
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            let _ = writeln!(text, "[{section}]\n");
        }
        let (setting, origin) = lookup(key);
        explain(&mut text, key);
        let _ = writeln!(text, "# Environment: {}", key.env_name());
        if origin != Origin::Default {
            let _ = writeln!(text, "# From: {origin}");
        }
        let _ = writeln!(text, "{}\n", assignment(key, setting));
    }
    match upstreams {
        [] => upstream_template(&mut text),
        some => some.iter().for_each(|table| upstream(&mut text, table)),
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn explain(text: &mut String, key: &Key) {
    for line in wrap(key.doc, 94) {
        let _ = writeln!(text, "# {line}");
    }
}

/// An upstream as it is configured.
fn upstream(text: &mut String, table: &UpstreamTable) {
    let _ = writeln!(text, "# From: {}\n[[upstream]]\n", table.origin);
    for key in UPSTREAM_KEYS {
        explain(text, key);
        let setting = table.set.get(&key.full_name());
        let setting = setting.map(|(setting, _)| setting.clone());
        let _ = writeln!(text, "{}\n", assignment(key, setting));
    }
}

/// What an upstream looks like, as a comment.
fn upstream_template(text: &mut String) {
    let _ = writeln!(
        text,
        "# There is none unless the file has tables like this one, which variables cannot set:\n\
         # [[upstream]]\n"
    );
    for key in UPSTREAM_KEYS {
        explain(text, key);
        let line = assignment(key, None);
        let _ = writeln!(text, "# {}\n", line.trim_start_matches("# "));
    }
}

fn assignment(key: &Key, setting: Option<Setting>) -> String {
    match (setting, key.default) {
        (Some(Setting::Text(text)), _) => format!("{} = {}", key.name, toml_value(&text)),
        (Some(Setting::List(items)), _) => format!("{} = {}", key.name, toml_list(&items)),
        (None, Default::Text(text)) => format!("{} = {}", key.name, toml_value(text)),
        (None, Default::EmptyList) => format!("{} = []", key.name),
        (None, Default::Unset(example)) => format!("# {} = {}", key.name, toml_value(example)),
    }
}

fn toml_value(text: &str) -> String {
    match text.parse::<u32>() {
        Ok(number) => number.to_string(),
        Err(_) => toml::Value::String(text.to_owned()).to_string(),
    }
}

/// Texts as a TOML list.
pub(super) fn toml_list(items: &[String]) -> String {
    let items: Vec<_> = items.iter().map(|item| toml_value(item)).collect();
    format!("[{}]", items.join(", "))
}

/// Breaks `text` at spaces into lines of at most `width` bytes, as far as its words allow.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
