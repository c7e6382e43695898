//! Hosts on one switch, which can be unplugged, parted and slowed down.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use crate::netns::{Namespace, Place, remove_leftovers};

/// A switch and its hosts: a namespace each, joined to nothing else. Needs root.
///
/// No packet leaves it, so every network uses the same addresses: host `i`, counted from 0, has
/// 10.77.0.`i+1` and fd77::`i+1` on its interface `eth0`, and no route to anywhere else.
#[derive(Debug)]
pub struct Network {
    hosts: Vec<Arc<Namespace>>,
    /// Holds the bridges and, for each host, the other end of its cable, `port<i>`.
    switch: Namespace,
    bridges: usize,
}

impl Network {
    /// A switch without hosts. Removes what dead processes left behind first.
    #[track_caller]
    pub fn new() -> Network {
        remove_leftovers();
        let switch = Namespace::new("switch");
        let mut network = Network {
            hosts: Vec::new(),
            switch,
            bridges: 0,
        };
        network.ensure_bridges(1);
        network
    }

    /// Plugs in one more host and gives its number.
    #[track_caller]
    pub fn add_host(&mut self) -> usize {
        let number = self.hosts.len();
        assert!(
            number < HOSTS_MAX,
            "a network has at most {HOSTS_MAX} hosts"
        );
        let host = Arc::new(Namespace::new(&format!("n{number}")));
        if has_ipv6() {
            // Otherwise every plug-in takes a second in which link-local addresses do not work.
            let no_detection = || fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
            Place::inside(&host)
                .enter(no_detection)
                .expect("switch address detection off");
        }
        let port = port(number);
        let switch = self.switch.name();
        host.ip(&[
            "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", switch,
        ]);
        self.switch
            .ip(&["link", "set", &port, "master", COMMON, "up"]);
        self.hosts.push(host);
        for address in self.addresses(number) {
            let length = if address.is_ipv4() { 24 } else { 64 };
            let address = format!("{address}/{length}");
            self.hosts[number].ip(&["addr", "add", &address, "dev", "eth0"]);
        }
        self.hosts[number].ip(&["link", "set", "eth0", "up"]);
        number
    }

    /// How many hosts there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there are no hosts.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Where programs of a host run.
    pub fn place(&self, host: usize) -> Place {
        Place::inside(&self.hosts[host])
    }

    /// Takes the addresses of one family away from a host.
    #[track_caller]
    pub fn take_addresses(&self, host: usize, family: Family) {
        let family = match family {
            Family::Four => "-4",
            Family::Six => "-6",
        };
        self.hosts[host].ip(&[family, "addr", "flush", "dev", "eth0"]);
    }

    /// Gives a host other addresses than it has: 10.77.0.`i+101` and fd77::`i+101`.
    #[track_caller]
    pub fn move_host(&self, host: usize) {
        let part = host_part(host + 100);
        let fresh = [format!("10.77.0.{part}/24"), format!("fd77::{part:x}/64")];
        for (address, fresh) in self.addresses(host).iter().zip(fresh) {
            let length = if address.is_ipv4() { 24 } else { 64 };
            let gone = format!("{address}/{length}");
            self.hosts[host].ip(&["addr", "del", &gone, "dev", "eth0"]);
            self.hosts[host].ip(&["addr", "add", &fresh, "dev", "eth0"]);
        }
    }

    /// IPv4 address of a host.
    pub fn address(&self, host: usize) -> IpAddr {
        Ipv4Addr::new(10, 77, 0, host_part(host)).into()
    }

    /// All addresses of a host: IPv4 and, where the machine has it, IPv6.
    pub fn addresses(&self, host: usize) -> Vec<IpAddr> {
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host_part(host).into());
        let v6 = has_ipv6().then_some(v6.into());
        [self.address(host)].into_iter().chain(v6).collect()
    }

    /// Pulls the cable of a host: it sees that its link is down.
    #[track_caller]
    pub fn cut(&self, host: usize) {
        self.switch.ip(&["link", "set", &port(host), "down"]);
    }

    /// Plugs a host in again, with everybody whom no [`partition`](Network::partition) took away.
    #[track_caller]
    pub fn heal(&self, host: usize) {
        self.switch
            .ip(&["link", "set", &port(host), "master", COMMON, "up"]);
    }

    /// Parts the hosts: those of one group hear each other and nobody else; those in no group stay
    /// together. Packets to others vanish without a word, as behind a dead switch.
    #[track_caller]
    pub fn partition(&mut self, groups: &[&[usize]]) {
        self.ensure_bridges(groups.len() + 1);
        for host in 0..self.len() {
            let group = groups.iter().position(|group| group.contains(&host));
            let bridge = bridge(group.map_or(0, |group| group + 1));
            self.switch
                .ip(&["link", "set", &port(host), "master", &bridge]);
        }
    }

    /// Undoes every [`cut`](Network::cut) and [`partition`](Network::partition).
    #[track_caller]
    pub fn heal_all(&self) {
        (0..self.len()).for_each(|host| self.heal(host));
    }

    /// Limits what a host sends and what it receives to so many bytes a second each; `None` lifts
    /// the limit.
    #[track_caller]
    pub fn limit(&self, host: usize, bytes_per_second: Option<u64>) {
        let port = port(host);
        for (namespace, interface) in [(&*self.hosts[host], "eth0"), (&self.switch, &*port)] {
            let at = ["dev", interface, "root"];
            // Replaced by the default when deleted, so that there always is one to delete.
            match bytes_per_second {
                None => namespace.tc(&[&["qdisc", "replace"], &at[..], &["pfifo"]].concat()),
                Some(rate) => {
                    let burst = BURST_MIN.max(rate / BURSTS_PER_SECOND).to_string();
                    let rate = format!("{rate}bps");
                    let filter = ["tbf", "rate", &rate, "burst", &burst, "latency", "50ms"];
                    namespace.tc(&[&["qdisc", "replace"], &at[..], &filter[..]].concat());
                }
            }
        }
    }

    fn ensure_bridges(&mut self, wanted: usize) {
        while self.bridges < wanted {
            let bridge = bridge(self.bridges);
            let options = [
                "type",
                "bridge",
                "stp_state",
                "0",
                "forward_delay",
                "0",
                "mcast_snooping",
                "0",
            ];
            self.switch
                .ip(&[&["link", "add", &bridge], &options[..]].concat());
            self.switch.ip(&["link", "set", &bridge, "up"]);
            self.bridges += 1;
        }
    }
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Four,
    /// IPv6, link-local addresses among them.
    Six,
}

impl Default for Network {
    fn default() -> Network {
        Network::new()
    }
}

fn port(host: usize) -> String {
    format!("port{host}")
}

fn bridge(number: usize) -> String {
    format!("lan{number}")
}

/// The last byte of a host's addresses.
fn host_part(host: usize) -> u8 {
    u8::try_from(host + 1).expect("a network has at most 250 hosts")
}

fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// The bridge of those whom no partition took away.
const COMMON: &str = "lan0";
const HOSTS_MAX: usize = 250;
/// The largest packet that the kernel hands to an interface at once.
const BURST_MIN: u64 = 64 << 10;
/// Timers of the kernel may be as coarse as this.
const BURSTS_PER_SECOND: u64 = 100;
