//! What can be wrong with a network, as values.

/// Something that is wrong until it is healed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Applied and healed together.
    pub rules: Vec<Rule>,
}

/// At one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// What comes from a node is not received, and nobody is told.
    Drop {
        /// Where.
        at: String,
        /// From whom.
        from: String,
    },
    /// Of what comes from a node, each packet is lost with this chance.
    Lose {
        /// Where.
        at: String,
        /// From whom.
        from: String,
        /// 0 to 100.
        percent: u8,
    },
    /// Everybody who sends the server anything is answered with a reset, on established connections too.
    Reset {
        /// Where.
        at: String,
    },
    /// What anybody sends the server is not received, on established connections neither, and nobody is told. What the
    /// node itself began goes on.
    Swallow {
        /// Where.
        at: String,
    },
    /// Nothing leaves faster than this.
    Narrow {
        /// Where.
        at: String,
        /// 1000 bits per second.
        kbit_per_s: u32,
    },
}

impl Fault {
    /// Nothing: for what is wrong in another way, like a [`super::Delay`].
    pub fn none() -> Fault {
        Fault { rules: Vec::new() }
    }

    /// Nothing from `from` arrives at `to`.
    pub fn one_way(from: &str, to: &str) -> Fault {
        Fault { rules: vec![Rule::Drop { at: to.to_owned(), from: from.to_owned() }] }
    }

    /// Two nodes do not reach each other. A third one that both reach is a bridge.
    pub fn both_ways(one: &str, other: &str) -> Fault {
        Self::one_way(one, other).and(Self::one_way(other, one))
    }

    /// A node reaches none of the others and none reaches it; clients do.
    pub fn isolated(node: &str, others: &[&str]) -> Fault {
        others.iter().fold(Self::none(), |fault, other| fault.and(Self::both_ways(node, other)))
    }

    /// A node is heard by the others and hears none of them.
    pub fn deaf(node: &str, others: &[&str]) -> Fault {
        others.iter().fold(Self::none(), |fault, other| fault.and(Self::one_way(other, node)))
    }

    /// A node hears the others and none hears it.
    pub fn mute(node: &str, others: &[&str]) -> Fault {
        others.iter().fold(Self::none(), |fault, other| fault.and(Self::one_way(node, other)))
    }

    /// Packets between these nodes are lost at random.
    pub fn loss(names: &[&str], percent: u8) -> Fault {
        let pairs =
            names.iter().flat_map(|at| names.iter().map(move |from| (at, from))).filter(|(at, from)| at != from);
        let lose = |(at, from): (&&str, &&str)| Rule::Lose { at: (*at).to_owned(), from: (*from).to_owned(), percent };
        Fault { rules: pairs.map(lose).collect() }
    }

    /// A firewall in front of a server that answers for it.
    pub fn reset_in_front_of(node: &str) -> Fault {
        Fault { rules: vec![Rule::Reset { at: node.to_owned() }] }
    }

    /// A firewall in front of a server that says nothing at all.
    pub fn swallow_in_front_of(node: &str) -> Fault {
        Fault { rules: vec![Rule::Swallow { at: node.to_owned() }] }
    }

    /// These nodes send no more than this.
    pub fn narrow(names: &[&str], kbit_per_s: u32) -> Fault {
        Fault { rules: names.iter().map(|at| Rule::Narrow { at: (*at).to_owned(), kbit_per_s }).collect() }
    }

    /// Both.
    pub fn and(mut self, other: Fault) -> Fault {
        self.rules.extend(other.rules);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is not heard, and where.
    fn pair(rule: &Rule) -> Option<(&str, &str)> {
        match rule {
            Rule::Drop { at, from } => Some((from, at)),
            Rule::Lose { .. } | Rule::Reset { .. } | Rule::Swallow { .. } | Rule::Narrow { .. } => None,
        }
    }

    fn dropped(fault: &Fault) -> Vec<(&str, &str)> {
        fault.rules.iter().filter_map(pair).collect()
    }

    #[test]
    fn a_cut_names_who_is_not_heard_where() {
        assert_eq!(dropped(&Fault::both_ways("a", "b")), [("a", "b"), ("b", "a")]);
        assert_eq!(dropped(&Fault::mute("a", &["b", "c"])), [("a", "b"), ("a", "c")]);
        assert_eq!(dropped(&Fault::deaf("a", &["b", "c"])), [("b", "a"), ("c", "a")]);
        assert_eq!(dropped(&Fault::isolated("a", &["b", "c"])), [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")]);
    }

    #[test]
    fn loss_is_between_every_two() {
        assert_eq!(Fault::loss(&["a", "b", "c"], 10).rules.len(), 6);
    }
}
