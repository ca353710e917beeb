//! The nodes that the client knows, with one multiplexed connection to each.
//!
//! Two kinds of addresses: those that the caller gave, which stay, and those learnt from the members of the
//! cluster, which follow the latest list. A connection is made when it is first used and again after it
//! broke; HTTP/2 pings tell a dead host from a slow one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use understudy_rpc::v1::cluster_client::ClusterClient;
use understudy_rpc::v1::kv_client::KvClient;

use crate::options::{EndpointError, Options, parse_endpoint};

/// The largest message either way, in bytes: a commit of 12 MiB with its framing.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// HTTP/2 flow-control windows, in bytes.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A ping that is not answered for this long ends the connection.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses learnt from one list of members, at most.
const LEARNT_MAX: usize = understudy_types::limits::MEMBERS_MAX;

pub(crate) struct Nodes {
    seeds: Vec<String>,
    connect_timeout: Duration,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    learnt: BTreeSet<String>,
    generation: u64,
    channels: BTreeMap<String, Channel>,
}

impl Nodes {
    /// Knows `endpoints`, which must not be empty. Connects to nobody yet.
    pub(crate) fn new(endpoints: &[String], options: &Options) -> Result<Self, EndpointError> {
        let mut seeds: Vec<String> = Vec::with_capacity(endpoints.len());
        for text in endpoints {
            let address = parse_endpoint(text)?;
            if !seeds.contains(&address) {
                seeds.push(address);
            }
        }
        if seeds.is_empty() {
            return Err(EndpointError { text: String::new() });
        }
        Ok(Self { seeds, connect_timeout: options.connect_timeout, inner: Mutex::default() })
    }

    /// The addresses that the caller gave, in their order.
    pub(crate) fn seeds(&self) -> &[String] {
        &self.seeds
    }

    /// Every known address, each once.
    pub(crate) fn addresses(&self) -> BTreeSet<String> {
        let mut all: BTreeSet<String> = self.seeds.iter().cloned().collect();
        all.extend(self.lock().learnt.iter().cloned());
        all
    }

    /// Takes over the members' addresses of a cluster state, unless a later one was seen before. Connections to
    /// nodes that are no longer known are dropped.
    pub(crate) fn learn<'a>(&self, generation: u64, addresses: impl Iterator<Item = &'a str>) {
        let learnt: BTreeSet<String> =
            addresses.filter_map(|text| parse_endpoint(text).ok()).take(LEARNT_MAX).collect();
        let mut inner = self.lock();
        if generation < inner.generation || learnt.is_empty() {
            return;
        }
        inner.generation = generation;
        inner.learnt = learnt;
        let Inner { learnt, channels, .. } = &mut *inner;
        channels.retain(|address, _| learnt.contains(address) || self.seeds.contains(address));
    }

    /// Adds one address, from a redirect.
    pub(crate) fn learn_one(&self, address: &str) -> Result<String, EndpointError> {
        let address = parse_endpoint(address)?;
        let mut inner = self.lock();
        if inner.learnt.len() < LEARNT_MAX {
            inner.learnt.insert(address.clone());
        }
        Ok(address)
    }

    /// For reading and writing at `address`.
    pub(crate) fn kv(&self, address: &str) -> Result<KvClient<Channel>, EndpointError> {
        let channel = self.channel(address)?;
        Ok(KvClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// For asking `address` about the cluster.
    pub(crate) fn cluster(&self, address: &str) -> Result<ClusterClient<Channel>, EndpointError> {
        Ok(ClusterClient::new(self.channel(address)?).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn channel(&self, address: &str) -> Result<Channel, EndpointError> {
        let mut inner = self.lock();
        if let Some(channel) = inner.channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| EndpointError { text: address.to_owned() })?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(PING_INTERVAL))
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let channel = endpoint.connect_lazy();
        inner.channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(endpoints: &[&str]) -> Nodes {
        let endpoints: Vec<String> = endpoints.iter().map(|&text| text.to_owned()).collect();
        Nodes::new(&endpoints, &Options::default()).expect("endpoints")
    }

    fn known(nodes: &Nodes) -> Vec<String> {
        nodes.addresses().into_iter().collect()
    }

    #[test]
    fn members_are_learnt_and_forgotten_with_the_latest_list() {
        let nodes = nodes(&["a:1", "http://a:1", "b:1"]);
        assert_eq!(nodes.seeds(), ["a:1", "b:1"]);
        nodes.learn(5, ["a:1", "c:1"].into_iter());
        assert_eq!(known(&nodes), ["a:1", "b:1", "c:1"]);
        nodes.learn(4, std::iter::once("old:1"));
        assert_eq!(known(&nodes), ["a:1", "b:1", "c:1"]);
        nodes.learn(6, std::iter::once("d:1"));
        assert_eq!(known(&nodes), ["a:1", "b:1", "d:1"]);
    }

    #[test]
    fn no_endpoint_is_refused() {
        assert!(Nodes::new(&[], &Options::default()).is_err());
    }
}
