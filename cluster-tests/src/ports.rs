//! Free loopback ports.
//!
//! Not the kernel's choice: a port from its ephemeral range may be given to an outgoing connection while the server
//! that had it is down, or that connection may even connect to itself. So ports below that range are tried, from a
//! random place on.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, anyhow, bail};

const LOWEST: u16 = 10_000;
const DEFAULT_EPHEMERAL: u16 = 32_768;

/// `count` different ports that nobody listens on now.
///
/// # Errors
/// When there are not as many.
pub fn free(count: usize) -> Result<Vec<u16>> {
    let range = LOWEST..ephemeral_begin().max(LOWEST + 1_000);
    let mut random = [0; 2];
    getrandom::fill(&mut random).map_err(|error| anyhow!("the operating system gives no random bytes: {error}"))?;
    let from = range.start + u16::from_le_bytes(random) % (range.end - range.start);
    // Held until all are found, so that none is found twice.
    let listeners: Vec<TcpListener> = (from..range.end)
        .chain(range.start..from)
        .filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
        .take(count)
        .collect();
    if listeners.len() < count {
        bail!("{count} free ports are needed, {} were found from {} to {}", listeners.len(), range.start, range.end);
    }
    let addresses = listeners.iter().map(TcpListener::local_addr);
    addresses.map(|address| Ok(address.context("a bound socket has an address")?.port())).collect()
}

fn ephemeral_begin() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    text.split_whitespace().next().and_then(|begin| begin.parse().ok()).unwrap_or(DEFAULT_EPHEMERAL)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_are_different_and_can_be_listened_on() {
        let ports = free(5).expect("free ports");
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 5);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
        }
    }
}
