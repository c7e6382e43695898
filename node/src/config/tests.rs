//! What a user may write, and what is answered to mistakes.

use std::fs;

use super::keys::KEYS;
use super::*;

type Env<'a> = &'a [(&'a str, &'a str)];

fn load(file: &str, env: Env) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    fs::write(&path, file).unwrap();
    let env = env.iter().copied().chain([("HOME", "/home/somebody")]);
    let env = env
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    Config::load(&Sources {
        file: Some(path),
        env,
        flags: Vec::new(),
    })
}

/// The message without the temporary directory's name.
fn message(file: &str, env: Env) -> String {
    let text = load(file, env).unwrap_err().to_string();
    text.rsplit_once('/')
        .filter(|(dir, _)| dir.contains("tmp"))
        .map_or(text.clone(), |(_, rest)| rest.to_owned())
}

#[test]
fn defaults_are_valid_and_their_text_is_a_configuration() {
    let defaults = load("", &[]).unwrap();
    assert_eq!(defaults, load(&defaults_text(), &[]).unwrap());
    assert_eq!(defaults.http.listen.to_string(), "127.0.0.1:7745");
    assert_eq!(
        defaults.data_dir,
        Path::new("/home/somebody/.local/share/attic-node")
    );
    assert_eq!(defaults.push.body_max, 32 << 20);
    assert_eq!(defaults.store.upload_grace, Duration::from_secs(86_400));
    assert_eq!(defaults.store.size_cap, None);
}

#[test]
fn every_key_is_in_the_defaults_text_and_in_the_environment() {
    let text = defaults_text();
    for key in KEYS {
        let name = key.full_name();
        assert!(text.contains(&format!("{} = ", key.name)), "{name}");
        assert!(text.contains(&key.env_name()), "{name}");
        let garbage = "\u{1}";
        let config = load("", &[(key.env_name().as_str(), garbage)]);
        let takes_any_text = ["data-dir", "http.unix-socket"];
        let taken = config.is_ok_and(|config| format!("{config:?}").contains("\\u{1}"));
        assert_eq!(
            taken,
            takes_any_text.contains(&name.as_str()),
            "{name} is read"
        );
    }
}

/// A misspelt level was taken for the name of a module: the log stayed empty.
#[test]
fn a_log_level_that_is_none_is_refused() {
    let check = |level: &str, fits: bool| {
        let loaded = load("", &[("ATTIC_NODE_LOG_LEVEL", level)]);
        assert_eq!(loaded.is_ok(), fits, "{level:?}: {loaded:?}");
    };
    for level in [
        "off",
        "error",
        "INFO",
        "trace",
        "info,attic_store=debug",
        "warn, attic_node_core::http=trace",
    ] {
        check(level, true);
    }
    for level in [
        "loud",
        "inof",
        "",
        "info,",
        "info,inof",
        "attic_store=loud",
        "=info",
        "attic_store",
        "info debug",
    ] {
        check(level, false);
    }
    assert!(
        message("[log]\nlevel = 'inof'\n", &[])
            .starts_with("config.toml:2: `log.level` is `inof`, wanted off, error, warn,")
    );
}

#[test]
fn later_layers_win() {
    let file = "[http]\nlisten = '127.0.0.1:1'\nconnections-max = 7\n";
    let env = [
        ("ATTIC_NODE_HTTP_LISTEN", "127.0.0.1:2"),
        ("ATTIC_NODE_STORE_SIZE_CAP", "1 GiB"),
    ];
    let config = load(file, &env).unwrap();
    assert_eq!(config.http.listen.port(), 2);
    assert_eq!(config.http.connections_max, 7);
    assert_eq!(config.store.size_cap, Some(1 << 30));
    let mut sources = Sources::only(vec![("http.listen", "[::1]:3".into())]);
    sources.env = [("XDG_DATA_HOME", "/data"), env[0]]
        .map(|(n, v)| (n.into(), v.into()))
        .into();
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.http.listen.to_string(), "[::1]:3");
    assert_eq!(config.data_dir, Path::new("/data/attic-node"));
}

