//! Static nginx: what a node is measured against.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::http::Request;
use crate::program::{eventually, pid_of};

/// An nginx that serves a directory, stopped when dropped.
#[derive(Debug)]
pub struct Nginx {
    process: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Nginx {
    /// Serves `root` with as many workers as nginx finds processors, tuned as its manual advises
    /// for static files.
    #[track_caller]
    pub fn serve(root: &Path) -> Nginx {
        let dir = TempDir::new().expect("make a directory");
        let address = free_address();
        let config = dir.path().join("nginx.conf");
        fs::write(&config, configuration(dir.path(), address, root)).expect("write nginx.conf");
        let process = Command::new("nginx")
            .arg("-c")
            .arg(&config)
            .arg("-e")
            .arg(dir.path().join("error.log"))
            .stdin(Stdio::null())
            .spawn()
            .expect("start nginx\nhint: testnet/scripts/prepare.sh bench");
        eventually("nginx to answer", Duration::from_secs(10), || {
            Request::get("/").send(address).ok()
        });
        Nginx {
            process,
            address,
            _dir: dir,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// URL of its root.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its master process.
    pub fn pid(&self) -> Pid {
        pid_of(&self.process)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers.
        let _ = kill_process(self.pid(), Signal::TERM);
        let _ = self.process.wait();
    }
}

/// A port that was free a moment ago: nginx cannot say which port 0 became. Benchmarks only.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind a free port");
    listener
        .local_addr()
        .expect("a bound socket has an address")
}

fn configuration(dir: &Path, address: SocketAddr, root: &Path) -> String {
    let (dir, root) = (dir.display(), root.display());
    format!(
        "daemon off; user root; worker_processes auto; pid {dir}/pid;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; sendfile on; tcp_nopush on; tcp_nodelay on;
            keepalive_requests 1000000; keepalive_timeout 75s;
            open_file_cache max=10000 inactive=60s; open_file_cache_valid 60s;
            client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir};
            uwsgi_temp_path {dir}; scgi_temp_path {dir};
            types {{ text/x-nix-narinfo narinfo; text/x-nix-cache-info nix-cache-info; }}
            default_type application/octet-stream;
            server {{ listen {address}; location / {{ root {root}; }} }}
        }}\n"
    )
}
