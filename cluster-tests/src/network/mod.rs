//! A network of its own for every test: one namespace per node, joined by a switch.
//!
//! ```text
//!   test process            namespace "switch"              namespace of n1
//!   (the clients)     veth   +------------+    veth      +--------------------+
//!   198.18.K.254 ------------| bridge     |--------------| eth0  198.18.K.1   |
//!                            |            |------ n2     | server, iptables   |
//!                            +------------+------ n3     +--------------------+
//! ```
//!
//! The clients stay in the machine's own namespace with an address of their own, so that every fault between nodes
//! leaves them alone: a primary that is cut off from its peers still has clients. The bridge stands in a namespace of
//! its own, because the machine's firewall may look at what is bridged. No namespace has a route to anywhere else.
//!
//! Names carry the process id and addresses are of the range for benchmarks (198.18.0.0/15), one /24 for each test: two
//! test processes never meet, and what a killed one left behind is removed at the next start. [`Fault`]s are values:
//! applied and healed by [`Network::apply`] and [`Network::heal`].
//!
//! Needs root, iproute2 and iptables; see [`Network::for_test`].

mod fault;
mod relay;
mod tools;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

pub use fault::{Fault, Rule};
pub use relay::Delay;
use relay::Relay;
use tools::{ip, ip_in, namespaces, run_in};

use crate::requires::require;

/// Every server listens here: they have an address each.
const SERVER_PORT: u16 = 7400;
/// A server behind a relay is reached here, too: what arrives is not sent through a relay again.
const RELAYED_PORT: u16 = 7401;
/// The first relay of a node listens here.
const RELAY_PORTS_FROM: u16 = 7410;
/// Of the names of all namespaces and links.
const PREFIX: &str = "understudy-";
const LINK_PREFIX: &str = "us";
/// The host part of the clients' address.
const CLIENT_HOST: u8 = 254;
/// In 198.18.0.0/15.
const SUBNETS: u32 = 512;

/// Networks that this process has made.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// See the module. Everything is removed when it goes; the servers must be gone by then.
#[derive(Debug)]
pub struct Network {
    /// Of the names of all namespaces.
    prefix: String,
    client_link: String,
    subnet: u32,
    /// The host part of each node's address.
    hosts: BTreeMap<String, u8>,
    /// From a node to another.
    relays: Mutex<BTreeMap<(String, String), Relay>>,
}

