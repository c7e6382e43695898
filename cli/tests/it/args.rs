//! The command line: what is taken, what is refused.

use attic_node_cli::args::{CacheVerb, Cli, PinVerb, Verb};
use clap::{CommandFactory, Parser};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("attic-node").chain(line.split_whitespace()))
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn lines_that_are_taken() {
    for line in [
        "up",
        "up --listen 127.0.0.1:0 --data-dir /x",
        "push main /nix/store/x",
        "push main --stdin",
        "push main a b --stdin --no-closure -j 3 --dry-run --json --compress-threads 1",
        "push main --ignore-upstream-cache-filter --store /root --no-logs a",
        "use main",
        "use main --print",
        "use main --nixos",
        "unuse main",
        "cache create x-1_+ --public --priority 30",
        "cache list --json",
        "cache create x --json",
        "cache configure x --priority 1 --json",
        "cache destroy x --no-confirm --json",
        "pin add main release psz32zc269jz40cx0spbf4rz4k0q39dj-x --json",
        "pin rm main release --json",
        "key show main --json",
        "key import main - --json",
        "key rotate main --no-confirm --json",
        "leave --no-confirm --delete-cluster-key",
        "cache info main",
        "cache configure main --private --cache-everything --skip-signed-by=",
        "cache configure main --cache-everything=false",
        "cache destroy main --no-confirm",
        "ls main",
        "ls main --long psz32zc269jz40cx0spbf4rz4k0q39dj --closure",
        "du",
        "du main --json",
        "rm main /nix/store/psz32zc269jz40cx0spbf4rz4k0q39dj-x/bin --closure --dry-run --force",
        "pin add main release psz32zc269jz40cx0spbf4rz4k0q39dj-x --keep 3",
        "pin list main",
        "pin rm main release",
        "gc --dry-run --full --json",
        "verify --repair --rebuild-index",
        "status --json",
        "cluster init --name office",
        "cluster info --json",
        "invite",
        "invite --role keeper --read a* --read b --write c --expires 12h --uses 5 --json",
        "invite --open",
        "join attic1x",
        "join -",
        "cache destroy main --yes",
        "cluster init --json",
        "join attic1x --json",
        "leave --no-confirm --json",
        "leave --yes",
        "peers --json",
        "revoke laptop --no-confirm --json",
        "revoke laptop --yes",
        "key show main",
        "key import main -",
        "key rotate main",
        "key rotate main --no-confirm",
        "config show --defaults",
        "config check --config /x",
        "completions fish",
        "--endpoint http://127.0.0.1:1 status",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn lines_that_are_refused() {
    for line in [
        "",
        "pus main x",
        "push",
        "push main",
        "push .hidden x",
        "push main x --jobs 0",
        "push main x --jobs many",
        "use main --print --nixos",
        "cache create",
        "cache create bad/name",
        "cache configure main --public --private",
        "cache configure main --skip-signed-by nonsense",
        "cache configure main --store-dir relative",
        "ls main --closure",
        "ls main x",
        "rm main",
        "pin add main ../../x psz32zc269jz40cx0spbf4rz4k0q39dj-x",
        "pin add main . psz32zc269jz40cx0spbf4rz4k0q39dj-x",
        "pin add main x psz32zc269jz40cx0spbf4rz4k0q39dj-x --keep 0",
        "completions cmd",
        "cluster",
        "invite --role owner",
        "invite --expires soon",
        "invite --expires 0s",
        "invite --expires 10ms",
        "invite --uses 0",
        "invite --uses 1 --open",
        "join",
        "revoke",
    ] {
        let error = parse(line)
            .err()
            .unwrap_or_else(|| panic!("{line} was taken"));
        assert!(error.exit_code() == 2, "{line}");
    }
}

#[test]
fn a_number_of_jobs_is_explained() {
    for line in [
        "push main x --jobs 0",
        "push main x --jobs many",
        "push main x --compress-threads 0",
    ] {
        let said = parse(line).expect_err("refused").to_string();
        assert!(said.contains("wanted a whole number, 1 or more"), "{said}");
    }
}

#[test]
fn settings_that_are_not_given_are_absent() {
    let Verb::Cache(CacheVerb::Configure(args)) =
        parse("cache configure main --priority 5").unwrap().verb
    else {
        panic!("another verb")
    };
    let settings = args.settings;
    assert_eq!(settings.priority, Some(5));
    assert!(!settings.public && !settings.private && settings.store_dir.is_none());
    assert!(settings.skip_signed_by.is_empty() && settings.cache_everything.is_none());
}

#[test]
fn paths_are_named_in_full_by_base_name_or_by_hash() {
    let hash = "psz32zc269jz40cx0spbf4rz4k0q39dj";
    let base_name = format!("{hash}-libgcc");
    let check = |text: &str, whole: bool| {
        let line = format!("pin add main x {text}");
        let Verb::Pin(PinVerb::Add { path, .. }) = parse(&line).unwrap().verb else {
            panic!("another verb")
        };
        assert_eq!(path.hash.to_string(), hash);
        assert_eq!(
            path.path.map(|path| path.to_string()),
            whole.then(|| base_name.clone())
        );
    };
    check(hash, false);
    check(&base_name, true);
    check(&format!("/nix/store/{base_name}"), true);
    check(&format!("/nix/store/{base_name}/lib/a-b"), true);
    check(&format!("/gnu/store/{base_name}/"), true);
}
