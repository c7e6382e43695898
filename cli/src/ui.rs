//! How the program speaks: stdout is data, stderr is talk.
//!
//! Colours and moving bars appear only on a terminal; `NO_COLOR` and `TERM=dumb` turn colours off.

use std::fmt::Display;
use std::io::{self, BufRead, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attic_node_core::api::Revoked;
use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::args::ConfirmArgs;
use crate::exit::CliError;

pub mod progress;

/// The terminal, or what stands in for it. Clones share the bars.
#[derive(Clone, Debug)]
pub struct Ui {
    terminal: bool,
    colour: bool,
    bars: MultiProgress,
}

impl Ui {
    /// Looks at stderr and the environment.
    pub fn new() -> Ui {
        let terminal = io::stderr().is_terminal();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let target = if terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Ui {
            terminal: terminal && !dumb,
            colour: terminal && !dumb && !set("NO_COLOR"),
            bars: MultiProgress::with_draw_target(target),
        }
    }

    /// Whether bars can move.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether colours are wanted.
    pub fn is_coloured(&self) -> bool {
        self.colour
    }

    /// Where bars are drawn.
    pub fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Shows on a terminal that `what` is going on, and for how long, until it is dropped.
    pub fn wait(&self, what: &'static str) -> Waiting {
        let bar = self.bars.add(
            ProgressBar::new_spinner().with_style(
                ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
                    .expect("the template is well-formed"),
            ),
        );
        bar.set_message(what);
        bar.enable_steady_tick(TICK);
        Waiting(bar)
    }

    /// Writes one line of data to stdout.
    ///
    /// **Errors**: [`CliError::Output`]; a closed pipe is one too, and ends the program well.
    pub fn data(&self, line: impl Display) -> Result<(), CliError> {
        let written = self
            .bars
            .suspend(|| writeln!(io::stdout().lock(), "{line}"));
        written.map_err(CliError::Output)
    }

    /// Writes text to stdout as it is.
    ///
    /// **Errors**: as [`Ui::data`].
    pub fn text(&self, text: &str) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
            .map_err(CliError::Output)
    }

    /// Writes a value to stdout, as one line of JSON.
    ///
    /// **Errors**: as [`Ui::data`].
    pub fn json(&self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(io::Error::from);
        self.data(text.map_err(CliError::Output)?)
    }

    /// Writes rows to stdout in aligned columns; `right` says which ones align to the right.
    ///
    /// **Errors**: as [`Ui::data`].
    pub fn table<const N: usize>(
        &self,
        right: [bool; N],
        rows: &[[String; N]],
    ) -> Result<(), CliError> {
        let mut widths = [0; N];
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in rows {
            self.data(align(row, &widths, &right))?;
        }
        Ok(())
    }

    /// Says something to the person at the terminal. A closed stderr is nobody's problem.
    pub fn say(&self, line: impl Display) {
        self.bars.suspend(|| {
            let _ = writeln!(io::stderr().lock(), "{line}");
        });
    }

    /// Says that something odd happened and the work goes on.
    pub fn warn(&self, line: impl Display) {
        self.say(format_args!("{} {line}", self.paint(YELLOW, "warning:")));
    }

    /// Says why a command failed: the chain of causes, and the next step when it is known.
    pub fn fail(&self, error: &CliError) {
        self.say(format_args!(
            "{} {}",
            self.paint(RED, "error:"),
            chain(error)
        ));
        if let Some(hint) = error.hint() {
            self.hint(hint);
        }
    }

    /// Says what the next step may be.
    pub fn hint(&self, line: impl Display) {
        self.say(format_args!("{} {line}", self.paint(CYAN, "hint:")));
    }

    /// Asks a question that only `yes` answers well, unless `args` say not to.
    ///
    /// **Errors**: [`CliError::NotConfirmed`], also when there is nobody to ask.
    pub fn confirm(&self, args: ConfirmArgs, question: impl Display) -> Result<(), CliError> {
        match args.no_confirm || self.ask(question) {
            true => Ok(()),
            false => Err(CliError::NotConfirmed),
        }
    }

    /// Whether the answer is `yes`. Without a terminal nobody can give it.
    fn ask(&self, question: impl Display) -> bool {
        if !self.terminal || !io::stdin().is_terminal() {
            return false;
        }
        let mut stderr = io::stderr().lock();
        let asked = write!(stderr, "{question} [yes/no] ").and_then(|()| stderr.flush());
        let mut answer = String::new();
        asked.is_ok()
            && io::stdin().lock().read_line(&mut answer).is_ok()
            && answer.trim().eq_ignore_ascii_case("yes")
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[1;{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Says what is waited for. Dropping it takes the line away.
#[derive(Debug)]
pub struct Waiting(ProgressBar);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Default for Ui {
    fn default() -> Ui {
        Ui::new()
    }
}

/// An error and its causes in one line, without repetitions.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// A number of bytes for people: `29.69 MiB`.
pub fn bytes(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// `1 path`, `2 paths`.
pub fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// A time for people: `2026-11-22 18:36 UTC`.
pub fn date(unix_seconds: u64) -> String {
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (seconds / 3600, seconds / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// Until when a certificate is good, or that it was, and what to do about that.
pub fn validity(not_after: u64) -> String {
    let end = date(not_after);
    match not_after < unix_now() {
        false => format!("good until {end}"),
        true => format!(
            "expired at {end}: only the node that made the cluster lets this one in, and renews it"
        ),
    }
}

/// What a node's certificate is worth: until when it is good, or that the node was revoked and how
/// that is known.
pub fn standing(not_after: u64, revoked: Option<&Revoked>) -> String {
    let Some(revoked) = revoked else {
        return validity(not_after);
    };
    let names = revoked.said_by.iter().map(|teller| match &teller.name {
        Some(name) => name.clone(),
        None => teller.node.to_string(),
    });
    let names: Vec<String> = names.collect();
    let (names, says) = match &names[..] {
        [one] => (one.clone(), "says"),
        several => (several.join(", "), "say"),
    };
    match revoked.proven_at {
        Some(at) if names.is_empty() => format!("revoked at {}: {REVOKED_WAY_BACK}", date(at)),
        Some(at) => format!(
            "revoked at {}, {names} {says} so too: {REVOKED_WAY_BACK}",
            date(at)
        ),
        None => format!(
            "{}, but {names} {says} this node is revoked; no word of the cluster's key on that is here",
            validity(not_after)
        ),
    }
}

const REVOKED_WAY_BACK: &str = "the cluster's key signed it; after `attic-node leave` a new ticket lets \
                                this node in under another id";

/// Seconds since 1970, by this machine's clock.
pub fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Gregorian date of a day counted from 1970-01-01.
///
/// **Source**: years are counted from March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097;
    let since_march_year_0 = days + 719_468;
    let (era, day_of_era) = (
        since_march_year_0 / DAYS_PER_ERA,
        since_march_year_0 % DAYS_PER_ERA,
    );
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn align<const N: usize>(row: &[String; N], widths: &[usize; N], right: &[bool; N]) -> String {
    let mut line = String::new();
    for ((cell, width), right) in row.iter().zip(widths).zip(right) {
        let padding = " ".repeat(width - cell.chars().count());
        let (before, after) = if *right {
            (&*padding, "")
        } else {
            ("", &*padding)
        };
        for piece in [before, cell, after, "  "] {
            line.push_str(piece);
        }
    }
    line.truncate(line.trim_end().len());
    line
}

const RED: &str = "31";
const TICK: Duration = Duration::from_millis(100);
const YELLOW: &str = "33";
const CYAN: &str = "36";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_gregorian() {
        let check = |seconds, text| assert_eq!(date(seconds), text);
        check(0, "1970-01-01 00:00 UTC");
        check(951_782_399, "2000-02-28 23:59 UTC");
        check(951_825_600, "2000-02-29 12:00 UTC");
        check(951_868_800, "2000-03-01 00:00 UTC");
        check(4_107_542_400, "2100-03-01 00:00 UTC");
    }

    #[test]
    fn counts_agree_with_their_noun() {
        assert_eq!(
            [0, 1, 2].map(|n| count(n, "path")),
            ["0 paths", "1 path", "2 paths"]
        );
    }
}