impl Network {
    /// A network of these nodes; none where the machine cannot have one and the test may be skipped.
    ///
    /// # Errors
    /// When it cannot be made although the machine should be able to, or nothing may be skipped.
    pub fn for_test(names: &[&str]) -> Result<Option<Arc<Network>>> {
        if !require("network namespaces", tools::probe())? {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self::lay(names)?)))
    }

    fn lay(names: &[&str]) -> Result<Network> {
        tools::remove_stale(PREFIX, LINK_PREFIX)?;
        let process = std::process::id();
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let hosts = names.iter().zip(1..).map(|(name, host)| ((*name).to_owned(), host)).collect();
        let subnet = tools::free_subnet(process.wrapping_add(u32::try_from(made)?), SUBNETS)?;
        let (prefix, client_link) = (format!("{PREFIX}{process}-{made}-"), format!("{LINK_PREFIX}{process}-{made}"));
        // From here on whatever was made goes with it.
        let network = Network { prefix, client_link, subnet, hosts, relays: Mutex::default() };
        let switch = network.namespace("switch");
        ip(&["netns", "add", &switch])?;
        ip_in(&switch, &["link", "add", "name", "bridge", "type", "bridge"])?;
        ip_in(&switch, &["link", "set", "dev", "bridge", "up"])?;
        let to_switch = ["peer", "name", "client", "netns", &switch];
        ip(&[&["link", "add", "name", &network.client_link, "type", "veth"], &to_switch[..]].concat())?;
        network.plug_in("client")?;
        let client = format!("{}/24", network.address_of(CLIENT_HOST));
        ip(&["addr", "add", &client, "dev", &network.client_link])?;
        ip(&["link", "set", "dev", &network.client_link, "up"])?;
        for (name, host) in &network.hosts {
            let node = network.namespace(name);
            ip(&["netns", "add", &node])?;
            let to_node = ["peer", "name", "eth0", "netns", &node];
            ip_in(&switch, &[&["link", "add", "name", name, "type", "veth"], &to_node[..]].concat())?;
            network.plug_in(name)?;
            ip_in(&node, &["addr", "add", &format!("{}/24", network.address_of(*host)), "dev", "eth0"])?;
            ip_in(&node, &["link", "set", "dev", "eth0", "up"])?;
            ip_in(&node, &["link", "set", "dev", "lo", "up"])?;
        }
        Ok(network)
    }

    /// Joins the switch's end of a link to the bridge.
    fn plug_in(&self, link: &str) -> Result<()> {
        ip_in(&self.namespace("switch"), &["link", "set", "dev", link, "master", "bridge", "up"])
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn address_of(&self, host: u8) -> String {
        format!("198.{}.{}.{host}", 18 + self.subnet / 256, self.subnet % 256)
    }

    fn host(&self, name: &str) -> u8 {
        *self.hosts.get(name).unwrap_or_else(|| panic!("there is no node {name} in this network"))
    }

    /// A node's address.
    fn address(&self, name: &str) -> String {
        self.address_of(self.host(name))
    }

    /// `host:port` of a node's server.
    pub fn server_address(&self, name: &str) -> String {
        format!("{}:{SERVER_PORT}", self.address(name))
    }

    /// The program and the arguments that run `program` in a node's namespace. They replace themselves by the
    /// program: its process id is that of whoever was started.
    pub fn wrap(&self, name: &str, program: PathBuf, arguments: Vec<String>) -> (PathBuf, Vec<String>) {
        let before = ["netns".to_owned(), "exec".to_owned(), self.namespace(name), program.display().to_string()];
        (PathBuf::from("ip"), before.into_iter().chain(arguments).collect())
    }

    /// Puts a relay between every node and every other one: before the servers start.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn lay_relays(&self) -> Result<()> {
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(relays.is_empty(), "the relays are there already");
        let (server, relayed) = (SERVER_PORT.to_string(), RELAYED_PORT.to_string());
        for from in self.hosts.keys() {
            let namespace = self.namespace(from);
            let way_in =
                ["-A", "PREROUTING", "-p", "tcp", "--dport", &relayed, "-j", "REDIRECT", "--to-ports", &server];
            tools::iptables(&namespace, &[&["-t", "nat"], &way_in[..]].concat())?;
            for (to, port) in self.hosts.keys().filter(|to| *to != from).zip(RELAY_PORTS_FROM..) {
                let target = format!("{}:{RELAYED_PORT}", self.address(to));
                let target = target.parse().context("an address of this network")?;
                relays.insert((from.clone(), to.clone()), Relay::start(&namespace, port, target)?);
                let (there, here) = (self.address(to), port.to_string());
                let way_out = ["-A", "OUTPUT", "-p", "tcp", "-d", &there, "--dport", &server];
                let redirect = ["-j", "REDIRECT", "--to-ports", &here];
                tools::iptables(&namespace, &[&["-t", "nat"], &way_out[..], &redirect[..]].concat())?;
            }
        }
        Ok(())
    }

    /// From now on every link between nodes takes that long, in each direction.
    pub fn set_delay(&self, delay: Delay) {
        for relay in self.relays.lock().unwrap_or_else(PoisonError::into_inner).values() {
            relay.set(delay);
        }
    }

    /// Makes a fault.
    ///
    /// # Errors
    /// When the kernel or its tools refuse it.
    pub fn apply(&self, fault: &Fault) -> Result<()> {
        fault.rules.iter().try_for_each(|rule| self.rule(rule, true)).with_context(|| format!("cannot apply {fault:?}"))
    }

    /// Takes a fault away that was applied.
    ///
    /// # Errors
    /// When it was not.
    pub fn heal(&self, fault: &Fault) -> Result<()> {
        fault.rules.iter().try_for_each(|rule| self.rule(rule, false)).with_context(|| format!("cannot heal {fault:?}"))
    }

    fn rule(&self, rule: &Rule, applied: bool) -> Result<()> {
        let verb = if applied { "-A" } else { "-D" };
        match rule {
            Rule::Drop { at, from } => {
                tools::iptables(&self.namespace(at), &[verb, "INPUT", "-s", &self.address(from), "-j", "DROP"])
            }
            Rule::Lose { at, from, percent } => {
                let (from, share) = (self.address(from), format!("{:.2}", f64::from(*percent) / 100.0));
                let at_random = ["-m", "statistic", "--mode", "random", "--probability", &share];
                let rule = [&[verb, "INPUT", "-s", &from], &at_random[..], &["-j", "DROP"]].concat();
                tools::iptables(&self.namespace(at), &rule)
            }
            Rule::Reset { at } => self.in_front_of(at, verb, &["-j", "REJECT", "--reject-with", "tcp-reset"]),
            Rule::Swallow { at } => self.in_front_of(at, verb, &["-j", "DROP"]),
            Rule::Narrow { at, kbit_per_s } => {
                let rate = format!("{kbit_per_s}kbit");
                let limits = ["tbf", "rate", &rate, "burst", "16kb", "latency", "400ms"];
                let (verb, limits) = if applied { ("add", &limits[..]) } else { ("del", &[][..]) };
                let command = [&["qdisc", verb, "dev", "eth0", "root"], limits].concat();
                run_in(&self.namespace(at), "tc", &command).map(drop)
            }
        }
    }
}

