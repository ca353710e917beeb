//! Who may have a connection to the gRPC port: plain counting, without IO and without a clock.
//!
//! ```text
//! max_connections = 2000
//! |--------------------- ordinary: 1736, for anybody ---------------------|-- reserve: 256 --|- operators: 8 -|
//!                                                                          newcomers, members
//! ```
//!
//! - While there is an **ordinary** place, a new connection takes one, whoever it is.
//! - Otherwise it is a **newcomer**, stands in what is free of the reserve and of the operators' places, and has a moment to make a
//!   request ([`Asks`]). One for a service that only members use (beats, Raft, the streams of WAL and seeds) makes it a **member**, which
//!   stays. One for the service of operators or for that of health probes makes it an **operator**. Any other takes an ordinary place
//!   if one has come free, and is refused if not; a newcomer that asked for nothing, or was refused, is closed after that moment.
//! - When there is nowhere to stand, the newcomer that has waited longest gives way to the next.
//! - Members take the whole reserve at most, and nothing of the operators' places; beyond it they are refused.
//! - Operators take all of their places but one at most, and nothing of the reserve. When they are full, the operator whose last
//!   request is the longest ago gives way to the next: those too may be idle or leaked. The one that is left is where a newcomer can
//!   stand even when members have all of the reserve, so that a connection is never refused before it could say what it wants.
//!
//! Why by what is asked for and not by where it comes from: clients may run on a member's machine, or come through the
//! same address translation, and a member's address may be a name that resolves to many. Clients that are idle, that leak
//! connections or reconnect without end, cannot keep a member out in this way, nor an operator who has to see what is the matter, nor
//! the probe of an orchestrator that would end a healthy primary: they ask as soon as they are connected, and are displaced only by
//! as many connections as there are places for newcomers between their connecting and their asking, in which case they come again.
//! Somebody who *pretends* to be a member can take the reserve. Nothing on this port can stop that as long as members
//! do not show who they are; he could do worse by speaking Raft. Who pretends to be an operator displaces operators, each after
//! it was served; a client that asks for its data over such a place is refused, and the first to give way.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The reserve is this part of all places, ...
const RESERVE_PART: usize = 4;
/// ... and at most this: four connections of each of 63 other members.
const RESERVE_MAX: usize = 256;
/// The operators' places are this part of all, ...
const OPERATORS_PART: usize = 8;
/// ... at most this, ...
const OPERATORS_MAX: usize = 8;
/// ... and at least this: one for an operator, and one where a newcomer stands.
const OPERATORS_MIN: usize = 2;

const ORDINARY: u8 = 0;
const NEWCOMER: u8 = 1;
const MEMBER: u8 = 2;
const OPERATOR: u8 = 3;
const GONE: u8 = 4;

/// Who uses what a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// Members only.
    Member,
    /// Operators and their tools, orchestrators.
    Operator,
    /// Anybody.
    Client,
}

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

#[derive(Debug, Default)]
struct Taken {
    ordinary: usize,
    members: usize,
    /// The one that has waited longest first.
    newcomers: VecDeque<Arc<Place>>,
    /// The one whose last request is the longest ago first.
    operators: VecDeque<Arc<Place>>,
}

impl Taken {
    /// Takes it from where it waits, if it does.
    fn forget(&mut self, place: &Arc<Place>) {
        self.newcomers.retain(|other| !Arc::ptr_eq(other, place));
        self.operators.retain(|other| !Arc::ptr_eq(other, place));
    }
}

/// The first gives way.
fn displace_first(waiting: &mut VecDeque<Arc<Place>>) {
    if let Some(first) = waiting.pop_front() {
        first.kind.store(GONE, Ordering::Release);
        first.displaced.cancel();
    }
}

/// All places of the port.
#[derive(Debug)]
pub struct Places {
    ordinary_max: usize,
    reserve: usize,
    /// With the one that no operator takes.
    operators_places: usize,
    taken: Mutex<Taken>,
}

