//! Who may have a connection to the gRPC port: plain counting, without IO and without a clock.
//!
//! ```text
//! max_connections = 2000
//! |------------------------- ordinary: 1744, for anybody -------------------------|--- reserve: 256 ---|
//!                                                                                   newcomers, members
//! ```
//!
//! - While there is an **ordinary** place, a new connection takes one, whoever it is.
//! - Otherwise it is a **newcomer** in the reserve, and has a moment to make a request. One for a service that only members
//!   use (beats, Raft, the streams of WAL and seeds) makes it a **member**, which stays. Any other takes an ordinary place if one
//!   has come free, and is refused if not; a newcomer that asked for nothing, or was refused, is closed after that moment.
//! - When the reserve is full, the newcomer that has waited longest gives way to the next. Only when all of the reserve belongs to
//!   members is a connection refused outright.
//!
//! Why by what is asked for and not by where it comes from: clients may run on a member's machine, or come through the
//! same address translation, and a member's address may be a name that resolves to many. Clients that are idle, that leak
//! connections or reconnect without end, cannot keep a member out in this way: a member asks as soon as it is connected, and is
//! displaced only by as many connections as the reserve has places between its connecting and its asking, in which case it
//! comes again. Somebody who *pretends* to be a member can take the reserve. Nothing on this port can stop that as long as members
//! do not show who they are; he could do worse by speaking Raft.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The reserve is this part of all places, ...
const RESERVE_PART: usize = 4;
/// ... and at most this: four connections of each of 63 other members.
const RESERVE_MAX: usize = 256;

const ORDINARY: u8 = 0;
const NEWCOMER: u8 = 1;
const MEMBER: u8 = 2;
const GONE: u8 = 3;

/// The place of one connection.
#[derive(Debug)]
pub struct Place {
    /// Changed under the lock of [`Places`] only.
    kind: AtomicU8,
    /// Cancelled when it has to give way.
    displaced: CancellationToken,
}

impl Place {
    fn new(kind: u8) -> Arc<Self> {
        Arc::new(Self { kind: AtomicU8::new(kind), displaced: CancellationToken::new() })
    }

    fn kind(&self) -> u8 {
        self.kind.load(Ordering::Acquire)
    }

    /// Whether it must soon show what it is here for.
    pub fn is_newcomer(&self) -> bool {
        self.kind() == NEWCOMER
    }

    /// Cancelled when it has to give way to another.
    pub fn displaced(&self) -> &CancellationToken {
        &self.displaced
    }
}

/// No place for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

#[derive(Debug, Default)]
struct Taken {
    ordinary: usize,
    members: usize,
    /// The one that has waited longest first.
    newcomers: VecDeque<Arc<Place>>,
}

/// All places of the port.
#[derive(Debug)]
pub struct Places {
    ordinary_max: usize,
    reserve: usize,
    taken: Mutex<Taken>,
}

impl Places {
    /// Of `max` connections.
    pub fn new(max: usize) -> Self {
        let reserve = (max / RESERVE_PART).min(RESERVE_MAX);
        Self { ordinary_max: max - reserve, reserve, taken: Mutex::default() }
    }

    /// How many connections may be open.
    pub fn max(&self) -> usize {
        self.ordinary_max + self.reserve
    }

    /// How many are open: in ordinary places, newcomers, members in the reserve.
    pub fn taken(&self) -> [usize; 3] {
        let taken = self.lock();
        [taken.ordinary, taken.newcomers.len(), taken.members]
    }

    /// A place for a new connection.
    ///
    /// # Errors
    /// When all of the reserve belongs to members.
    pub fn admit(&self) -> Result<Arc<Place>, Full> {
        let mut taken = self.lock();
        if taken.ordinary < self.ordinary_max {
            taken.ordinary += 1;
            return Ok(Place::new(ORDINARY));
        }
        if taken.members + taken.newcomers.len() >= self.reserve {
            let longest = taken.newcomers.pop_front().ok_or(Full)?;
            longest.kind.store(GONE, Ordering::Release);
            longest.displaced.cancel();
        }
        let place = Place::new(NEWCOMER);
        taken.newcomers.push_back(Arc::clone(&place));
        Ok(place)
    }

