//! Where a path holds separate debug information.
//!
//! Debuggers ask a cache for `debuginfo/<build id>.debug` and learn which file of which NAR to take.

use std::fs;
use std::path::Path;

/// A file of debug information inside a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DebugFile {
    /// Build id, 40 lower-case hexadecimal digits.
    pub(super) build_id: String,
    /// Its name inside the path.
    pub(super) member: String,
}

/// The files that the tree at `root` holds below `lib/debug/.build-id`, ordered. Blocks on the disk.
/// What cannot be read counts as absent: the push itself will say so.
///
/// **Source**: `index-debug-info` in Nix's `binary-cache-store.cc`.
pub(super) fn debug_files(root: &Path) -> Vec<DebugFile> {
    let dir = root.join("lib/debug/.build-id");
    // A link would lead to what is not in this NAR.
    let mut way = dir.ancestors().take(4);
    if !way.all(|dir| dir.symlink_metadata().is_ok_and(|meta| meta.is_dir())) {
        return Vec::new();
    }
    let mut files = Vec::new();
    for start in names(&dir, |meta| meta.is_dir()) {
        for rest in names(&dir.join(&start), |meta| meta.is_file()) {
            let Some(digits) = rest.strip_suffix(".debug") else {
                continue;
            };
            if is_hex(&start, 2) && is_hex(digits, 38) {
                files.push(DebugFile {
                    build_id: format!("{start}{digits}"),
                    member: format!("lib/debug/.build-id/{start}/{rest}"),
                });
            }
        }
    }
    files.sort_by(|a, b| a.member.cmp(&b.member));
    files
}

fn names(dir: &Path, is_wanted: impl Fn(&fs::Metadata) -> bool) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let wanted = entries.filter(|entry| entry.metadata().is_ok_and(|meta| is_wanted(&meta)));
    wanted
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn is_hex(text: &str, len: usize) -> bool {
    let digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == len && text.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn s12_only_files_that_nix_would_index_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let ids = root.join("lib/debug/.build-id");
        let rest = "0".repeat(38);
        for name in ["ab", "cd", "AB", "abc"] {
            fs::create_dir_all(ids.join(name)).unwrap();
            fs::write(ids.join(name).join(format!("{rest}.debug")), "x").unwrap();
        }
        fs::write(ids.join("ab/short.debug"), "x").unwrap();
        fs::write(ids.join("ab").join(&rest), "x").unwrap();
        let one = rest.replace('0', "1");
        symlink("elsewhere", ids.join(format!("ab/{one}.debug"))).unwrap();
        let wanted = ["ab", "cd"].map(|start| DebugFile {
            build_id: format!("{start}{rest}"),
            member: format!("lib/debug/.build-id/{start}/{rest}.debug"),
        });
        assert_eq!(debug_files(&root), wanted);

        let link = dir.path().join("link");
        symlink(&root, &link).unwrap();
        assert_eq!(debug_files(&link), []);
        assert_eq!(debug_files(&dir.path().join("absent")), []);
    }
}
