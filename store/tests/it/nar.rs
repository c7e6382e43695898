//! NARs: what is accepted, what is listed, what is written.

use std::collections::BTreeMap;

use attic_store::nar::{
    Listing, NarError, NarFault, NarLimits, NarParser, NarWriteError, NarWriter, Unlisted,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::Index;
use serde_json::Value;

use crate::golden;

fn parse_with(limits: NarLimits, nar: &[u8]) -> Result<Listing, NarError> {
    let mut parser = NarParser::new(limits);
    parser.push(nar)?;
    parser.finish()
}

fn parse(nar: &[u8]) -> Result<Listing, NarError> {
    parse_with(NarLimits::default(), nar)
}

/// The strings of `words`, one after another.
fn nar(words: &[&str]) -> Vec<u8> {
    let mut nar = Vec::new();
    for word in words {
        nar.extend_from_slice(&(word.len() as u64).to_le_bytes());
        nar.extend_from_slice(word.as_bytes());
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

/// A NAR of a directory with an empty file for each name.
fn directory(names: &[&str]) -> Vec<u8> {
    let mut words = vec![MAGIC, "(", "type", "directory"];
    for name in names {
        words.extend(["entry", "(", "name", name, "node"]);
        words.extend(["(", "type", "regular", "contents", "", ")", ")"]);
    }
    words.push(")");
    nar(&words)
}

const MAGIC: &str = "nix-archive-1";

#[test]
fn listings_are_byte_for_byte_those_nix_writes() {
    for name in golden::names("nar", ".ls") {
        let nar = golden::bytes(&name.replace(".ls", ".nar"));
        let listing = parse(&nar).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(listing.json(), Some(golden::text(&name).as_str()), "{name}");
    }
}

#[test]
fn offsets_in_listings_are_where_contents_are() {
    let nar = golden::bytes("nar/tree.nar");
    let listing = parse(&nar).unwrap().into_json().unwrap();
    let listing: Value = serde_json::from_str(&listing).unwrap();
    let file = &listing["root"]["entries"]["file"];
    let start = file["narOffset"].as_u64().unwrap() as usize;
    assert_eq!(
        &nar[start..][..file["size"].as_u64().unwrap() as usize],
        b"hello"
    );
}

#[test]
fn a_name_that_is_not_utf8_is_accepted_without_listing() {
    let listing = parse(&golden::bytes("nar/not-utf8.nar")).unwrap();
    assert_eq!(listing.into_json(), Err(Unlisted::NotUtf8));
}

#[test]
fn writer_makes_the_bytes_of_nix_from_every_golden_tree() {
    for name in golden::names("nar", ".ls") {
        let nar = golden::bytes(&name.replace(".ls", ".nar"));
        assert_eq!(rebuilt(&golden::text(&name), &nar), nar, "{name}");
    }
}

#[test]
fn where_a_nar_is_cut_does_not_matter() {
    let whole = golden::bytes("nar/tree.nar");
    let expected = parse(&whole);
    for at in 0..=whole.len() {
        let (head, tail) = whole.split_at(at);
        let mut parser = NarParser::new(NarLimits::default());
        parser.push(head).and_then(|()| parser.push(tail)).unwrap();
        assert_eq!(parser.finish(), expected, "cut at {at}");
    }
}

#[test]
fn a_nar_without_its_end_is_truncated_wherever_it_ends() {
    for name in ["nar/tree.nar", "nar/link.nar", "nar/single.nar"] {
        let whole = golden::bytes(name);
        for len in 0..whole.len() {
            let error = parse(&whole[..len]).unwrap_err();
            assert!(matches!(error, NarError::Truncated { offset } if offset <= len as u64));
        }
    }
}

/// The groups are by what `nix-store --restore` says: 2.8 was asked, later ones were read.
#[test]
fn what_nix_refuses_is_refused_by_its_reason() {
    let tag = |expected| NarFault::Tag { expected };
    let deep_name = "x".repeat(1025);
    let long_target = "x".repeat(4096);
    let rows: Vec<(Vec<u8>, NarFault)> = vec![
        // Refused by every Nix.
        (directory(&["a", "a"]), NarFault::Order),
        (directory(&["."]), NarFault::Name),
        (directory(&[".."]), NarFault::Name),
        (directory(&[""]), NarFault::Name),
        (directory(&["a/b"]), NarFault::Name),
        (directory(&["/"]), NarFault::Name),
        (directory(&["a\0b"]), NarFault::Name),
        (directory(&[&deep_name]), NarFault::Name),
        (
            nar(&["nix-archive-2", "(", "type", "regular", "contents", "", ")"]),
            NarFault::Magic,
        ),
        (b"<!doctype html><html></html>".to_vec(), NarFault::Magic),
        (vec![0; 64], NarFault::Magic),
        (
            nar(&[MAGIC, "type", "regular", "contents", "", ")"]),
            tag("("),
        ),
        (nar(&[MAGIC, "(", "kind", "regular"]), tag("type")),
        (
            nar(&[MAGIC, "(", "contents", "", "type", "regular", ")"]),
            tag("type"),
        ),
        (nar(&[MAGIC, "(", "type", "fifo", ")"]), NarFault::Type),
        (
            nar(&[MAGIC, "(", "type", "regular", "type", "regular", ")"]),
            tag("executable or contents"),
        ),
        (
            nar(&[
                MAGIC,
                "(",
                "type",
                "regular",
                "executable",
                "x",
                "contents",
                "",
                ")",
            ]),
            NarFault::ExecutableValue,
        ),
        (
            nar(&[MAGIC, "(", "type", "directory", "contents", "", ")"]),
            tag("entry or )"),
        ),
        (
            nar(&[MAGIC, "(", "type", "regular", "entry", "(", ")", ")"]),
            tag("executable or contents"),
        ),
        (
            nar(&[MAGIC, "(", "type", "regular", "target", "a"]),
            tag("executable or contents"),
        ),
        (
            nar(&[MAGIC, "(", "type", "symlink", "target", ""]),
            NarFault::Target,
        ),
        (
            nar(&[MAGIC, "(", "type", "symlink", "target", &long_target]),
            NarFault::Target,
        ),
        (
            nar(&[MAGIC, "(", "type", "symlink", "target", "a", "target", "b"]),
            tag(")"),
        ),
        (
            nar(&[MAGIC, "(", "type", "directory", "entry", "(", "node", "("]),
            tag("name"),
        ),
        (
            nar(&[
                MAGIC,
                "(",
                "type",
                "directory",
                "entry",
                "(",
                "name",
                "a",
                "node",
                "type",
            ]),
            tag("("),
        ),
        (
            nar(&[
                MAGIC,
                "(",
                "type",
                "directory",
                "entry",
                "(",
                "name",
                "a",
                "node",
                "(",
                "type",
                "symlink",
                "target",
                "x",
                ")",
                "node",
                "(",
            ]),
            tag(")"),
        ),
        (padded_with_one(&[MAGIC]), NarFault::Padding),
        (padded_with_one(&[MAGIC, "("]), NarFault::Padding),
        (
            padded_with_one(&[MAGIC, "(", "type", "regular", "contents", "x"]),
            NarFault::Padding,
        ),
        (
            padded_with_one(&[MAGIC, "(", "type", "symlink", "target", "x"]),
            NarFault::Padding,
        ),
        ([nar(&[MAGIC]), vec![255; 8]].concat(), tag("(")),
        (
            [
                nar(&[MAGIC, "(", "type", "regular", "contents"]),
                vec![255; 8],
            ]
            .concat(),
            NarFault::ContentsLen,
        ),
        // Accepted by 2.8, refused by later Nix.
        (directory(&["b", "a"]), NarFault::Order),
        (nar(&[MAGIC, "(", ")"]), tag("type")),
        (
            nar(&[MAGIC, "(", "type", "regular", ")"]),
            tag("executable or contents"),
        ),
        (
            nar(&[MAGIC, "(", "type", "regular", "executable", "", ")"]),
            tag("contents"),
        ),
        (
            nar(&[
                MAGIC,
                "(",
                "type",
                "regular",
                "executable",
                "",
                "executable",
            ]),
            tag("contents"),
        ),
        (
            nar(&[MAGIC, "(", "type", "regular", "contents", "", "executable"]),
            tag(")"),
        ),
        (
            nar(&[MAGIC, "(", "type", "regular", "contents", "a", "contents"]),
            tag(")"),
        ),
        (nar(&[MAGIC, "(", "type", "symlink", ")"]), tag("target")),
        (
            nar(&[MAGIC, "(", "type", "directory", "entry", "(", ")"]),
            tag("name"),
        ),
        (
            nar(&[
                MAGIC,
                "(",
                "type",
                "directory",
                "entry",
                "(",
                "name",
                "a",
                ")",
            ]),
            tag("node"),
        ),
        // Accepted by every Nix: the rest is ignored, the target cut.
        (
            [golden::bytes("nar/single.nar"), vec![0]].concat(),
            NarFault::Trailing,
        ),
        (
            [golden::bytes("nar/single.nar"), nar(&[MAGIC])].concat(),
            NarFault::Trailing,
        ),
        (
            nar(&[MAGIC, "(", "type", "symlink", "target", "a\0b", ")"]),
            NarFault::Target,
        ),
    ];
    for (row, (nar, expected)) in rows.into_iter().enumerate() {
        match parse(&nar) {
            Err(NarError::Malformed { fault, .. }) => assert_eq!(fault, expected, "row {row}"),
            other => panic!("row {row}: expected {expected:?}, found {other:?}"),
        }
    }
}

/// `words` with the last byte, which is padding, set to 1.
fn padded_with_one(words: &[&str]) -> Vec<u8> {
    let mut nar = nar(words);
    *nar.last_mut().unwrap() = 1;
    nar
}

#[test]
fn what_looks_odd_and_nix_accepts_is_accepted() {
    let long = "x".repeat(255);
    for names in [
        &["A", "a"][..],
        &["...", "a"],
        &["\n"],
        &[" ", "-"],
        &[&long],
        &[],
    ] {
        parse(&directory(names)).unwrap_or_else(|error| panic!("{names:?}: {error}"));
    }
}

#[test]
fn errors_name_the_byte_and_stay() {
    let nar = directory(&["b", "a"]);
    let mut parser = NarParser::new(NarLimits::default());
    let error = parser.push(&nar).unwrap_err();
    let a = nar
        .windows(9)
        .rposition(|bytes| bytes == b"\x01\0\0\0\0\0\0\0a")
        .unwrap();
    assert_eq!(
        error.to_string(),
        format!("malformed NAR at byte {a}: directory not sorted")
    );
    assert_eq!(parser.push(b""), Err(error.clone()));
    assert_eq!(parser.push(&nar), Err(error.clone()));
    assert_eq!(parser.finish(), Err(error));
}

#[test]
fn entries_and_depth_are_bounded() {
    let limits = NarLimits {
        entries_max: 3,
        depth_max: 2,
        ..NarLimits::default()
    };
    assert!(parse_with(limits, &directory(&["a", "b"])).is_ok());
    let error = parse_with(limits, &directory(&["a", "b", "c"])).unwrap_err();
    assert_eq!(error.to_string(), "NAR has more than 3 entries");
    assert!(parse_with(limits, &nested(2)).is_ok());
    let error = parse_with(limits, &nested(3)).unwrap_err();
    assert_eq!(error.to_string(), "NAR has directories more than 2 deep");
    assert!(parse(&nested(2048)).is_ok());
    assert!(parse(&nested(2049)).is_err());
}

/// A NAR of `depth` directories in one another.
fn nested(depth: usize) -> Vec<u8> {
    let mut nar = Vec::new();
    let mut writer = NarWriter::new(|bytes: &[u8]| nar.extend_from_slice(bytes));
    for level in 0..depth {
        if level > 0 {
            writer.entry(b"d").unwrap();
        }
        writer.directory_begin().unwrap();
    }
    for _ in 0..depth {
        writer.directory_end().unwrap();
    }
    writer.finish().unwrap();
    nar
}

#[test]
fn a_listing_too_long_is_dropped_and_the_nar_read_on() {
    let nar = golden::bytes("nar/tree.nar");
    let len = golden::text("nar/tree.ls").len();
    let limits = |listing_len_max| NarLimits {
        listing_len_max,
        ..NarLimits::default()
    };
    assert!(parse_with(limits(len), &nar).unwrap().json().is_some());
    for len in [0, 1, 100, len - 1] {
        let listing = parse_with(limits(len), &nar).unwrap();
        assert_eq!(listing.into_json(), Err(Unlisted::TooLong));
    }
    assert!(parse_with(limits(0), &nar[..nar.len() - 1]).is_err());
}

#[test]
fn boundaries_are_where_long_contents_begin() {
    let nar = golden::bytes("nar/tree.nar");
    let mut parser = NarParser::new(NarLimits {
        boundary_len_min: 5,
        ..NarLimits::default()
    });
    let mut found = Vec::new();
    for (index, byte) in nar.iter().enumerate() {
        parser.push(&[*byte]).unwrap();
        let boundaries = parser.take_boundaries();
        assert!(
            boundaries.iter().all(|at| *at == index as u64 + 1),
            "reported at once"
        );
        found.extend(boundaries);
    }
    assert_eq!(
        found,
        [1360, 2128, 2552],
        "eight, file and run; the others are shorter"
    );
}

#[test]
fn contents_larger_than_memory_are_skipped() {
    let head = nar(&[MAGIC, "(", "type", "regular", "contents"]);
    let mut parser = NarParser::new(NarLimits::default());
    parser.push(&head).unwrap();
    parser.push(&(1u64 << 32).to_le_bytes()).unwrap();
    let block = vec![b'x'; 1 << 20];
    for _ in 0..1 << 12 {
        parser.push(&block).unwrap();
    }
    parser.push(&nar(&[")"])).unwrap();
    let json = r#"{"version":1,"root":{"type":"regular","size":4294967296,"narOffset":96}}"#;
    assert_eq!(parser.finish().unwrap().json(), Some(json));
}

#[test]
fn writer_refuses_what_would_not_be_a_nar() {
    type Step = fn(&mut NarWriter<fn(&[u8])>) -> Result<(), NarWriteError>;
    let rows: &[(&[Step], NarWriteError)] = &[
        (&[|w| w.entry(b"a")], NarWriteError::Sequence),
        (&[|w| w.directory_end()], NarWriteError::Sequence),
        (&[|w| w.contents(b"x")], NarWriteError::Sequence),
        (&[|w| w.symlink(b"")], NarWriteError::Target),
        (&[|w| w.symlink(b"a\0")], NarWriteError::Target),
        (
            &[|w| w.symlink(b"a"), |w| w.symlink(b"a")],
            NarWriteError::Sequence,
        ),
        (
            &[|w| w.regular(false, 0), |w| w.contents(b"x")],
            NarWriteError::Sequence,
        ),
        (
            &[|w| w.regular(false, 2), |w| w.contents(b"xyz")],
            NarWriteError::ContentsLen,
        ),
        (
            &[|w| w.regular(false, 2), |w| w.symlink(b"a")],
            NarWriteError::Sequence,
        ),
        (
            &[|w| w.directory_begin(), |w| w.symlink(b"a")],
            NarWriteError::Sequence,
        ),
        (
            &[|w| w.directory_begin(), |w| w.entry(b"..")],
            NarWriteError::Name,
        ),
        (
            &[
                |w| w.directory_begin(),
                |w| w.entry(b"a"),
                |w| w.directory_end(),
            ],
            NarWriteError::Sequence,
        ),
        (
            &[
                |w| w.directory_begin(),
                |w| w.entry(b"b"),
                |w| w.symlink(b"x"),
                |w| w.entry(b"a"),
            ],
            NarWriteError::Order,
        ),
        (
            &[
                |w| w.directory_begin(),
                |w| w.entry(b"b"),
                |w| w.regular(true, 0),
                |w| w.entry(b"b"),
            ],
            NarWriteError::Order,
        ),
    ];
    for (row, (steps, expected)) in rows.iter().enumerate() {
        let mut writer = NarWriter::new((|_| ()) as fn(&[u8]));
        let (last, before) = steps.split_last().unwrap();
        for step in before {
            step(&mut writer).unwrap();
        }
        assert_eq!(last(&mut writer), Err(*expected), "row {row}");
        if *expected != NarWriteError::Sequence {
            assert_eq!(writer.finish(), Err(NarWriteError::Sequence), "row {row}");
        }
    }
}

/// A file-system tree with names and targets that JSON can carry.
#[derive(Debug, Clone)]
enum Tree {
    File { executable: bool, contents: Vec<u8> },
    Link(String),
    Directory(BTreeMap<String, Tree>),
}

impl Tree {
    fn write<S: FnMut(&[u8])>(&self, writer: &mut NarWriter<S>) -> Result<(), NarWriteError> {
        match self {
            Self::File {
                executable,
                contents,
            } => {
                writer.regular(*executable, contents.len() as u64)?;
                let (head, tail) = contents.split_at(contents.len() / 2);
                writer.contents(head)?;
                writer.contents(tail)
            }
            Self::Link(target) => writer.symlink(target.as_bytes()),
            Self::Directory(entries) => {
                writer.directory_begin()?;
                for (name, node) in entries {
                    writer.entry(name.as_bytes())?;
                    node.write(writer)?;
                }
                writer.directory_end()
            }
        }
    }

    /// Reads a node of a listing, with contents from the NAR it belongs to.
    fn listed(node: &Value, nar: &[u8]) -> Self {
        match node["type"].as_str().unwrap() {
            "regular" => {
                let start = node["narOffset"].as_u64().unwrap() as usize;
                let contents = nar[start..][..node["size"].as_u64().unwrap() as usize].to_vec();
                let executable = node.get("executable").is_some();
                Self::File {
                    executable,
                    contents,
                }
            }
            "symlink" => Self::Link(node["target"].as_str().unwrap().to_owned()),
            "directory" => {
                let entries = node["entries"].as_object().unwrap().iter();
                let listed = |(name, node): (&String, _)| (name.clone(), Self::listed(node, nar));
                Self::Directory(entries.map(listed).collect())
            }
            other => panic!("type {other}"),
        }
    }

    fn to_nar(&self) -> Vec<u8> {
        let mut nar = Vec::new();
        let mut writer = NarWriter::new(|bytes: &[u8]| nar.extend_from_slice(bytes));
        self.write(&mut writer).unwrap();
        let len = writer.finish().unwrap();
        assert_eq!(len, nar.len() as u64);
        nar
    }
}

/// The NAR again, made from its listing and its contents.
fn rebuilt(listing: &str, nar: &[u8]) -> Vec<u8> {
    let listing: Value = serde_json::from_str(listing).unwrap();
    assert_eq!(listing["version"], 1);
    Tree::listed(&listing["root"], nar).to_nar()
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        (any::<bool>(), vec(any::<u8>(), 0..40)).prop_map(|(executable, contents)| Tree::File {
            executable,
            contents
        }),
        "[^\0]{1,20}".prop_map(Tree::Link),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let names = "[^\0/]{1,12}".prop_filter("dots", |name| name != "." && name != "..");
        btree_map(names, inner, 0..6).prop_map(Tree::Directory)
    })
}

/// A NAR with a few bytes replaced, or cut, or with something appended.
fn any_damaged_nar() -> impl Strategy<Value = Vec<u8>> {
    let damage = vec((any::<Index>(), any::<u8>()), 0..4);
    (any_tree(), damage, any::<Index>(), vec(any::<u8>(), 0..10)).prop_map(
        |(tree, damage, end, tail)| {
            let mut nar = tree.to_nar();
            for (at, byte) in damage {
                let at = at.index(nar.len());
                nar[at] = byte;
            }
            if tail.len() == 1 {
                nar.truncate(end.index(nar.len()));
            } else if tail.len() == 2 {
                nar.extend_from_slice(&tail);
            }
            nar
        },
    )
}

/// What a parser says that gets `nar` in pieces of the lengths `cuts`, repeated.
fn parse_in_pieces(nar: &[u8], cuts: &[usize]) -> Result<Listing, NarError> {
    let mut parser = NarParser::new(NarLimits::default());
    let mut rest = nar;
    for len in cuts.iter().cycle() {
        let (piece, tail) = rest.split_at((*len).min(rest.len()));
        parser.push(piece)?;
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    parser.finish()
}

proptest! {
    #[test]
    fn every_tree_round_trips_through_its_nar(tree in any_tree()) {
        let nar = tree.to_nar();
        let listing = parse(&nar).unwrap().into_json().unwrap();
        prop_assert_eq!(rebuilt(&listing, &nar), nar);
    }

    #[test]
    fn how_bytes_are_split_never_changes_the_result(nar in any_damaged_nar(), cuts in vec(1usize..50, 1..6)) {
        prop_assert_eq!(parse_in_pieces(&nar, &cuts), parse(&nar));
    }

    #[test]
    fn what_is_accepted_is_the_one_nar_of_its_tree(nar in any_damaged_nar()) {
        if let Ok(listing) = parse(&nar)
            && let Ok(listing) = listing.into_json()
        {
            prop_assert_eq!(rebuilt(&listing, &nar), nar);
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        assert!(parse(&bytes).is_err(), "random bytes are no NAR");
    }
}