/// G16: unknown keys are refused with a suggestion.
#[test]
fn g16_unknown_keys_are_refused_with_file_line_and_suggestion() {
    let rows: [(&str, Env, &str); 13] = [
        ("[x]\n", &[], "config.toml:1: unknown key `x`"),
        (
            "[http]\n\nlisten-on = 'x'\n",
            &[],
            "config.toml:3: unknown key `http.listen-on`, did you mean `http.listen`?",
        ),
        (
            "[storage]\n",
            &[],
            "config.toml:1: unknown key `storage`, did you mean `store`?",
        ),
        (
            "http.lisen = 1",
            &[],
            "config.toml:1: unknown key `http.lisen`, did you mean `http.listen`?",
        ),
        ("colour = true", &[], "config.toml:1: unknown key `colour`"),
        (
            "",
            &[("ATTIC_NODE_HTTP_LISTN", "x")],
            "ATTIC_NODE_HTTP_LISTN: unknown key `ATTIC_NODE_HTTP_LISTN`, did you mean \
             `ATTIC_NODE_HTTP_LISTEN`?",
        ),
        (
            "",
            &[("ATTIC_NODE_SIZE_CAP", "1 GiB")],
            "ATTIC_NODE_SIZE_CAP: unknown key `ATTIC_NODE_SIZE_CAP`, did you mean \
             `ATTIC_NODE_STORE_SIZE_CAP`?",
        ),
        (
            "",
            &[("ATTIC_NODE_LISTEN", "127.0.0.1:1")],
            "ATTIC_NODE_LISTEN: unknown key `ATTIC_NODE_LISTEN`, did you mean \
             `ATTIC_NODE_HTTP_LISTEN`?",
        ),
        (
            "[push]\nbody-max = '1 GB or so'",
            &[],
            "config.toml:2: `push.body-max` is `1 GB or so`, wanted a size such as \"500 MB\", \
             \"1.5 GiB\" or \"1 TiB\"",
        ),
        (
            "[store]\n\nsize-cap = 0\n",
            &[],
            "config.toml:3: `store.size-cap` is `0`, wanted 1 MiB or more; leave it out for \
             no limit",
        ),
        (
            "",
            &[("ATTIC_NODE_GC_INTERVAL", "0s")],
            "ATTIC_NODE_GC_INTERVAL: `gc.interval` is `0s`, wanted more than zero",
        ),
        (
            "[http]\nallowed-hosts = ['cache.lan', 'a:1']",
            &[],
            "config.toml:2: `http.allowed-hosts` is `a:1`, wanted a host name without a port",
        ),
        (
            "[http\n",
            &[],
            "config.toml:1: unclosed table, expected `]`",
        ),
    ];
    for (file, env, wanted) in rows {
        assert_eq!(message(file, env), wanted, "{file}");
    }
}

/// `config check` said that a file is valid whose wrong value a variable replaced.
#[test]
fn g16_all_faults_are_found_also_in_what_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    let file = "[http]\nlisten = 'here'\nconnections-max = 0\n[gc]\ncolour = 1\ninterval = []\n";
    fs::write(&path, file).unwrap();
    let mut sources = Sources {
        file: Some(path),
        ..Sources::default()
    };
    for (name, value) in [
        ("HOME", "/home/somebody"),
        ("ATTIC_NODE_HTTP_LISTEN", "127.0.0.1:2"),
        ("ATTIC_NODE_PUSH_BODY_MAX", "much"),
        ("ATTIC_NODE_GC_INTERVAL", "1h"),
    ] {
        sources.env.insert(name.into(), value.into());
    }
    let faults = Layers::faults(&sources);
    let said: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let wanted = [
        "ATTIC_NODE_PUSH_BODY_MAX: `push.body-max` is `much`",
        "config.toml:2: `http.listen` is `here`",
        "config.toml:3: `http.connections-max` is `0`",
        "config.toml:5: unknown key `gc.colour`",
        "config.toml:6: `gc.interval` is `[]`",
    ];
    assert_eq!(said.len(), wanted.len(), "{said:#?}");
    for (said, wanted) in said.iter().zip(wanted) {
        assert!(said.contains(wanted), "{said}, wanted {wanted}");
    }
    assert!(Layers::faults(&Sources::only(Vec::new())).is_empty());
}

