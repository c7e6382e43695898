//! Settings as the text of a configuration file, documented.

use std::fmt::Write;

use super::Origin;
use super::keys::{Default, KEYS, Key};
use super::read::Setting;

/// The configuration file in which each key has the value `lookup` finds for it.
pub(super) fn render(lookup: impl Fn(&Key) -> (Option<Setting>, Origin)) -> String {
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            let _ = writeln!(text, "[{section}]\n");
        }
        let (setting, origin) = lookup(key);
        for line in wrap(key.doc, 94) {
            let _ = writeln!(text, "# {line}");
        }
        let _ = writeln!(text, "# Environment: {}", key.env_name());
        if origin != Origin::Default {
            let _ = writeln!(text, "# From: {origin}");
        }
        let _ = writeln!(text, "{}\n", assignment(key, setting));
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
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
