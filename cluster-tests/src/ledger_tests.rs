//! The ledger's judgement of a good history, and of ones that were made bad, one for each rule.

use understudy_types::TimelineId;

use super::*;

fn at(lsn: u64) -> Position {
    Position::new(TimelineId::FIRST, Lsn::new(lsn))
}

fn holding(account: &str, balance: i64, left_by: &str, lsn: u64) -> Holding {
    Holding { account: account.to_owned(), balance, left_by: left_by.to_owned(), version: at(lsn) }
}

fn acknowledged(lsn: u64) -> WriteOutcome {
    let node = "n".to_owned();
    WriteOutcome::Acknowledged(Acknowledgement { node, position: at(lsn), already_done: false, sent: 0 })
}

fn look(invoked: Nanos, lsn: u64, holdings: Vec<Holding>) -> Look {
    let (node, consistency) = ("n".to_owned(), Consistency::Linearizable);
    Look { invoked, returned: invoked + 1, node, consistency, read_position: at(lsn), holdings, whole: true }
}

/// Opened at 100; `t1` moves 30 from x to y at 200; `t2` moves 5 back at 300, and nobody knows whether it did.
fn good() -> Ledger {
    let opened = |account| holding(account, 1_000, OPENING, 100);
    let (x, y) = (holding("x", 970, "t1", 200), holding("y", 1_030, "t1", 200));
    let last = vec![holding("x", 975, "t2", 300), holding("y", 1_025, "t2", 300)];
    Ledger {
        accounts: 2,
        transfers: vec![
            Transfer {
                invoked: 10,
                returned: 20,
                id: "t1".to_owned(),
                before: [opened("x"), opened("y")],
                amount: 30,
                outcome: acknowledged(200),
            },
            Transfer {
                invoked: 30,
                returned: 40,
                id: "t2".to_owned(),
                before: [y.clone(), x.clone()],
                amount: 5,
                outcome: WriteOutcome::Unknown,
            },
        ],
        looks: vec![look(1, 50, vec![]), look(12, 150, vec![opened("x"), opened("y")]), look(25, 200, vec![x, y])],
        finals: vec![look(90, 300, last.clone()), look(90, 300, last)],
    }
}

fn found(change: impl Fn(&mut Ledger)) -> Vec<LedgerViolation> {
    let mut ledger = good();
    change(&mut ledger);
    ledger.check(std::iter::empty())
}

#[test]
fn a_good_ledger_passes() {
    assert_eq!(found(|_| {}), []);
}

#[test]
fn a_half_of_a_transfer_breaks_the_total() {
    let found = found(|ledger| ledger.looks[2].holdings[1] = holding("y", 1_000, OPENING, 100));
    assert!(matches!(found[..], [LedgerViolation::Total { total: 1_970, expected: 2_000, .. }]), "{found:?}");
}

#[test]
fn an_account_that_is_missing_breaks_the_total() {
    let found = found(|ledger| drop(ledger.looks[1].holdings.pop()));
    assert!(matches!(found[..], [LedgerViolation::Total { accounts: 1, .. }]), "{found:?}");
}

#[test]
fn durable_an_acknowledged_transfer_that_is_nowhere_is_lost() {
    // INV-DURABLE: both accounts are as they were before it, so that the total is right.
    let opened = || vec![holding("x", 1_000, OPENING, 100), holding("y", 1_000, OPENING, 100)];
    let found = found(|ledger| ledger.finals.iter_mut().for_each(|look| look.holdings = opened()));
    assert_eq!(found.len(), 2, "at both accounts: {found:?}");
    assert!(found.iter().all(|violation| matches!(violation, LedgerViolation::NotCounted { .. })), "{found:?}");
}

#[test]
fn an_unknown_transfer_may_be_nowhere() {
    let last = || vec![holding("x", 970, "t1", 200), holding("y", 1_030, "t1", 200)];
    assert_eq!(found(|ledger| ledger.finals.iter_mut().for_each(|look| look.holdings = last())), []);
}

#[test]
fn a_transfer_that_follows_itself_was_made_twice() {
    let found = found(|ledger| {
        let again = [holding("x", 1_000, "t1", 150), holding("y", 1_000, "t1", 150)];
        ledger.transfers[0].before = again;
    });
    assert!(found.iter().any(|violation| matches!(violation, LedgerViolation::CountedTwice { .. })), "{found:?}");
}

#[test]
fn a_step_must_add_up_stand_where_it_was_told_and_be_asked_for() {
    let amount = found(|ledger| ledger.transfers[1].amount = 6);
    let place = found(|ledger| ledger.transfers[0].outcome = acknowledged(210));
    let unknown = found(|ledger| drop(ledger.transfers.pop()));
    for found in [amount, place, unknown] {
        assert!(found.iter().any(|violation| matches!(violation, LedgerViolation::WrongStep { .. })), "{found:?}");
    }
}

#[test]
fn nodes_that_hold_something_else_are_found() {
    let other = || vec![holding("x", 970, "t1", 200), holding("y", 1_030, "t1", 200)];
    let found = found(|ledger| ledger.finals[1].holdings = other());
    assert!(found.iter().all(|violation| matches!(violation, LedgerViolation::Differs { .. })), "{found:?}");
    assert_eq!(found.len(), 2);
}

#[test]
fn linear_a_look_behind_what_was_acknowledged_is_stale() {
    // INV-LINEAR.
    let stale = found(|ledger| ledger.looks[2].read_position = at(199));
    assert!(matches!(stale[..], [LedgerViolation::Stale { .. }]), "{stale:?}");
    let eventual = found(|ledger| {
        ledger.looks[2].read_position = at(199);
        ledger.looks[2].consistency = Consistency::Eventual;
    });
    assert_eq!(eventual, []);
    let others = good().check([(22, Lsn::new(250))].into_iter());
    assert!(matches!(others[..], [LedgerViolation::Stale { .. }]), "{others:?}");
}

#[test]
fn a_refused_transfer_is_nowhere() {
    let found = found(|ledger| ledger.transfers[1].outcome = WriteOutcome::Refused);
    assert!(found.iter().any(|violation| matches!(violation, LedgerViolation::RefusedButSeen { .. })), "{found:?}");
}
