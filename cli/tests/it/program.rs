//! The program from outside: exit codes, streams, hints. No node is running.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A home of its own, so that nothing of the user's is read or written.
struct Home(TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attic-node"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("HOME", self.path())
            .env("PATH", path);
        // Nobody listens on the discard port of a loopback address.
        command.env("ATTIC_NODE_HTTP_LISTEN", "127.0.0.1:9");
        command.args(line.split_whitespace()).stdin(Stdio::null());
        command
    }

    /// Runs, checks the exit code and what is said on stderr, and gives stdout.
    fn check(&self, line: &str, code: i32, said: &str) -> String {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(line).output().unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(code), "{line}: {stderr}");
        assert!(
            stderr.contains(said),
            "{line} should say {said:?}: {stderr}"
        );
        assert!(
            !stderr.contains('\x1b'),
            "no colours without a terminal: {stderr}"
        );
        String::from_utf8(stdout).unwrap()
    }
}

#[test]
fn success_is_0() {
    let home = Home::new();
    assert!(
        home.check("--help", 0, "")
            .contains("Exit codes: 0 all done")
    );
    assert!(home.check("--version", 0, "").starts_with("attic-node "));
    assert!(
        home.check("config show --defaults", 0, "")
            .contains("listen = \"127.0.0.1:7745\"")
    );
    assert!(
        home.check("config show", 0, "")
            .contains("listen = \"127.0.0.1:9\"")
    );
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(
            home.check(&format!("completions {shell}"), 0, "")
                .contains("attic-node")
        );
    }
    home.check("unuse main", 0, "\"main\" was not in use");
}

#[test]
fn wrong_usage_is_2() {
    let home = Home::new();
    home.check("", 2, "Usage: attic-node");
    home.check("pushh main x", 2, "'push'");
    home.check("push main", 2, "--stdin");
    home.check("status --endpoint https://x", 2, "https is not supported");
    home.check("status --endpoint nonsense", 2, "http://host:port");
    home.check("cache configure main", 2, "nothing to change");
    home.check(
        "pin add main x psz32zc269jz40cx0spbf4rz4k0q39dj",
        2,
        "name the path in full",
    );
}

/// G16: unknown keys are refused with a suggestion, and the exit code says so.
#[test]
fn g16_config_check_refuses_unknown_keys_with_a_suggestion() {
    let home = Home::new();
    home.check("config check", 0, "the defaults are valid");
    let file = home.path().join("config.toml");
    fs::write(&file, "[http]\nlisten = '127.0.0.1:1'\n").unwrap();
    let check = format!("config check --config {}", file.display());
    home.check(&check, 0, "is valid");
    fs::write(&file, "[http]\nlisen = '127.0.0.1:1'\n").unwrap();
    home.check(&check, 2, "did you mean `http.listen`?");
    home.check(
        &format!("status --config {}", file.display()),
        2,
        "config.toml:2",
    );
    fs::write(&file, "[log]\nlevel = 'inof'\n").unwrap();
    home.check(&check, 2, "config.toml:2: `log.level` is `inof`, wanted");
    home.check(
        &format!("up --config {}", file.display()),
        2,
        "`log.level` is `inof`",
    );
    let cap = "[store]\nnar-size-max = '1.5 GiB'\nsize-cap = 0\n";
    fs::write(&file, cap).unwrap();
    home.check(
        &check,
        2,
        "config.toml:3: `store.size-cap` is `0`, wanted 1 MiB or more",
    );
    home.check("config check --config /nonexistent", 2, "/nonexistent");
}

#[test]
fn failure_is_1_with_a_hint() {
    let home = Home::new();
    let hint = "hint: start a node with: attic-node up";
    for verb in [
        "status",
        "cache list",
        "ls main",
        "gc",
        "use main",
        "key show main",
        "peers",
        "invite",
        "leave",
    ] {
        assert_eq!(home.check(verb, 1, hint), "", "stdout is data");
    }
    home.check("push main /nonexistent/path", 1, "read /nonexistent/path");
    home.check("push main /etc/passwd", 1, "not in /nix/store");
    home.check("key import main /nonexistent", 1, "read key /nonexistent");
    home.check("verify", 1, "lock");
    home.check(
        "verify",
        1,
        "hint: start a node with: attic-node up, or name its",
    );
}

/// Where no node runs, `join` starts one, which does not outlive a ticket that lets nobody in.
#[test]
fn join_starts_no_node_for_what_is_no_ticket() {
    let home = Home::new();
    let mut command = home.command("join attic1nonsense");
    command.env("ATTIC_NODE_HTTP_LISTEN", "127.0.0.1:0");
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("Serving"), "{stderr}");
    assert!(stderr.contains("error: "), "{stderr}");
    assert!(stderr.contains("hint: copy the whole ticket"), "{stderr}");
    let data = home.path().join(".local/share/attic-node");
    assert!(!data.exists(), "nothing was made");
}