    /// A request came over this connection. False: it must be refused.
    pub fn ask(&self, place: &Arc<Place>, of_member: bool) -> bool {
        match (place.kind(), of_member) {
            (ORDINARY, _) | (MEMBER, true) => return true,
            (NEWCOMER, _) => {}
            _ => return false,
        }
        let mut taken = self.lock();
        if !place.is_newcomer() {
            return false;
        }
        let room = taken.ordinary < self.ordinary_max;
        if !of_member && !room {
            return false;
        }
        taken.newcomers.retain(|other| !Arc::ptr_eq(other, place));
        let (kind, count) = match room {
            true => (ORDINARY, &mut taken.ordinary),
            false => (MEMBER, &mut taken.members),
        };
        *count += 1;
        place.kind.store(kind, Ordering::Release);
        true
    }

    /// The connection is closed.
    pub fn release(&self, place: &Arc<Place>) {
        let mut taken = self.lock();
        match place.kind.swap(GONE, Ordering::AcqRel) {
            ORDINARY => taken.ordinary -= 1,
            MEMBER => taken.members -= 1,
            NEWCOMER => taken.newcomers.retain(|other| !Arc::ptr_eq(other, place)),
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(max: usize) -> (Places, Vec<Arc<Place>>) {
        let places = Places::new(max);
        let ordinary = (0..places.ordinary_max).map(|_| places.admit().expect("a place")).collect();
        (places, ordinary)
    }

    #[test]
    fn the_reserve_is_for_members() {
        assert_eq!((Places::new(2000).ordinary_max, Places::new(2000).reserve), (1744, 256));
        let (places, ordinary) = filled(64);
        assert_eq!(places.taken(), [48, 0, 0]);
        assert!(ordinary.iter().all(|place| places.ask(place, false) && places.ask(place, true)));
        let (client, member) = (places.admit().expect("a place"), places.admit().expect("a place"));
        assert!(!places.ask(&client, false), "all ordinary places are taken");
        assert!(places.ask(&member, true));
        assert!(!places.ask(&member, false), "the reserve is not for requests of clients");
        assert_eq!(places.taken(), [48, 1, 1]);
        // A newcomer takes an ordinary place that has come free.
        places.release(&ordinary[0]);
        assert!(places.ask(&client, false));
        assert_eq!(places.taken(), [48, 0, 1]);
        places.release(&member);
        places.release(&member);
        assert_eq!(places.taken(), [48, 0, 0]);
    }

    #[test]
    fn idle_connections_never_keep_a_member_out() {
        let (places, _ordinary) = filled(64);
        let mut members = 0;
        for n in 0..1_000 {
            let first = places.admit().expect("somebody gives way");
            // Fewer than the reserve has places come between.
            for _ in 0..3 {
                places.admit().expect("somebody gives way");
            }
            if n % 100 == 0 {
                assert!(places.ask(&first, true), "displaced at {n}");
                members += 1;
            }
            let [ordinary, newcomers, in_reserve] = places.taken();
            assert_eq!((ordinary, in_reserve), (48, members));
            assert!(newcomers + in_reserve <= 16);
        }
    }

    #[test]
    fn who_waits_longest_gives_way_and_members_do_not() {
        let (places, _ordinary) = filled(64);
        let newcomers: Vec<_> = (0..16).map(|_| places.admit().expect("a place")).collect();
        let next = places.admit().expect("a place");
        assert!(newcomers[0].displaced().is_cancelled() && !places.ask(&newcomers[0], true));
        assert!(!newcomers[1].displaced().is_cancelled());
        assert!(newcomers[1..].iter().chain([&next]).all(|place| places.ask(place, true)));
        assert_eq!(places.admit().err(), Some(Full));
        places.release(&newcomers[0]);
        assert_eq!(places.taken(), [48, 0, 16], "who was displaced is not counted twice");
    }
}