impl Network {
    /// What happens to everything that is sent to the server `at`.
    fn in_front_of(&self, at: &str, verb: &str, happens: &[&str]) -> Result<()> {
        let port = SERVER_PORT.to_string();
        let rule = [&[verb, "INPUT", "-p", "tcp", "--dport", &port], happens].concat();
        tools::iptables(&self.namespace(at), &rule)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The relays' threads live in the namespaces.
        self.relays.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        let ours = namespaces().unwrap_or_default().into_iter().filter(|name| name.starts_with(&self.prefix));
        let removed = ours.map(|name| ip(&["netns", "delete", &name])).chain([tools::remove_link(&self.client_link)]);
        // What is left goes at the next start.
        for error in removed.filter_map(Result::err) {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn reachable(network: &Network, from: &str, to: &str) -> bool {
        let script = format!("exec 3<>/dev/tcp/{}/{SERVER_PORT}", network.address(to));
        let (program, arguments) = network.wrap(from, "bash".into(), vec!["-c".to_owned(), script]);
        let arguments = [vec!["1".to_owned()], vec![program.display().to_string()], arguments].concat();
        std::process::Command::new("timeout")
            .args(arguments)
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
    }

    fn in_namespace<T: Send + 'static>(
        network: &Network,
        name: &str,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = File::open(tools::namespace_file(&network.namespace(name))).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            run()
        })
    }

    /// Answers every connection with what it was sent.
    fn echo(network: &Network, name: &str) {
        let (ready, listening) = std::sync::mpsc::channel();
        in_namespace(network, name, move || {
            let listener = TcpListener::bind(("0.0.0.0", SERVER_PORT)).unwrap();
            ready.send(()).unwrap();
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        listening.recv().unwrap();
    }

    /// Within a generous time: a packet may be lost, and processes may be slow to start.
    fn comes_to_reach(network: &Network, from: &str, to: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if reachable(network, from, to) {
                return true;
            }
        }
        false
    }

    #[test]
    fn faults_come_and_go_and_leave_the_client_alone() {
        let Some(network) = Network::for_test(&["a", "b", "c"]).expect("a network") else { return };
        ["a", "b", "c"].iter().for_each(|name| echo(&network, name));
        let all = |network: &Network| comes_to_reach(network, "a", "b") && comes_to_reach(network, "b", "a");
        assert!(all(&network));
        // One way is enough to keep a connection from coming up in both.
        let cut = Fault::one_way("a", "b");
        network.apply(&cut).unwrap();
        assert!(!reachable(&network, "a", "b") && !reachable(&network, "b", "a"));
        assert!(comes_to_reach(&network, "a", "c") && comes_to_reach(&network, "b", "c"));
        network.heal(&cut).unwrap();
        assert!(all(&network));
        assert!(network.heal(&cut).is_err(), "it is healed already");

        let isolated = Fault::isolated("a", &["b", "c"]);
        network.apply(&isolated).unwrap();
        let server: SocketAddr = network.server_address("a").parse().unwrap();
        let mut client = TcpStream::connect_timeout(&server, PATIENCE).expect("the client is not cut off");
        assert!(!reachable(&network, "a", "b") && !reachable(&network, "c", "a"));
        network.heal(&isolated).unwrap();

        // An established connection, too.
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        let reset = Fault::reset_in_front_of("a");
        network.apply(&reset).unwrap();
        client.write_all(b"x").unwrap();
        assert!(client.read_exact(&mut [0]).is_err());
        network.heal(&reset).unwrap();

        for fault in [Fault::loss(&["a", "b", "c"], 20), Fault::narrow(&["a", "b"], 1_000)] {
            network.apply(&fault).unwrap();
            network.heal(&fault).unwrap();
        }
    }

    #[test]
    fn a_relay_delays_both_directions() {
        let Some(network) = Network::for_test(&["a", "b"]).expect("a network") else { return };
        echo(&network, "b");
        network.lay_relays().unwrap();
        let delay = Duration::from_millis(100);
        network.set_delay(Delay { each_way: delay, jitter: Duration::ZERO });
        let there = network.server_address("b");
        let took = in_namespace(&network, "a", move || {
            let mut stream = TcpStream::connect(there).unwrap();
            let began = Instant::now();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            began.elapsed()
        });
        let took = took.join().unwrap();
        assert!(took >= 2 * delay && took < PATIENCE, "{took:?}");
    }

    #[test]
    fn nothing_is_left_behind() {
        let Some(network) = Network::for_test(&["a"]).expect("a network") else { return };
        let (prefix, link) = (network.prefix.clone(), network.client_link.clone());
        assert!(namespaces().unwrap().iter().any(|name| name.starts_with(&prefix)));
        drop(network);
        assert!(!namespaces().unwrap().iter().any(|name| name.starts_with(&prefix)));
        assert!(ip(&["link", "show", "dev", &link]).is_err());
    }
}
