//! Judges transfers between accounts: was money made, lost or moved twice?
//!
//! An account holds its balance and the id of the transfer that left it so. A transfer changes two accounts in one commit,
//! under the condition that both are as they were read, and writes down what that was. So the way that money went can
//! be walked backwards: from what an account holds in the end, transfer by transfer, to its opening.
//!
//! | rule | promise | violation |
//! |---|---|---|
//! | a scan of all accounts shows the total, wherever and whenever it was made | a commit is seen as a whole or not at all | [`LedgerViolation::Total`] |
//! | every acknowledged transfer lies once on the way of both of its accounts | INV-DURABLE, exactly once | [`LedgerViolation::NotCounted`], [`LedgerViolation::CountedTwice`] |
//! | each step of the way adds up | atomicity, conditions | [`LedgerViolation::WrongStep`] |
//! | all nodes hold the same in the end | INV-ORDER | [`LedgerViolation::Differs`] |
//! | a linearizable look is behind nothing acknowledged before it was asked | INV-LINEAR | [`LedgerViolation::Stale`] |
//! | a transfer that was refused is nowhere | | [`LedgerViolation::RefusedButSeen`] |

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use understudy_types::{Lsn, Position};

use crate::checker::Floor;
use crate::history::{Acknowledgement, Consistency, Nanos, WriteOutcome};

/// What every account holds at first.
pub const OPENING_BALANCE: i64 = 1_000;
/// The id of what opened the accounts.
pub const OPENING: &str = "opening";

/// What an account held, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Whose.
    pub account: String,
    /// How much.
    pub balance: i64,
    /// The transfer that left it so.
    pub left_by: String,
    /// Where that one stands.
    pub version: Position,
}

/// One transfer, at level `on`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// When the client began to ask for it, the first time.
    pub invoked: Nanos,
    /// When it had its answer or gave up.
    pub returned: Nanos,
    /// Unique in the history.
    pub id: String,
    /// The account that gives, and the one that gets, as they were read. The commit asks for these versions.
    pub before: [Holding; 2],
    /// What is given.
    pub amount: i64,
    /// What the client was told.
    pub outcome: WriteOutcome,
}

/// An answered read of some accounts or of all, at one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// When the client asked.
    pub invoked: Nanos,
    /// When it had the answer.
    pub returned: Nanos,
    /// Who answered.
    pub node: String,
    /// How it was asked for.
    pub consistency: Consistency,
    /// Where.
    pub read_position: Position,
    /// What was there.
    pub holdings: Vec<Holding>,
    /// All accounts were asked for.
    pub whole: bool,
}

/// All that happened to the accounts.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// How many accounts there are.
    pub accounts: usize,
    /// All that were asked for.
    pub transfers: Vec<Transfer>,
    /// All that were answered.
    pub looks: Vec<Look>,
    /// Whole looks, one at each node, after all clients had stopped and all nodes had caught up.
    pub finals: Vec<Look>,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what the message names")]
pub enum LedgerViolation {
    Total { node: String, read_position: Position, accounts: usize, total: i64, expected: i64 },
    NotCounted { id: String, account: String },
    CountedTwice { id: String, account: String },
    WrongStep { account: String, id: String, why: String },
    Differs { account: String, node: String, other: String },
    Stale { node: String, read: Lsn, required: Lsn, invoked: Nanos },
    RefusedButSeen { id: String, account: String },
}

impl Transfer {
    /// The acknowledgement, if there was one.
    pub fn acknowledgement(&self) -> Option<&Acknowledgement> {
        match &self.outcome {
            WriteOutcome::Acknowledged(acknowledgement) => Some(acknowledgement),
            WriteOutcome::Refused | WriteOutcome::Unknown => None,
        }
    }

    /// What it leaves an account with, and what it found there; none for an account that it does not touch.
    fn step(&self, account: &str) -> Option<(i64, &Holding)> {
        let [giver, getter] = &self.before;
        let given = (giver.account == account).then(|| (giver.balance - self.amount, giver));
        given.or_else(|| (getter.account == account).then(|| (getter.balance + self.amount, getter)))
    }
}

impl Ledger {
    fn total(&self) -> i64 {
        OPENING_BALANCE * i64::try_from(self.accounts).unwrap_or(i64::MAX)
    }

    fn all_looks(&self) -> impl Iterator<Item = &Look> {
        self.looks.iter().chain(&self.finals)
    }

    /// Acknowledged transfers with when that was.
    pub fn acknowledged(&self) -> impl Iterator<Item = (Nanos, &Acknowledgement)> + Clone {
        self.transfers.iter().filter_map(|transfer| Some((transfer.returned, transfer.acknowledgement()?)))
    }

    /// Everything that is wrong with it; empty when it keeps all promises.
    ///
    /// `others` are acknowledgements of other commits, with their times: no linearizable look may miss them.
    pub fn check(&self, others: impl Iterator<Item = (Nanos, Lsn)>) -> Vec<LedgerViolation> {
        let mut violations = Vec::new();
        self.check_totals(&mut violations);
        self.check_staleness(others, &mut violations);
        self.check_finals(&mut violations);
        self.check_ways(&mut violations);
        violations
    }

