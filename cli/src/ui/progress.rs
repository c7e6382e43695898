//! How a push looks: a bar per path on a terminal, a line per path elsewhere, JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::Duration;

use attic_store::store_path::StorePath;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde_json::json;

use super::{Ui, bytes};
use crate::push::{Event, Observer};

/// Lines on stderr, and bars above them on a terminal.
#[derive(Debug)]
pub struct Bars {
    ui: Ui,
    shown: Mutex<BTreeMap<StorePath, ProgressBar>>,
}

impl Bars {
    /// Shows on `ui`.
    pub fn new(ui: Ui) -> Bars {
        Bars {
            ui,
            shown: Mutex::default(),
        }
    }

    fn start(&self, path: &StorePath, nar_size: u64) {
        let mut shown = self.shown.lock().expect("no panic under this lock");
        if !self.ui.is_terminal() || shown.len() == BARS_MAX || shown.contains_key(path) {
            return;
        }
        let bar = self
            .ui
            .bars()
            .add(ProgressBar::new(nar_size).with_style(style()));
        bar.set_message(path.name().to_owned());
        shown.insert(path.clone(), bar);
    }

    fn advance(&self, path: &StorePath, bytes: u64) {
        if let Some(bar) = self
            .shown
            .lock()
            .expect("no panic under this lock")
            .get(path)
        {
            bar.set_position(bytes);
        }
    }

    fn end(&self, path: &StorePath, line: &str) {
        let bar = self
            .shown
            .lock()
            .expect("no panic under this lock")
            .remove(path);
        if let Some(bar) = bar {
            bar.finish_and_clear();
            self.ui.bars().remove(&bar);
        }
        self.ui.say(line);
    }
}

impl Observer for Bars {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Started { path, nar_size } => self.start(path, nar_size),
            Event::Advanced { path, bytes } => self.advance(path, bytes),
            Event::Pushed {
                path,
                nar_size,
                sent_bytes,
                elapsed,
            } => {
                self.end(path, &pushed_line(path, nar_size, sent_bytes, elapsed));
            }
            // The last line counts them.
            Event::Cached { .. } | Event::Upstream { .. } => {}
            Event::Untold { path } => self.ui.warn(format_args!(
                "{path} has too many references to tell the cluster of it: only this node serves it"
            )),
            Event::Failed { path, reason } => self.end(path, &format!("❌ {path}: {reason}")),
            Event::Unusable { argument, reason } => {
                self.ui.say(format_args!("❌ {argument}: {reason}"));
            }
            Event::ObjectFailed { object, reason } => {
                self.ui.warn(format_args!("not pushed: {object}: {reason}"));
            }
        }
    }
}

/// Objects on stdout, one a line, when a path is done.
#[derive(Debug)]
pub struct JsonLines(pub Ui);

impl Observer for JsonLines {
    /// A reader that went away does not stop the push.
    fn event(&self, event: &Event<'_>) {
        let object = match *event {
            Event::Started { .. } | Event::Advanced { .. } => return,
            Event::Pushed {
                path,
                nar_size,
                sent_bytes,
                elapsed,
            } => json!({
                "event": "path", "path": path, "status": "pushed", "nar_size": nar_size,
                "sent_bytes": sent_bytes, "millis": elapsed.as_millis() as u64,
            }),
            Event::Cached { path, nar_size } => json!({
                "event": "path", "path": path, "status": "cached", "nar_size": nar_size,
            }),
            Event::Upstream {
                path,
                nar_size,
                key,
            } => json!({
                "event": "path", "path": path, "status": "upstream", "nar_size": nar_size,
                "key": key,
            }),
            Event::Untold { path } => json!({ "event": "untold", "path": path }),
            Event::Failed { path, reason } => json!({
                "event": "path", "path": path, "status": "failed", "reason": reason,
            }),
            Event::Unusable { argument, reason } => json!({
                "event": "path", "path": argument, "status": "failed", "reason": reason,
            }),
            Event::ObjectFailed { object, reason } => json!({
                "event": "object", "object": object, "status": "failed", "reason": reason,
            }),
        };
        let _ = self.0.json(&object);
    }
}

/// `✅ <path> (29.69 MiB/s, 41.0% deduplicated)`
fn pushed_line(path: &StorePath, nar_size: u64, sent_bytes: u64, elapsed: Duration) -> String {
    if sent_bytes == 0 {
        return format!("✅ {path} (deduplicated)");
    }
    let mut line = format!("✅ {path} ({}", speed(nar_size, elapsed));
    let deduplicated = 100.0 * (1.0 - sent_bytes as f64 / nar_size as f64);
    if deduplicated >= 0.1 {
        let _ = write!(line, ", {deduplicated:.1}% deduplicated");
    }
    line + ")"
}

fn speed(len: u64, elapsed: Duration) -> String {
    let per_second = len as f64 / elapsed.as_secs_f64().max(0.001);
    format!("{}/s", bytes(per_second as u64))
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{spinner} {msg:28!} {bar:40.green/blue} {binary_bytes:>10} ({average_speed})",
    )
    .expect("the template is well-formed")
    .tick_chars("🕛🕐🕑🕒🕓🕔🕕🕖🕗🕘🕙🕚✅")
    .progress_chars("██ ")
    .with_key(
        "average_speed",
        |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            let _ = text.write_str(&speed(state.pos(), state.elapsed()));
        },
    )
}

/// More than fit a small terminal are of no use.
const BARS_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// P6: attic's words.
    #[test]
    fn p6_lines_are_attics() {
        let path: StorePath = "psz32zc269jz40cx0spbf4rz4k0q39dj-libgcc-12"
            .parse()
            .unwrap();
        let check = |nar_size, sent_bytes, ms, wanted: &str| {
            let line = pushed_line(&path, nar_size, sent_bytes, Duration::from_millis(ms));
            assert_eq!(line, format!("✅ {path} ({wanted})"));
        };
        check(1 << 20, 0, 10, "deduplicated");
        check(10 << 20, 59 << 17, 500, "20.00 MiB/s, 26.2% deduplicated");
        check(10 << 20, 10 << 20, 500, "20.00 MiB/s");
        check(100, 100, 0, "97.66 KiB/s");
    }
}