impl Places {
    /// Of `max` connections.
    pub fn new(max: usize) -> Self {
        let reserve = (max / RESERVE_PART).min(RESERVE_MAX);
        let operators_places = (max / OPERATORS_PART).clamp(OPERATORS_MIN, OPERATORS_MAX);
        let ordinary_max = max.saturating_sub(reserve + operators_places);
        Self { ordinary_max, reserve, operators_places, taken: Mutex::default() }
    }

    /// How many connections may be open.
    pub fn max(&self) -> usize {
        self.ordinary_max + self.reserve + self.operators_places
    }

    /// How many are open: in ordinary places, newcomers, members in the reserve, operators in their places.
    pub fn taken(&self) -> [usize; 4] {
        let taken = self.lock();
        [taken.ordinary, taken.newcomers.len(), taken.members, taken.operators.len()]
    }

    /// A place for a new connection.
    pub fn admit(&self) -> Arc<Place> {
        let mut taken = self.lock();
        if taken.ordinary < self.ordinary_max {
            taken.ordinary += 1;
            return Place::new(ORDINARY);
        }
        let settled = taken.members + taken.operators.len();
        assert!(settled < self.reserve + self.operators_places, "one place is left for newcomers");
        if settled + taken.newcomers.len() >= self.reserve + self.operators_places {
            displace_first(&mut taken.newcomers);
        }
        let place = Place::new(NEWCOMER);
        taken.newcomers.push_back(Arc::clone(&place));
        place
    }

    /// A request came over this connection. False: it must be refused.
    pub fn ask(&self, place: &Arc<Place>, asks: Asks) -> bool {
        if place.kind() == ORDINARY {
            return true;
        }
        let mut taken = self.lock();
        match place.kind() {
            ORDINARY => return true,
            // What an operator asks over it takes no place.
            MEMBER => return asks != Asks::Client,
            NEWCOMER | OPERATOR => {}
            _ => return false,
        }
        if taken.ordinary < self.ordinary_max {
            taken.forget(place);
            taken.ordinary += 1;
            place.kind.store(ORDINARY, Ordering::Release);
            return true;
        }
        match asks {
            Asks::Member if taken.members < self.reserve => {
                taken.forget(place);
                taken.members += 1;
                place.kind.store(MEMBER, Ordering::Release);
                true
            }
            Asks::Operator => {
                taken.forget(place);
                if taken.operators.len() + 1 >= self.operators_places {
                    displace_first(&mut taken.operators);
                }
                taken.operators.push_back(Arc::clone(place));
                place.kind.store(OPERATOR, Ordering::Release);
                true
            }
            Asks::Client if place.kind() == OPERATOR => {
                taken.forget(place);
                taken.operators.push_front(Arc::clone(place));
                false
            }
            Asks::Member | Asks::Client => false,
        }
    }

