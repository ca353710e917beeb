//! Commits that wait for a position of the log, released in LSN order.
//!
//! A waiter is woken once, when its own LSN is reached: whoever releases moves a whole prefix of an ordered
//! map out and wakes exactly those. A waiter that gives up (deadline, cancelled call) takes itself out.
//! Closing ends all waits, and every later one at once: nothing is acknowledged after a seal (INV-FENCED).
//!
//! The same map is the list of who waits (SYNC-9): each waiter says what it is, and a commit is in one map at a time. So
//! the list costs a commit no lock of its own; whoever looks at it holds up the commits for as long as he copies.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use understudy_types::Lsn;

use crate::commit::UnknownReason;
use crate::waiting::{CancelWaiting, Waiter};

type Outcome = Result<(), UnknownReason>;

#[derive(Debug, Default)]
struct State {
    /// Everything at or below it has been reached.
    released: Lsn,
    closed: Option<UnknownReason>,
    /// A number for each, as several wait for one LSN.
    next_ticket: u64,
    waiting: BTreeMap<(Lsn, u64), (oneshot::Sender<Outcome>, Waiter)>,
}

/// Who waits for one of the log's positions.
#[derive(Debug, Default)]
pub(crate) struct LsnWaiters {
    state: Mutex<State>,
}

/// Takes its waiter out when the wait ends early.
struct Guard<'a> {
    waiters: &'a LsnWaiters,
    ticket: (Lsn, u64),
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.waiters.lock().waiting.remove(&self.ticket);
    }
}

impl LsnWaiters {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the position has reached `lsn`, or the waits are closed.
    pub(crate) async fn wait(&self, lsn: Lsn, waiter: &Waiter) -> Outcome {
        let (receiver, _guard) = {
            let mut state = self.lock();
            if let Some(why) = state.closed {
                return Err(why);
            }
            if lsn <= state.released {
                return Ok(());
            }
            let ticket = (lsn, state.next_ticket);
            state.next_ticket += 1;
            let (sender, receiver) = oneshot::channel();
            state.waiting.insert(ticket, (sender, *waiter));
            (receiver, Guard { waiters: self, ticket })
        };
        // A sender is dropped unused only together with the waiters.
        receiver.await.unwrap_or(Err(UnknownReason::StepDown))
    }

    /// The position has reached `lsn`.
    pub(crate) fn release(&self, lsn: Lsn) {
        let reached = {
            let mut state = self.lock();
            if lsn <= state.released {
                return;
            }
            state.released = lsn;
            let later = state.waiting.split_off(&(lsn, u64::MAX));
            std::mem::replace(&mut state.waiting, later)
        };
        for (sender, _) in reached.into_values() {
            // One that has just given up hears nothing.
            sender.send(Ok(())).ok();
        }
    }

    /// Ends all waits, those to come too.
    pub(crate) fn close(&self, why: UnknownReason) {
        let ended = {
            let mut state = self.lock();
            state.closed.get_or_insert(why);
            std::mem::take(&mut state.waiting)
        };
        for (sender, _) in ended.into_values() {
            sender.send(Err(why)).ok();
        }
    }