#[test]
fn a_token_that_others_can_read_is_refused() {
    let home = Home::new();
    let token = home.path().join("admin-token");
    fs::write(&token, "secret\n").unwrap();
    fs::set_permissions(&token, Permissions::from_mode(0o644)).unwrap();
    let line = format!("status --data-dir {}", home.path().display());
    home.check(&line, 1, "hint: chmod 600");
    fs::set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    home.check(&line, 1, "hint: start a node");
}

/// A data directory with a token in it.
fn data_dir_with_token() -> Home {
    let home = Home::new();
    let token = home.path().join("admin-token");
    fs::write(&token, "secret\n").unwrap();
    fs::set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    home
}

/// A killed node leaves its address behind, and anybody may listen at that port or at the default
/// one. The token was sent there.
#[test]
fn the_token_is_sent_to_nobody_while_no_node_runs() {
    let home = data_dir_with_token();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    let address = stranger.local_addr().unwrap().to_string();
    let check = |said: &str| {
        for verb in ["status", "cache list", "gc", "key show main"] {
            let line = format!("{verb} --data-dir {}", home.path().display());
            let output = home
                .command(&line)
                .env("ATTIC_NODE_HTTP_LISTEN", &address)
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{line}: {stderr}");
            assert!(stderr.contains(said), "{line}: {stderr}");
            let accepted = stranger.accept().map(|_| ()).map_err(|e| e.kind());
            assert_eq!(accepted, Err(ErrorKind::WouldBlock), "{line} connected");
        }
    };
    let not_running = format!("no node runs in {}", home.path().display());
    check(&not_running);
    check("hint: start a node with: attic-node up");
    let lock = File::create(home.path().join("lock")).unwrap();
    check(&not_running);
    lock.lock().unwrap();
    check("try again when it is done");
    lock.unlock().unwrap();
    fs::write(home.path().join("address"), &address).unwrap();
    check(&not_running);
}

/// The other half: the owner of the lock gets it, and so does an endpoint that is named.
#[test]
fn the_token_is_sent_to_the_node_and_to_a_named_endpoint() {
    let home = data_dir_with_token();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let received = || {
        let mut head = vec![0; 4096];
        let (mut stream, _) = listener.accept().unwrap();
        let len = stream.read(&mut head).unwrap();
        String::from_utf8_lossy(&head[..len]).to_ascii_lowercase()
    };
    let check = |line: String| {
        let mut command = home.command(&line);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let head = received();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(head.contains("authorization: bearer secret"), "{head}");
    };
    let dir = home.path().display();
    check(format!(
        "status --data-dir {dir} --endpoint http://{address}"
    ));
    let lock = File::create(home.path().join("lock")).unwrap();
    lock.lock().unwrap();
    fs::write(home.path().join("address"), &address).unwrap();
    check(format!("status --data-dir {dir}"));
}

/// A node that takes any free port is at another one when it was started again. Who was talking to
/// it was told that what uses the directory does not serve there.
#[test]
fn a_node_that_was_started_at_another_port_is_said_to_be_there() {
    let home = data_dir_with_token();
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    second.set_nonblocking(true).unwrap();
    let [before, now] = [&first, &second].map(|at| at.local_addr().unwrap().to_string());
    let lock = File::create(home.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let address = home.path().join("address");
    fs::write(&address, &before).unwrap();
    let mut command = home.command(&format!("status --data-dir {}", home.path().display()));
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    // It is there for the first request, and gone before it answers.
    let (stream, _) = first.accept().unwrap();
    fs::write(&address, &now).unwrap();
    drop(stream);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let said = format!("error: the node serves at {now}, and no longer at {before}\nhint: ");
    assert!(stderr.contains(&said), "{stderr}");
    let accepted = second.accept().map(|_| ()).map_err(|error| error.kind());
    assert_eq!(
        accepted,
        Err(ErrorKind::WouldBlock),
        "nothing was sent there"
    );
}

#[test]
fn pushing_nothing_is_success() {
    let home = Home::new();
    home.check("push main --stdin", 0, "🤷 Nothing selected.");
}

/// A script that reads events finds those of any push: it used to find none.
#[test]
fn pushing_nothing_is_told_in_json_as_any_push_is() {
    let home = Home::new();
    let plan = "{\"event\":\"plan\",\"cache\":\"main\",\"send\":0,\"cached\":0,\"upstream\":0,\
                \"too_large\":0}\n";
    let done = "{\"event\":\"done\",\"pushed\":0,\"failed\":0,\"cached\":0,\"upstream\":0}\n";
    let rows = [
        ("push main --stdin --json", format!("{plan}{done}")),
        ("push main --stdin --json --dry-run", plan.to_owned()),
    ];
    for (line, events) in rows {
        let stdout = home.check(line, 0, "");
        let parse = |text: &str| -> Vec<serde_json::Value> {
            let lines = text.lines();
            lines
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        };
        assert_eq!(parse(&stdout), parse(&events), "{line}");
    }
}

/// `attic-node … | head` must not complain.
#[test]
fn a_closed_pipe_is_success() {
    let home = Home::new();
    let mut child = home
        .command("config show --defaults")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}