    /// The connection is closed.
    pub fn release(&self, place: &Arc<Place>) {
        let mut taken = self.lock();
        match place.kind.swap(GONE, Ordering::AcqRel) {
            ORDINARY => taken.ordinary -= 1,
            MEMBER => taken.members -= 1,
            NEWCOMER | OPERATOR => taken.forget(place),
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
        let ordinary = (0..places.ordinary_max).map(|_| places.admit()).collect();
        (places, ordinary)
    }

    #[test]
    fn every_place_is_somebodys() {
        let parts = |max| {
            let places = Places::new(max);
            assert_eq!(places.max(), max);
            [places.ordinary_max, places.reserve, places.operators_places]
        };
        assert_eq!(parts(2000), [1736, 256, 8]);
        assert_eq!(parts(64), [40, 16, 8]);
        assert_eq!(parts(16), [10, 4, 2]);
    }

    #[test]
    fn the_reserve_is_for_members() {
        let (places, ordinary) = filled(64);
        assert_eq!(places.taken(), [40, 0, 0, 0]);
        assert!(ordinary.iter().all(|place| places.ask(place, Asks::Client) && places.ask(place, Asks::Member)));
        let (client, member) = (places.admit(), places.admit());
        assert!(!places.ask(&client, Asks::Client), "all ordinary places are taken");
        assert!(places.ask(&member, Asks::Member));
        assert!(!places.ask(&member, Asks::Client), "the reserve is not for requests of clients");
        assert!(places.ask(&member, Asks::Operator));
        assert_eq!(places.taken(), [40, 1, 1, 0]);
        // A newcomer takes an ordinary place that has come free.
        places.release(&ordinary[0]);
        assert!(places.ask(&client, Asks::Client));
        assert_eq!(places.taken(), [40, 0, 1, 0]);
        places.release(&member);
        places.release(&member);
        assert_eq!(places.taken(), [40, 0, 0, 0]);
    }

    #[test]
    fn idle_connections_never_keep_a_member_or_an_operator_out() {
        let (places, _ordinary) = filled(64);
        let (mut members, mut operators) = (0, 0);
        for n in 0..1_000 {
            let first = places.admit();
            // Fewer than there are places for newcomers come between.
            for _ in 0..3 {
                places.admit();
            }
            if n % 100 == 0 {
                assert!(places.ask(&first, Asks::Member), "displaced at {n}");
                members += 1;
            }
            if n % 100 == 50 {
                assert!(places.ask(&first, Asks::Operator), "displaced at {n}");
                operators = 7.min(operators + 1);
            }
            let [ordinary, newcomers, in_reserve, in_operators] = places.taken();
            assert_eq!((ordinary, in_reserve, in_operators), (40, members, operators));
            assert!(newcomers + in_reserve + in_operators <= 24);
        }
    }

    #[test]
    fn who_waits_longest_gives_way_and_members_do_not() {
        let (places, _ordinary) = filled(64);
        let newcomers: Vec<_> = (0..24).map(|_| places.admit()).collect();
        let next = places.admit();
        assert!(newcomers[0].displaced().is_cancelled() && !places.ask(&newcomers[0], Asks::Member));
        assert!(!newcomers[1].displaced().is_cancelled());
        assert!(newcomers[1..17].iter().all(|place| places.ask(place, Asks::Member)));
        assert!(!places.ask(&newcomers[17], Asks::Member), "the operators' places are not for members");
        // Operators come all the same.
        assert!(newcomers[18..].iter().chain([&next]).all(|place| places.ask(place, Asks::Operator)));
        assert!(places.ask(&places.admit(), Asks::Operator));
        assert!(newcomers[1..17].iter().all(|place| !place.displaced().is_cancelled()));
        assert!(newcomers[17].displaced().is_cancelled(), "the last place to stand is the next one's");
        assert_eq!(places.taken(), [40, 0, 16, 7]);
        places.release(&newcomers[0]);
        assert_eq!(places.taken(), [40, 0, 16, 7], "who was displaced is not counted twice");
    }

    #[test]
    fn operators_give_way_to_operators_only() {
        let (places, ordinary) = filled(64);
        let operators: Vec<_> = (0..7).map(|_| places.admit()).collect();
        assert!(operators.iter().all(|place| places.ask(place, Asks::Operator)));
        // Idle clients come and go.
        let idle: Vec<_> = (0..100).map(|_| places.admit()).collect();
        assert!(!places.ask(&idle[99], Asks::Client));
        assert_eq!(places.taken(), [40, 17, 0, 7]);
        // The first one asked again, and the third one is a client.
        assert!(places.ask(&operators[0], Asks::Operator));
        assert!(!places.ask(&operators[2], Asks::Client));
        for (n, longest) in [2, 1, 3].into_iter().enumerate() {
            assert!(!operators[longest].displaced().is_cancelled());
            assert!(places.ask(&idle[90 + n], Asks::Operator));
            assert!(operators[longest].displaced().is_cancelled() && !places.ask(&operators[longest], Asks::Operator));
        }
        assert!([0, 4, 5, 6].into_iter().all(|n| !operators[n].displaced().is_cancelled()));
        // An ordinary place that has come free is for whoever asks.
        places.release(&ordinary[0]);
        assert!(places.ask(&operators[0], Asks::Client));
        places.release(&operators[4]);
        assert_eq!(places.taken(), [40, 14, 0, 5]);
    }
}