/// G16: what takes any text takes it in quotes only.
#[test]
fn g16_a_number_is_no_name_and_no_path() {
    for (text, key) in [
        ("data-dir = 3", "data-dir"),
        ("[http]\nunix-socket = true", "unix-socket"),
        ("[mesh]\nname = 3", "name"),
        ("[s3]\nbucket = 3", "bucket"),
    ] {
        let said = load(text, &[]).unwrap_err().to_string();
        assert!(
            said.contains(key) && said.contains("wanted text in quotes"),
            "{said}"
        );
    }
    load("[http]\nconnections-max = 7\n[mesh]\nmdns = false", &[]).unwrap();
}

#[test]
fn variables_of_others_are_left_alone() {
    for name in [
        "ATTIC_NODE_CONFIG",
        "ATTIC_NODE_ENDPOINT",
        "ATTIC_NODE_BIN",
        "ATTIC_NODE_CORPUS",
        "ATTIC_NODE_TEST_SEED",
        "ATTIC_NODE_TEST_LARGE",
        "ATTIC_NODE_BENCH_CHUNKS",
        "ATTIC_NODE_WRITE_GOLDEN",
        "ATTIC_NODE_HTTP",
        "ATTIC_NODE_ISTEN",
        "ATTIC_NODE_",
    ] {
        let loaded = load("", &[(name, "x")]);
        assert!(loaded.is_ok(), "{name}: {loaded:?}");
    }
}

#[test]
fn a_named_file_must_exist_and_a_searched_one_need_not() {
    let named = Sources {
        file: Some("/nonexistent/x.toml".into()),
        ..Sources::default()
    };
    assert!(matches!(
        Config::load(&named),
        Err(ConfigError::Read { .. })
    ));
    let mut searched = Sources::default();
    searched.env.insert("HOME".into(), "/nonexistent".into());
    assert!(Layers::read(&searched).is_ok());
}

#[test]
fn show_says_where_a_value_comes_from() {
    let mut sources = Sources::only(vec![("store.size-cap", "2 GiB".into())]);
    sources.env.insert(
        "ATTIC_NODE_HTTP_ALLOWED_HOSTS".into(),
        "a.lan, b.lan".into(),
    );
    sources.env.insert("HOME".into(), "/nonexistent".into());
    let text = Layers::read(&sources).unwrap().show();
    assert!(text.contains("# From: command line (store.size-cap)\nsize-cap = \"2 GiB\"\n"));
    let hosts = "# From: ATTIC_NODE_HTTP_ALLOWED_HOSTS\nallowed-hosts = [\"a.lan\", \"b.lan\"]\n";
    assert!(text.contains(hosts), "{text}");
}

