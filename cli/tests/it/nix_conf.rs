//! P13: `use` is idempotent and `unuse` takes it back.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use attic_node_cli::nix_conf::{NixConf, Substituter, edit};
use attic_store::cache_name::CacheName;

fn cache(name: &str) -> CacheName {
    name.parse().unwrap()
}

fn substituter(name: &str) -> Substituter {
    Substituter {
        url: format!("http://127.0.0.1:7745/{name}"),
        public_keys: vec![format!("{name}:AAAA"), format!("{name}:BBBB")],
    }
}

fn add(text: Option<&str>, name: &str) -> Option<String> {
    let mut conf = NixConf::parse(text);
    assert!(conf.add(&cache(name), &substituter(name)));
    conf.render()
}

fn remove(text: Option<&str>, name: &str) -> Option<String> {
    let mut conf = NixConf::parse(text);
    assert!(conf.remove(&cache(name), &substituter(name).url));
    conf.render()
}

/// The cache of this name at another node.
fn elsewhere(name: &str) -> Substituter {
    Substituter {
        url: format!("http://192.0.2.7:7745/{name}"),
        public_keys: vec![format!("{name}:CCCC")],
    }
}

/// Files as people have them, with and without an end of line, and some that look like ours.
const ORIGINALS: &[Option<&str>] = &[
    None,
    Some(""),
    Some("\n"),
    Some("cores = 4"),
    Some("cores = 4\n"),
    Some("cores = 4\n\n\n"),
    Some("\nsubstituters = http://x\ntrusted-public-keys = x:1\n"),
    Some("# attic-node use main: begin\n"),
    Some("# attic-node use main: begin\nno end"),
    Some("# attic-node use main: end\n"),
    Some("# attic-node use main: begin (oddly)\nx\n# attic-node use main: end\n"),
    Some("a = ü\r\n"),
];

#[test]
fn p13_unuse_restores_the_file_byte_for_byte() {
    for original in ORIGINALS {
        let used = add(*original, "main").unwrap();
        assert!(used.starts_with(original.unwrap_or_default()));
        assert!(
            used.contains("\nextra-substituters = http://127.0.0.1:7745/main\n"),
            "{used}"
        );
        assert!(
            used.contains("\nextra-trusted-public-keys = main:AAAA main:BBBB\n"),
            "{used}"
        );
        assert_eq!(remove(Some(&used), "main").as_deref(), *original);
    }
}

#[test]
fn p13_several_caches_come_and_go_in_any_order() {
    let orders = [
        ["a", "b", "c"],
        ["c", "b", "a"],
        ["b", "a", "c"],
        ["b", "c", "a"],
    ];
    for original in ORIGINALS {
        for order in orders {
            let used = ["a", "b", "c"]
                .iter()
                .fold(original.map(str::to_owned), |text, name| {
                    add(text.as_deref(), name)
                });
            let unused = order
                .iter()
                .fold(used, |text, name| remove(text.as_deref(), name));
            assert_eq!(unused.as_deref(), *original, "{order:?}");
        }
    }
}

#[test]
fn p13_using_twice_changes_nothing() {
    for original in ORIGINALS {
        let used = add(*original, "main").unwrap();
        let mut conf = NixConf::parse(Some(&used));
        assert!(!conf.add(&cache("main"), &substituter("main")));
        assert_eq!(conf.render().as_deref(), Some(&*used));
    }
}

#[test]
fn a_new_key_replaces_the_old_one_in_place() {
    let used = add(add(Some("x = 1"), "main").as_deref(), "other").unwrap() + "y = 2\n";
    let mut conf = NixConf::parse(Some(&used));
    let changed = Substituter {
        public_keys: vec!["main:CCCC".into()],
        ..substituter("main")
    };
    assert!(conf.add(&cache("main"), &changed));
    let changed = conf.render().unwrap();
    assert_eq!(changed, used.replace("main:AAAA main:BBBB", "main:CCCC"));
    assert_eq!(
        remove(remove(Some(&changed), "main").as_deref(), "other").unwrap(),
        "x = 1\ny = 2\n"
    );
}

