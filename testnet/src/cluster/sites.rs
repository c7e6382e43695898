//! Sites behind routers that translate addresses, and one host that all of them reach.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use tempfile::NamedTempFile;

use crate::netns::{Namespace, Place};
use crate::program;

/// Host 0 is in the open at 10.88.0.1; every other one is alone behind a router of its own, at
/// 192.168.1.2 there: the same address in each site, as it is in homes. Needs root and `nft`.
///
/// A router lets out whatever a site sends, under its own address and where it can the same port, and
/// lets in answers to that and nothing else. What it does not let in vanishes without a word.
#[derive(Debug)]
pub struct Sites {
    hosts: Vec<Arc<Namespace>>,
    /// Of host 1 and on.
    routers: Vec<Arc<Namespace>>,
    /// Holds the bridge that the routers and host 0 are plugged into.
    between: Namespace,
}

impl Sites {
    /// No hosts yet.
    #[track_caller]
    pub fn new() -> Sites {
        let between = Namespace::new("between");
        between.ip(&["link", "add", BRIDGE, "type", "bridge", "stp_state", "0"]);
        between.ip(&["link", "set", BRIDGE, "up"]);
        Sites {
            hosts: Vec::new(),
            routers: Vec::new(),
            between,
        }
    }

    /// Adds the host in the open, then one site with each call, and gives its number.
    #[track_caller]
    pub fn add_host(&mut self) -> usize {
        let number = self.hosts.len();
        let host = Arc::new(Namespace::new(&format!("s{number}")));
        if number == 0 {
            self.plug_in(&host, "eth0", outer_part(0));
        } else {
            let router = self.add_router(number);
            let inside = ["type", "veth", "peer", "name", "eth0", "netns", host.name()];
            router.ip(&[&["link", "add", "lan"], &inside[..]].concat());
            router.ip(&["addr", "add", "192.168.1.1/24", "dev", "lan"]);
            router.ip(&["link", "set", "lan", "up"]);
            host.ip(&["addr", "add", "192.168.1.2/24", "dev", "eth0"]);
            host.ip(&["link", "set", "eth0", "up"]);
            host.ip(&["route", "add", "default", "via", "192.168.1.1"]);
            self.routers.push(router);
        }
        self.hosts.push(host);
        number
    }

    /// Where programs of a host run.
    pub fn place(&self, host: usize) -> Place {
        Place::inside(&self.hosts[host])
    }

    /// Has the router of a host let the port of the mesh in, and hand it on to the host.
    #[track_caller]
    pub fn forward(&self, host: usize) {
        set_rules(&self.routers[host - 1], FORWARDING);
    }

    /// Address of a host as the others see it.
    pub fn outer_address(&self, host: usize) -> IpAddr {
        Ipv4Addr::new(10, 88, 0, outer_part(host)).into()
    }

    /// A router that is connected outwards.
    #[track_caller]
    fn add_router(&self, number: usize) -> Arc<Namespace> {
        let router = Arc::new(Namespace::new(&format!("r{number}")));
        self.plug_in(&router, "wan", outer_part(number));
        let forward = || fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        let entered = Place::inside(&router).enter(forward);
        entered.expect("let the router forward");
        set_rules(&router, RULES);
        router
    }

    #[track_caller]
    fn plug_in(&self, namespace: &Namespace, interface: &str, part: u8) {
        let port = format!("port{part}");
        let between = self.between.name();
        namespace.ip(&[
            "link", "add", interface, "type", "veth", "peer", "name", &port, "netns", between,
        ]);
        let address = format!("10.88.0.{part}/24");
        namespace.ip(&["addr", "add", &address, "dev", interface]);
        namespace.ip(&["link", "set", interface, "up"]);
        self.between
            .ip(&["link", "set", &port, "master", BRIDGE, "up"]);
    }
}

fn outer_part(host: usize) -> u8 {
    match host {
        0 => 1,
        site => u8::try_from(site + 10).expect("few sites"),
    }
}

#[track_caller]
fn set_rules(router: &Arc<Namespace>, rules: &str) {
    let mut file = NamedTempFile::new().expect("make a file");
    file.write_all(rules.as_bytes()).expect("write rules");
    let mut nft = Place::inside(router).command("nft");
    program::run(nft.arg("-f").arg(file.path())).succeeds();
}

impl Default for Sites {
    fn default() -> Sites {
        Sites::new()
    }
}

const BRIDGE: &str = "between";

const RULES: &str = "
table ip site {
    chain leaving {
        type nat hook postrouting priority 100
        oifname \"wan\" masquerade
    }
    chain to_the_router {
        type filter hook input priority 0; policy drop
        iifname != \"wan\" accept
        ct state established,related accept
    }
    chain through_it {
        type filter hook forward priority 0; policy drop
        iifname != \"wan\" accept
        ct state established,related accept
    }
}
";

const FORWARDING: &str = "
table ip site {
    chain arriving {
        type nat hook prerouting priority -100
        iifname \"wan\" tcp dport 7746 dnat to 192.168.1.2
    }
    chain through_it {
        ct status dnat accept
    }
}
";