#[test]
fn relaying_that_cannot_work_is_refused() {
    let peer = "12D3KooWRYyfRQXYSSu1fyfQ8xLBbbWkBgBGx1y8Ao3nBqyDsSKh";
    let relay = format!("mesh.relays = [\"/ip4/192.0.2.7/tcp/7746/p2p/{peer}\"]\n");
    let punching = "mesh.hole-punching = true\n";
    let fine = [
        relay.clone(),
        format!("{relay}{punching}"),
        punching.to_owned(),
    ];
    for text in fine {
        assert!(load(&text, &[]).is_ok(), "{text}");
    }
    let client_off = format!("{relay}mesh.relay-client = false\n");
    let rows = [
        (client_off.as_str(), "mesh.relay-client"),
        ("mesh.deadline = \"10h\"", "mesh.deadline"),
        ("mesh.upload-rate-max = 0", "mesh.upload-rate-max"),
    ];
    for (text, key) in rows {
        let error = load(text, &[]).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

const KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

#[test]
fn upstreams_are_tables_with_a_url_and_keys() {
    let text = format!(
        "[[upstream]]\nurl = 'https://cache.nixos.org'\npublic-keys = ['{KEY}']\n\
         [[upstream]]\nurl = 'http://a.lan/b'\npublic-keys = '{KEY}'\npriority = 7\n\
         caches = ['main']\nconnect-timeout = '1s'\ntimeout = '2s'\n"
    );
    let upstreams = load(&text, &[]).unwrap().upstreams;
    assert_eq!(upstreams.len(), 2);
    assert_eq!(upstreams[0].url.as_str(), "https://cache.nixos.org/");
    assert_eq!(upstreams[0].public_keys[0].to_string(), KEY);
    assert_eq!(upstreams[0].priority, None);
    assert!(upstreams[0].caches.is_empty());
    assert_eq!(upstreams[0].timeout, Duration::from_secs(15));
    assert_eq!(upstreams[1].url.as_str(), "http://a.lan/b/");
    assert_eq!(upstreams[1].priority, Some(7));
    assert_eq!(upstreams[1].caches[0].as_str(), "main");
    assert_eq!(upstreams[1].connect_timeout, Duration::from_secs(1));
    assert!(load("", &[]).unwrap().upstreams.is_empty());
}

/// G16: so are mistakes in upstreams.
#[test]
fn g16_mistakes_in_upstreams_are_told_with_file_and_line() {
    let url = "url = 'https://h'\n";
    let keys = format!("public-keys = ['{KEY}']\n");
    let many: String = (0..17)
        .map(|number| format!("[[upstream]]\nurl = 'https://h{number}'\n{keys}"))
        .collect();
    let rows: [(String, &str); 12] = [
        (
            format!("[[upstream]]\n{url}public-key = ['{KEY}']\n"),
            "config.toml:3: unknown key `upstream.public-key`, did you mean `upstream.public-keys`?",
        ),
        (
            format!("[[upstreams]]\n{url}"),
            "config.toml:1: unknown key `upstreams`, did you mean `upstream`?",
        ),
        (
            format!("[upstream]\n{url}"),
            "config.toml:1: `upstream` is `table`, wanted tables that begin with [[upstream]]",
        ),
        (
            "upstream = ['https://h']".to_owned(),
            "config.toml:1: `upstream` is `string`, wanted tables that begin with [[upstream]]",
        ),
        (
            format!("\n[[upstream]]\n{url}"),
            "config.toml:2: `upstream.public-keys` is `unset`, wanted at least one key",
        ),
        (
            format!("[[upstream]]\n{keys}"),
            "config.toml:1: `upstream.url` is `unset`, wanted the URL of a binary cache",
        ),
        (
            format!("[[upstream]]\n{url}public-keys = ['x']\n"),
            "config.toml:3: `upstream.public-keys` is `x`, wanted a key, \"name:base64\"",
        ),
        (
            format!("[[upstream]]\nurl = 'ftp://h'\n{keys}"),
            "config.toml:2: `upstream.url` is `ftp://h`, wanted the URL of a binary cache",
        ),
        (
            format!("[[upstream]]\n{url}{keys}timeout = '0s'\n"),
            "config.toml:4: `upstream.timeout` is `0s`, wanted more than zero",
        ),
        (
            format!("[[upstream]]\n{url}{keys}caches = ['no name']\n"),
            "config.toml:4: `upstream.caches` is `no name`, wanted the name of a cache",
        ),
        (
            format!("[[upstream]]\n{url}{keys}[[upstream]]\n{url}{keys}"),
            "config.toml:4: `upstream.url` is `https://h/`, wanted an upstream that is not there yet",
        ),
        (many, "wanted no more than 16 upstreams"),
    ];
    for (text, wanted) in rows {
        let said = load(&text, &[]).unwrap_err().to_string();
        assert!(said.contains(wanted), "{said}, wanted {wanted}");
    }
}

#[test]
fn shown_upstreams_can_be_read_again() {
    let text = format!("[[upstream]]\nurl = 'https://h/a'\npublic-keys = ['{KEY}']\n");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    fs::write(&path, &text).unwrap();
    let sources = Sources {
        file: Some(path),
        ..Sources::only(vec![("data-dir", "/data".into())])
    };
    let shown = Layers::read(&sources).unwrap().show();
    assert!(shown.contains("config.toml:1\n[[upstream]]"), "{shown}");
    assert_eq!(
        load(&shown, &[]).unwrap().upstreams,
        load(&text, &[]).unwrap().upstreams
    );
}