/// The second node's cache used to take the place of the first's.
#[test]
fn caches_of_one_name_at_two_nodes_come_and_go_by_themselves() {
    let main = cache("main");
    for original in ORIGINALS {
        let used = add(*original, "main").unwrap();
        let mut conf = NixConf::parse(Some(&used));
        let other = elsewhere("main");
        assert!(conf.add(&main, &other));
        assert!(!conf.add(&main, &other));
        assert!(!conf.add(&main, &substituter("main")));
        let urls = [substituter("main").url, other.url.clone()];
        assert_eq!(conf.urls(&main), urls);
        assert_eq!(conf.urls(&cache("other")), [""; 0]);
        let both = conf.render().unwrap();
        assert!(both.starts_with(&used), "{both}");
        let blocks = [substituter("main"), other].map(|block| block.nix_conf_lines());
        assert!(blocks.iter().all(|block| both.contains(block)), "{both}");

        for [first, second] in [[0, 1], [1, 0]] {
            let mut conf = NixConf::parse(Some(&both));
            assert!(conf.remove(&main, &urls[first]));
            assert!(!conf.remove(&main, &urls[first]));
            let left = conf.render().unwrap();
            let kept = [first, second].map(|block| left.contains(&blocks[block]));
            assert_eq!(kept, [false, true], "{left}");
            let mut conf = NixConf::parse(Some(&left));
            assert!(conf.remove(&main, &urls[second]));
            assert_eq!(conf.render().as_deref(), *original);
        }
    }
}

#[test]
fn what_was_written_around_a_block_stays() {
    let used = add(Some("x = 1"), "main").unwrap();
    let edited = format!("{used}y = 2\n");
    assert_eq!(remove(Some(&edited), "main").unwrap(), "x = 1\ny = 2\n");
    let edited = format!("w = 0\n{}", add(None, "main").unwrap());
    assert_eq!(remove(Some(&edited), "main").unwrap(), "w = 0\n");
}

#[test]
fn unusing_what_is_not_used_is_no_change() {
    let mut conf = NixConf::parse(Some("x = 1"));
    let url = &substituter("main").url;
    assert!(!conf.remove(&cache("main"), url));
    let mut conf = NixConf::parse(add(None, "main-2").as_deref());
    assert!(!conf.remove(&cache("main"), url));
}

#[test]
fn p13_nixos_module() {
    let module = substituter("main").nixos_module();
    let wanted = "{\n  nix.settings = {\n    \
                  extra-substituters = [ \"http://127.0.0.1:7745/main\" ];\n    \
                  extra-trusted-public-keys = [ \"main:AAAA\" \"main:BBBB\" ];\n  };\n}\n";
    assert_eq!(module, wanted);
}

#[test]
fn files_are_made_followed_and_removed_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nix/nix.conf");
    let add = || edit(&path, |conf| conf.add(&cache("main"), &substituter("main"))).unwrap();
    let url = &substituter("main").url;
    let remove = || edit(&path, |conf| conf.remove(&cache("main"), url)).unwrap();
    assert!(!remove());
    assert!(add());
    assert!(!add());
    assert!(remove());
    assert!(!path.exists());

    let target = dir.path().join("real.conf");
    fs::write(&target, "x = 1\n").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    symlink(&target, &path).unwrap();
    assert!(add());
    assert!(path.is_symlink());
    assert!(
        fs::read_to_string(&target)
            .unwrap()
            .starts_with("x = 1\n# attic-node")
    );
    assert_eq!(
        fs::metadata(&target).unwrap().permissions().mode() & 0o777,
        0o640
    );
    assert!(remove());
    assert_eq!(fs::read_to_string(&target).unwrap(), "x = 1\n");
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        2,
        "no drafts are left"
    );
}

#[test]
fn a_file_that_is_not_text_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nix.conf");
    fs::write(&path, b"\xff").unwrap();
    assert!(edit(&path, |conf| conf.add(&cache("main"), &substituter("main"))).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"\xff");
}
