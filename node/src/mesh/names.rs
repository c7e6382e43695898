//! What nodes call themselves.
//!
//! A node says its name and version to whoever it is connected to. It proves nothing: names are for
//! people to read, ids to act on. Whatever a node says, what is kept of it is short and harmless to
//! a terminal.

use std::collections::BTreeMap;
use std::sync::Mutex;

use attic_p2p::ids::NodeId;
use attic_p2p::network::PeerInfo;

use crate::config::value::{NAME_LEN_MAX, is_name_char};

/// Names of nodes, also of those that are away.
#[derive(Debug, Default)]
pub(crate) struct Names {
    cards: Mutex<BTreeMap<NodeId, Card>>,
    /// As the file has it.
    written: Mutex<String>,
}

/// What a node says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Card {
    /// At most [`NAME_LEN_MAX`] of `[0-9A-Za-z ._-]`.
    pub(crate) name: Option<String>,
    /// At most [`NAME_LEN_MAX`] of `[0-9A-Za-z._+-]`.
    pub(crate) version: Option<String>,
}

impl Names {
    /// The names that a file of an earlier run has. What is none is left out.
    pub(crate) fn read(text: &str) -> Names {
        let cards = text.lines().filter_map(|line| {
            let (node, name) = line.split_once(' ')?;
            let name = name_of(name);
            let version = None;
            Some((node.parse().ok()?, Card { name, version }))
        });
        Names {
            cards: Mutex::new(cards.take(NAMES_MAX).collect()),
            written: Mutex::new(text.to_owned()),
        }
    }

    /// What the file should have, if it has something else. It is taken to be written then.
    pub(crate) fn take_unwritten(&self) -> Option<String> {
        let text = self.text();
        let mut written = self.written.lock().expect("no panic under this lock");
        let is_news = *written != text;
        written.clone_from(&text);
        is_news.then_some(text)
    }

    /// For [`Names::read`]: a line for each name.
    fn text(&self) -> String {
        let cards = self.cards.lock().expect("no panic under this lock");
        let lines = cards.iter().filter_map(|(node, card)| {
            let name = card.name.as_ref()?;
            Some(format!("{node} {name}\n"))
        });
        lines.collect()
    }

    /// Takes note of who is connected.
    pub(crate) fn note(&self, peers: &[PeerInfo]) {
        let mut cards = self.cards.lock().expect("no panic under this lock");
        for peer in peers.iter().filter(|peer| !peer.agent.is_empty()) {
            if cards.len() < NAMES_MAX || cards.contains_key(&peer.node) {
                cards.insert(peer.node, Card::of(&peer.agent));
            }
        }
    }

    /// What a node says about itself, or said last.
    pub(crate) fn of(&self, node: &NodeId, peer: Option<&PeerInfo>) -> Card {
        match peer.filter(|peer| !peer.agent.is_empty()) {
            Some(peer) => Card::of(&peer.agent),
            None => {
                let cards = self.cards.lock().expect("no panic under this lock");
                cards.get(node).cloned().unwrap_or_default()
            }
        }
    }
}

impl Card {
    /// **Shape** of an agent: `attic-node/` version, a space, name.
    fn of(agent: &str) -> Card {
        let (program, name) = agent.split_once(' ').unwrap_or((agent, ""));
        let version = program.strip_prefix(PROGRAM).map(|version| {
            let fits = |c: &char| c.is_ascii_alphanumeric() || "._+-".contains(*c);
            version.chars().filter(fits).take(NAME_LEN_MAX).collect()
        });
        Card {
            name: name_of(name),
            version: version.filter(|version: &String| !version.is_empty()),
        }
    }
}

/// What this node says about itself.
pub(crate) fn agent(name: Option<&str>) -> String {
    let name = name.map_or_else(host_name, str::to_owned);
    format!("{PROGRAM}{} {name}", env!("CARGO_PKG_VERSION"))
}

/// The name of this machine, as far as it is fit to be shown.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname();
    name_of(&name.nodename().to_string_lossy()).unwrap_or_else(|| "node".to_owned())
}

/// What of a text can be a name.
fn name_of(text: &str) -> Option<String> {
    let chars = text.chars().filter(|c| is_name_char(*c));
    let name: String = chars.take(NAME_LEN_MAX).collect();
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Nodes whose name is remembered.
const NAMES_MAX: usize = 1024;
const PROGRAM: &str = "attic-node/";

#[cfg(test)]
mod tests {
    use attic_p2p::identity::Identity;

    use super::*;

    #[test]
    fn whatever_a_node_says_is_short_and_harmless() {
        let long = format!("attic-node/1 {}", "x".repeat(200));
        for (agent, name, version) in [
            ("attic-node/1.2.3 desk 4", Some("desk 4"), Some("1.2.3")),
            ("attic-node/1.2.3", None, Some("1.2.3")),
            ("attic-node/ ", None, None),
            ("", None, None),
            ("other/7 desk", Some("desk"), None),
            (
                "attic-node/1\u{1b}[31m \u{202e}desk\u{7}\u{1b}]0;owned",
                Some("desk0owned"),
                Some("131m"),
            ),
            (&long, Some(&*"x".repeat(64)), Some("1")),
        ] {
            let card = Card::of(agent);
            assert_eq!(card.name.as_deref(), name, "{agent:?}");
            assert_eq!(card.version.as_deref(), version, "{agent:?}");
        }
    }

    #[test]
    fn a_node_reads_what_another_says() {
        let card = Card::of(&agent(Some("build-1")));
        assert_eq!(card.name.as_deref(), Some("build-1"));
        assert_eq!(card.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
        assert!(Card::of(&agent(None)).name.is_some());
    }

    #[test]
    fn names_outlive_a_restart() {
        let node = Identity::from_seed([7; 32]).node_id();
        let text = format!("nonsense\n{node} desk 4\nx y\n");
        let names = Names::read(&text);
        assert_eq!(names.of(&node, None).name.as_deref(), Some("desk 4"));
        let text = format!("{node} desk 4\n");
        assert_eq!(names.take_unwritten(), Some(text), "without the nonsense");
        assert_eq!(names.take_unwritten(), None);
    }
}
