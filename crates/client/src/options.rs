//! How a client behaves, and the syntax of its endpoints.

use std::time::Duration;

use understudy_types::DurabilityLevel;

/// Times and bounds of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long a call is tried in all, over all nodes and failovers. A [`crate::Commit`] may set its own.
    pub deadline: Duration,
    /// How long a single attempt may go unanswered before the client asks the other nodes whether there is
    /// another primary by now. The attempt itself goes on: whichever is answered first counts.
    pub attempt_timeout: Duration,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// When commits are acknowledged that do not say it themselves; none for the cluster's default.
    pub durability: Option<DurabilityLevel>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_millis(500),
            durability: None,
        }
    }
}

/// A text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not an endpoint; give host:port, for example 127.0.0.1:7400")]
pub struct EndpointError {
    /// What was given.
    pub text: String,
}

/// `host:port` out of `host:port` or `http://host:port`. A numeric IPv6 host stands in brackets.
///
/// # Errors
/// When it is neither.
pub fn parse_endpoint(text: &str) -> Result<String, EndpointError> {
    let refused = || EndpointError { text: text.to_owned() };
    let trimmed = text.trim();
    let address = trimmed.strip_prefix("http://").unwrap_or(trimmed);
    let address = address.strip_suffix('/').unwrap_or(address);
    let (host, port) = address.rsplit_once(':').ok_or_else(refused)?;
    let port_ok = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
    };
    if port_ok && host_ok { Ok(address.to_owned()) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_host_and_port() {
        for (text, address) in [
            ("127.0.0.1:7400", "127.0.0.1:7400"),
            (" http://node-1:7400/ ", "node-1:7400"),
            ("[::1]:7400", "[::1]:7400"),
        ] {
            assert_eq!(parse_endpoint(text).as_deref(), Ok(address));
        }
    }

    #[test]
    fn what_is_not_one_is_named() {
        for text in ["", "node", "node:", ":7400", "node:0", "node:99999", "https://node:7400", "a,b:1", "::1:7400"] {
            let error = parse_endpoint(text).expect_err(text);
            assert!(error.to_string().contains("host:port"), "{error}");
        }
    }
}
