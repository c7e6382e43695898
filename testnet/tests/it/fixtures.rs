//! The tools of the tests, tested.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::thread;

use testnet::http::Request;
use testnet::nar::Node;
use testnet::proxy::{Fault, FaultProxy};

/// A server that answers every request with 1,000 bytes, once the request's body has come.
fn server() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            thread::spawn(move || {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while !is_whole(&request) {
                    match stream.read(&mut buffer) {
                        Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
                        _ => return,
                    }
                }
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
                let _ = stream.write_all(&[head.as_bytes(), &[7; 1000]].concat());
            });
        }
    });
    address
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    body.len() >= length.map_or(0, |length| length.parse().expect("a length"))
}

#[test]
fn hand_made_nars_are_what_nix_makes() {
    let dir = tempfile::TempDir::new().expect("make a directory");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("make a directory");
    fs::write(root.join("a"), b"contents").expect("write");
    fs::write(root.join("b"), b"").expect("write");
    fs::set_permissions(root.join("b"), PermissionsExt::from_mode(0o755)).expect("chmod");
    symlink("nowhere", root.join("c")).expect("link");
    let executable = Node::File {
        executable: true,
        contents: Vec::new(),
    };
    let members = [
        ("a", Node::file(*b"contents")),
        ("b", executable),
        ("c", Node::Symlink(b"nowhere".to_vec())),
    ];
    let dumped = Command::new("nix-store")
        .arg("--dump")
        .arg(&root)
        .output()
        .expect("nix-store");
    assert_eq!(Node::directory(members).to_nar(), dumped.stdout);
}

#[test]
fn the_proxy_does_to_each_request_what_it_is_told() {
    let faults = [
        Fault::None,
        Fault::Status(503),
        Fault::Close,
        Fault::LoseAnswer,
        Fault::CutAnswer(300),
        Fault::CutRequest(200),
    ];
    let proxy = FaultProxy::new(server(), move |head| faults[head.number]);
    let answers = faults.map(|_| Request::put("/x/y", vec![1; 500]).send(proxy.address()));
    let seen: Vec<_> = answers
        .iter()
        .map(|answer| {
            answer
                .as_ref()
                .ok()
                .map(|a| (a.status, a.body.len(), a.complete))
        })
        .collect();
    let injected = seen[1].map(|(status, _, complete)| (status, complete));
    assert_eq!(injected, Some((503, true)));
    assert_eq!(seen[0], Some((200, 1000, true)));
    assert_eq!(seen[2..4], [None, None]);
    assert_eq!(seen[4], Some((200, 300, false)));
    assert_eq!(seen[5], None);

    let log = proxy.log();
    let passed: Vec<_> = log
        .iter()
        .map(|e| (e.fault, e.request_bytes, e.answer_bytes))
        .collect();
    let wanted = [
        (faults[0], 500, 1000),
        (faults[1], 0, 0),
        (faults[2], 0, 0),
        (faults[3], 500, 0),
        (faults[4], 500, 300),
        (faults[5], 200, 0),
    ];
    assert_eq!(passed, wanted);
}

#[test]
fn the_proxy_refuses_long_bodies_and_holds_requests() {
    let proxy = FaultProxy::limiting(server(), 100);
    let status = |len: usize| {
        let answer = Request::put("/", vec![1; len]).send(proxy.address());
        answer.expect("an answer").status
    };
    assert_eq!((status(100), status(101)), (200, 413));

    let proxy = &FaultProxy::new(server(), |_| Fault::Hold);
    thread::scope(|scope| {
        let held = scope.spawn(|| Request::get("/").send(proxy.address()));
        proxy.wait_for_held_request();
        assert!(!held.is_finished());
        proxy.release();
        assert_eq!(
            held.join().expect("a thread").expect("an answer").status,
            200
        );
    });
}