    /// Ends some of the waits as unknown; returns how many.
    pub(crate) fn cancel(&self, which: CancelWaiting) -> u64 {
        let cancelled = {
            let mut state = self.lock();
            let (ended, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
                std::mem::take(&mut state.waiting).into_iter().partition(|(_, (_, waiter))| which.includes(waiter));
            state.waiting = others;
            ended
        };
        let count = cancelled.len() as u64;
        for (sender, _) in cancelled.into_values() {
            sender.send(Err(UnknownReason::Cancelled)).ok();
        }
        count
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Those that wait for the lowest positions, at most `count_max`.
    pub(crate) fn first(&self, count_max: usize) -> Vec<Waiter> {
        self.lock().waiting.values().take(count_max).map(|(_, waiter)| *waiter).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use understudy_types::RequestId;

    use super::*;

    const WAITER: Waiter = Waiter::nobody();

    fn poll(future: std::pin::Pin<&mut impl Future<Output = Outcome>>) -> Poll<Outcome> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn each_is_released_when_its_lsn_is_reached() {
        let waiters = LsnWaiters::default();
        let mut ten = pin!(waiters.wait(Lsn::new(10), &WAITER));
        let mut also_ten = pin!(waiters.wait(Lsn::new(10), &WAITER));
        let mut twenty = pin!(waiters.wait(Lsn::new(20), &WAITER));
        assert!(poll(ten.as_mut()).is_pending() && poll(also_ten.as_mut()).is_pending());
        assert!(poll(twenty.as_mut()).is_pending());
        waiters.release(Lsn::new(9));
        assert!(poll(ten.as_mut()).is_pending());
        waiters.release(Lsn::new(19));
        assert_eq!(poll(ten.as_mut()), Poll::Ready(Ok(())));
        assert_eq!(poll(also_ten.as_mut()), Poll::Ready(Ok(())));
        assert!(poll(twenty.as_mut()).is_pending());
        assert_eq!(poll(pin!(waiters.wait(Lsn::new(19), &WAITER))), Poll::Ready(Ok(())));
        assert_eq!(waiters.len(), 1);
    }

    #[test]
    fn a_waiter_that_gives_up_leaves_nothing() {
        let waiters = LsnWaiters::default();
        {
            let mut wait = Box::pin(waiters.wait(Lsn::new(10), &WAITER));
            assert!(poll(wait.as_mut()).is_pending());
            assert_eq!(waiters.len(), 1);
        }
        assert_eq!(waiters.len(), 0);
    }

    #[test]
    fn a_cancelled_wait_ends_as_unknown_and_the_others_go_on() {
        let waiters = LsnWaiters::default();
        let [one, other] = [1, 2].map(|id| Waiter { request_id: Some(RequestId::new([id; 16])), ..WAITER });
        let mut first = pin!(waiters.wait(Lsn::new(10), &one));
        let mut second = pin!(waiters.wait(Lsn::new(10), &other));
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        assert_eq!(
            waiters.first(9).iter().map(|waiter| waiter.request_id).collect::<Vec<_>>(),
            [one.request_id, other.request_id]
        );
        assert_eq!(waiters.first(1).len(), 1);
        assert_eq!(waiters.cancel(CancelWaiting::Request(RequestId::new([3; 16]))), 0);
        assert_eq!(waiters.cancel(CancelWaiting::Request(RequestId::new([1; 16]))), 1);
        assert_eq!(poll(first.as_mut()), Poll::Ready(Err(UnknownReason::Cancelled)));
        assert!(poll(second.as_mut()).is_pending());
        assert_eq!(waiters.cancel(CancelWaiting::All), 1);
        assert_eq!(poll(second.as_mut()), Poll::Ready(Err(UnknownReason::Cancelled)));
        assert_eq!(waiters.len(), 0);
        // Whoever comes later waits.
        assert!(poll(pin!(waiters.wait(Lsn::new(10), &one))).is_pending());
    }

    #[test]
    fn closing_ends_every_wait_and_later_ones() {
        let waiters = LsnWaiters::default();
        waiters.release(Lsn::new(5));
        let mut wait = pin!(waiters.wait(Lsn::new(10), &WAITER));
        assert!(poll(wait.as_mut()).is_pending());
        waiters.close(UnknownReason::StepDown);
        waiters.close(UnknownReason::Stopping);
        waiters.release(Lsn::new(10));
        assert_eq!(poll(wait), Poll::Ready(Err(UnknownReason::StepDown)));
        // Even what was reached before: nobody is told any more.
        assert_eq!(poll(pin!(waiters.wait(Lsn::new(5), &WAITER))), Poll::Ready(Err(UnknownReason::StepDown)));
    }
}
