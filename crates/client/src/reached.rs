//! Where members answered, which need not be where they say that they are.
//!
//! The locator notes here every status that a node answers. The addresses that members advertise may lead nowhere from here:
//! out of a network of containers, or through forwarded ports. So a member is known by where it answered, too. That address
//! may be a load balancer's, though: behind it answers now one member and now another, and a connection to it stays with
//! whichever took it. Such an address gives itself away by answering under two names, and from then on it stands for no
//! member that answered where it says that it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// For so long after a member answered at the address that it advertises, an answer of it elsewhere (a forwarded port, a load
/// balancer) does not change where it is reached.
const ADVERTISED_AGE_MAX: Duration = Duration::from_secs(5);

/// Names are in lower case.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    members: BTreeMap<String, Places>,
    /// The address to the name under which it answered last.
    names: BTreeMap<String, String>,
    /// The addresses that answered under two names.
    shared: BTreeSet<String>,
}

/// Of one member.
#[derive(Debug, Default)]
struct Places {
    /// The address that it advertises, if it ever answered there, and when it did last.
    advertised: Option<(String, Instant)>,
    /// Where else it answered last. None once it answered where it says that it is.
    elsewhere: Option<String>,
}

impl Reached {
    /// The node at `address` said that it is `name` and advertises `advertised`.
    pub(crate) fn note(&mut self, name: &str, advertised: &str, address: &str, now: Instant) {
        let name = name.to_ascii_lowercase();
        let before = self.names.insert(address.to_owned(), name.clone());
        if before.is_some_and(|before| before != name) {
            self.shared.insert(address.to_owned());
        }
        let places = self.members.entry(name).or_default();
        places.advertised.take_if(|(before, _)| before != advertised);
        if address == advertised {
            *places = Places { advertised: Some((address.to_owned(), now)), elsewhere: None };
        } else if places.advertised.as_ref().is_none_or(|(_, at)| now.duration_since(*at) >= ADVERTISED_AGE_MAX) {
            places.elsewhere = Some(address.to_owned());
        }
    }

    /// Forgets all other members and addresses: both come and go.
    pub(crate) fn keep(&mut self, is_member: impl Fn(&str) -> bool, addresses: &BTreeSet<String>) {
        self.members.retain(|name, _| is_member(name));
        self.names.retain(|address, _| addresses.contains(address));
        self.shared.retain(|address| addresses.contains(address));
    }

    /// Where the member `name` is reached; none when it never answered.
    pub(crate) fn address(&self, name: &str) -> Option<&str> {
        let places = self.members.get(&name.to_ascii_lowercase())?;
        let advertised = places.advertised.as_ref().map(|(address, _)| address.as_str());
        let elsewhere = places.elsewhere.as_deref();
        elsewhere.filter(|address| advertised.is_none() || !self.shared.contains(*address)).or(advertised)
    }

    /// Where to go when the node at `from` said that the primary is `name` at `advertised`: there, unless the member never
    /// answered there and did elsewhere. Not to `from`, where another member answers, nor where several do.
    pub(crate) fn redirected<'a>(&'a self, from: &str, name: &str, advertised: &'a str) -> &'a str {
        let Some(places) = self.members.get(&name.to_ascii_lowercase()) else { return advertised };
        if places.advertised.as_ref().is_some_and(|(address, _)| address == advertised) {
            return advertised;
        }
        let elsewhere = places.elsewhere.as_deref();
        elsewhere.filter(|address| *address != from && !self.shared.contains(*address)).unwrap_or(advertised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_reached_where_it_answered() {
        let (mut reached, now) = (Reached::default(), Instant::now());
        assert_eq!(reached.address("b"), None);
        assert_eq!(reached.redirected("a:1", "b", "b:1"), "b:1");
        reached.note("B", "b:1", "port:2", now);
        assert_eq!(reached.address("b"), Some("port:2"));
        assert_eq!(reached.redirected("a:1", "b", "b:1"), "port:2");
        reached.keep(|name| name != "b", &BTreeSet::new());
        assert_eq!(reached.address("b"), None);
    }

    #[test]
    fn a_redirect_goes_where_the_member_says_if_it_ever_answered_there() {
        let (mut reached, now) = (Reached::default(), Instant::now());
        reached.note("b", "b:1", "b:1", now);
        reached.note("b", "b:1", "port:2", now);
        assert_eq!(reached.address("b"), Some("b:1"), "it has just answered there");
        reached.note("b", "b:1", "port:2", now + ADVERTISED_AGE_MAX);
        assert_eq!(reached.address("b"), Some("port:2"));
        assert_eq!(reached.redirected("a:1", "b", "b:1"), "b:1");
        // It has moved, and where to is not known to lead anywhere.
        assert_eq!(reached.redirected("a:1", "b", "b:9"), "port:2");
    }

    #[test]
    fn an_address_with_two_names_stands_for_nobody_who_answered_where_it_says() {
        let (mut reached, now) = (Reached::default(), Instant::now());
        reached.note("b", "b:1", "b:1", now);
        reached.note("b", "b:1", "balancer:1", now + ADVERTISED_AGE_MAX);
        assert_eq!(reached.address("b"), Some("balancer:1"), "a forwarded port for all that is known");
        reached.note("a", "a:1", "balancer:1", now + ADVERTISED_AGE_MAX);
        reached.note("b", "b:1", "balancer:1", now + 2 * ADVERTISED_AGE_MAX);
        assert_eq!(reached.address("b"), Some("b:1"));
        assert_eq!(reached.address("a"), Some("balancer:1"), "it never answered anywhere else");
        assert_eq!(reached.redirected("b:1", "a", "a:1"), "a:1");
    }

    #[test]
    fn a_redirect_does_not_go_back_to_where_it_came_from() {
        let mut reached = Reached::default();
        reached.note("b", "b:1", "balancer:1", Instant::now());
        assert_eq!(reached.redirected("a:1", "b", "b:1"), "balancer:1");
        assert_eq!(reached.redirected("balancer:1", "b", "b:1"), "b:1");
    }
}