    fn check_totals(&self, violations: &mut Vec<LedgerViolation>) {
        let expected = self.total();
        // Before the opening nothing is there, and that is as whole as everything.
        for look in self.all_looks().filter(|look| look.whole && !look.holdings.is_empty()) {
            let total = look.holdings.iter().map(|holding| holding.balance).sum();
            let accounts = look.holdings.len();
            if total != expected || accounts != self.accounts {
                let (node, read_position) = (look.node.clone(), look.read_position);
                violations.push(LedgerViolation::Total { node, read_position, accounts, total, expected });
            }
        }
    }

    fn check_staleness(&self, others: impl Iterator<Item = (Nanos, Lsn)>, violations: &mut Vec<LedgerViolation>) {
        let own = self.acknowledged().map(|(returned, acknowledgement)| (returned, acknowledgement.position.lsn));
        let required = Floor::new(own.chain(others));
        for look in self.all_looks().filter(|look| look.consistency == Consistency::Linearizable) {
            let (read, required) = (look.read_position.lsn, required.before(look.invoked));
            if read < required {
                let (node, invoked) = (look.node.clone(), look.invoked);
                violations.push(LedgerViolation::Stale { node, read, required, invoked });
            }
        }
    }

    fn check_finals(&self, violations: &mut Vec<LedgerViolation>) {
        let Some((first, rest)) = self.finals.split_first() else { return };
        for look in rest {
            for holding in &first.holdings {
                if !look.holdings.contains(holding) {
                    let (account, node, other) = (holding.account.clone(), first.node.clone(), look.node.clone());
                    violations.push(LedgerViolation::Differs { account, node, other });
                }
            }
        }
    }

    /// Walks back from what each account holds in the end.
    fn check_ways(&self, violations: &mut Vec<LedgerViolation>) {
        let by_id: HashMap<&str, &Transfer> =
            self.transfers.iter().map(|transfer| (transfer.id.as_str(), transfer)).collect();
        let mut counted: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for last in self.finals.first().iter().flat_map(|look| &look.holdings) {
            let way = counted.entry(&last.account).or_default();
            if let Err(violation) = walk(&by_id, last, way) {
                violations.push(violation);
            }
        }
        for (account, way) in &counted {
            let refused = way.iter().filter(|id| by_id[**id].outcome == WriteOutcome::Refused);
            let seen =
                |id: &&str| LedgerViolation::RefusedButSeen { id: (*id).to_owned(), account: (*account).to_owned() };
            violations.extend(refused.map(seen));
        }
        for transfer in self.transfers.iter().filter(|transfer| transfer.acknowledgement().is_some()) {
            for Holding { account, .. } in &transfer.before {
                if !counted.get(account.as_str()).is_some_and(|way| way.contains(transfer.id.as_str())) {
                    let (id, account) = (transfer.id.clone(), account.clone());
                    violations.push(LedgerViolation::NotCounted { id, account });
                }
            }
        }
    }
}

/// From `last` back to the opening: each transfer on the way is put into `way`.
fn walk<'a>(
    by_id: &HashMap<&'a str, &'a Transfer>,
    last: &'a Holding,
    way: &mut BTreeSet<&'a str>,
) -> Result<(), LedgerViolation> {
    let account = &last.account;
    let wrong = |id: &str, why: String| LedgerViolation::WrongStep { account: account.clone(), id: id.to_owned(), why };
    let mut held = last;
    while held.left_by != OPENING {
        let id = held.left_by.as_str();
        let transfer = by_id.get(id).ok_or_else(|| wrong(id, "nobody asked for it".to_owned()))?;
        let (left, before) =
            transfer.step(account).ok_or_else(|| wrong(id, "it is between other accounts".to_owned()))?;
        if !way.insert(&transfer.id) {
            return Err(LedgerViolation::CountedTwice { id: id.to_owned(), account: account.clone() });
        }
        if left != held.balance {
            return Err(wrong(id, format!("it leaves {left}, and {} was found", held.balance)));
        }
        let told = transfer.acknowledgement().map(|acknowledgement| acknowledgement.position);
        if told.is_some_and(|position| position != held.version) {
            return Err(wrong(id, format!("acknowledged at {told:?}, and it stands at {}", held.version)));
        }
        if before.version.lsn >= held.version.lsn {
            return Err(wrong(id, format!("it follows {}, and stands at {}", before.version, held.version)));
        }
        held = before;
    }
    if held.balance == OPENING_BALANCE { Ok(()) } else { Err(wrong(OPENING, format!("{} was found", held.balance))) }
}

impl fmt::Display for LedgerViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Total { node, read_position, accounts, total, expected } => write!(
                f,
                "money: {accounts} accounts at {node}, read at {read_position}, hold {total} together, not {expected}"
            ),
            Self::NotCounted { id, account } => {
                write!(f, "lost: transfer {id} was acknowledged, and {account} does not hold it")
            }
            Self::CountedTwice { id, account } => write!(f, "applied twice: {account} holds transfer {id} twice"),
            Self::WrongStep { account, id, why } => write!(f, "wrong step: transfer {id} of {account}: {why}"),
            Self::Differs { account, node, other } => {
                write!(f, "nodes differ: {node} and {other} hold something else in {account}")
            }
            Self::Stale { node, read, required, invoked } => {
                let ms = invoked / 1_000_000;
                write!(f, "stale: the accounts at {node}, asked for at {ms} ms, were read at {read}, before {required}")
            }
            Self::RefusedButSeen { id, account } => {
                write!(f, "refused, yet transfer {id} is on the way of {account}")
            }
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
