//! Clients that move money between accounts, and clients that count it.
//!
//! A teller reads two accounts, one after the other, and commits what both hold after the transfer under the condition
//! that neither has changed since. A counter scans all accounts: at the primary, linearizably, or at one node,
//! whatever it has applied. The sum is the same in every scan. The [`crate::ledger`] judges.

use std::time::{Duration, Instant};

use tonic::Status;
use understudy_rpc::v1;
use understudy_types::Position;

use crate::history::{Consistency, Expected, WriteOutcome};
use crate::ledger::{Holding, Look, OPENING, OPENING_BALANCE, Transfer};
use crate::node_client::{NodeClient, put_request, random_request_id, refusal};
use crate::recorder::{Recorder, wire_consistency};
use crate::workload::{GIVE_UP, PAUSE, RETRY_PAUSE, Session, precondition};

const PREFIX: &str = "account/";
/// The first key after all accounts.
const AFTER: &str = "account0";
/// The most that is moved at once.
const AMOUNT_MAX: u64 = 10;
/// Between two counts of a client: they are larger than reads.
const COUNT_PAUSE: Duration = Duration::from_millis(20);

fn account(number: usize) -> String {
    format!("{PREFIX}{number}")
}

fn holding(account: &str, value: &[u8], version: Position) -> Holding {
    let value = String::from_utf8_lossy(value);
    let (balance, left_by) = value.split_once(':').unwrap_or_default();
    // A balance that nobody wrote shows in the sum.
    let balance = balance.parse().unwrap_or(i64::MIN / 1_000);
    Holding { account: account.to_owned(), balance, left_by: left_by.to_owned(), version }
}

/// Scans all accounts at a node. Not written down.
///
/// # Errors
/// The node's refusal.
pub async fn count(
    recorder: &Recorder,
    node: &str,
    client: &NodeClient,
    consistency: Consistency,
) -> Result<Look, Status> {
    let invoked = recorder.now();
    let (entries, position) =
        client.scan_at(PREFIX.as_bytes(), AFTER.as_bytes(), wire_consistency(consistency)).await?;
    let one = |entry: &v1::Entry| {
        let version = entry.version.map(Position::from).unwrap_or_default();
        holding(&String::from_utf8_lossy(&entry.key), &entry.value, version)
    };
    let (returned, node, whole) = (recorder.now(), node.to_owned(), true);
    let holdings = entries.iter().map(one).collect();
    Ok(Look { invoked, returned, node, consistency, read_position: position, holdings, whole })
}

impl Session {
    /// Opens the accounts unless they are open.
    pub(crate) async fn open_accounts(&mut self, accounts: usize) {
        let mut request = v1::CommitRequest {
            request_id: random_request_id().to_vec().into(),
            durability: v1::Durability::On.into(),
            ..v1::CommitRequest::default()
        };
        for number in 0..accounts {
            let value = format!("{OPENING_BALANCE}:{OPENING}");
            request.operations.extend(put_request([0; 16], account(number).as_bytes(), value.as_bytes()).operations);
        }
        request.preconditions.extend(precondition(&account(0), Expected::Absent));
        // Whether it was this attempt or another: the tellers find them open or do not begin.
        self.outcome_of(request).await;
    }

    pub(crate) async fn transfer_forever(mut self, accounts: usize) {
        while self.goes_on() {
            let id = self.value();
            let from = (self.number + self.sequence as usize) % accounts;
            let to = (from + 1 + self.sequence as usize / accounts % (accounts - 1)) % accounts;
            if let (Some(giver), Some(getter)) = (self.look_at(from).await, self.look_at(to).await) {
                let amount = i64::try_from(1 + self.sequence % AMOUNT_MAX).unwrap_or(1).min(giver.balance);
                self.transfer(id, [giver, getter], amount).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn transfer(&mut self, id: String, before: [Holding; 2], amount: i64) {
        let mut request = put_request(random_request_id(), &[], &[]);
        request.operations.clear();
        for (holding, change) in before.iter().zip([-amount, amount]) {
            let value = format!("{}:{id}", holding.balance + change);
            request.operations.extend(put_request([0; 16], holding.account.as_bytes(), value.as_bytes()).operations);
            request.preconditions.extend(precondition(&holding.account, Expected::Version(holding.version)));
        }
        let invoked = self.recorder.now();
        let outcome: WriteOutcome = self.outcome_of(request).await;
        let returned = self.recorder.now();
        let transfer = Transfer { invoked, returned, id, before, amount, outcome };
        self.recorder.with(|history| history.ledger.transfers.push(transfer));
    }

    /// What an account holds now; none when nobody said or it is not open.
    async fn look_at(&mut self, number: usize) -> Option<Holding> {
        let account = account(number);
        let deadline = Instant::now() + GIVE_UP;
        while Instant::now() < deadline && self.goes_on() {
            let (name, client) = &self.nodes[self.believed];
            let invoked = self.recorder.now();
            match client.get(account.as_bytes(), v1::Consistency::Linearizable).await {
                Ok(answer) => {
                    let version = answer.version.map(Position::from).unwrap_or_default();
                    let seen = answer.value.map(|value| holding(&account, &value, version));
                    let look = Look {
                        invoked,
                        returned: self.recorder.now(),
                        node: name.clone(),
                        consistency: Consistency::Linearizable,
                        read_position: answer.read_position.map(Position::from).unwrap_or_default(),
                        holdings: seen.iter().cloned().collect(),
                        whole: false,
                    };
                    self.recorder.with(|history| history.ledger.looks.push(look));
                    return seen;
                }
                Err(status) => self.look_elsewhere(refusal(&status).as_ref()).await,
            }
        }
        None
    }

    /// At whoever is the primary; or at one node, whatever it has applied.
    pub(crate) async fn count_forever(mut self, at: Option<usize>) {
        while self.goes_on() {
            let consistency = at.map_or(Consistency::Linearizable, |_| Consistency::Eventual);
            let (name, client) = self.nodes[at.unwrap_or(self.believed)].clone();
            match count(&self.recorder, &name, &client, consistency).await {
                Ok(look) => self.recorder.with(|history| history.ledger.looks.push(look)),
                Err(status) if at.is_none() => self.look_elsewhere(refusal(&status).as_ref()).await,
                Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
            }
            tokio::time::sleep(COUNT_PAUSE).await;
        }
    }
}
