//! How a read is done: how consistent, how fresh, and by whom.

use std::time::Duration;

use understudy_rpc::{convert, v1};
use understudy_types::{Position, SessionToken};

/// What a read must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Every commit that was acknowledged at level `on` or `remote_apply` before the read began. Only the primary answers.
    #[default]
    Linearizable,
    /// No less than what the token stands for: the session's own commits and reads.
    Session,
    /// What the asked node has: possibly late, never undone.
    Eventual,
    /// Exactly what was written up to this position. The answer is the same on every node.
    At(Position),
}

/// Who answers a read that is not linearizable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadPreference {
    /// The primary.
    Primary,
    /// Every node that streams, and the primary, in turn.
    #[default]
    Any,
    /// The standbys that stream, in turn; the primary when none of them answers.
    PreferStandby,
    /// The endpoints that the client was given, in turn, whatever they are.
    Endpoints,
}

/// How a read is done. Linearizable at the primary unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct ReadOptions {
    pub(crate) consistency: Consistency,
    pub(crate) token: Option<SessionToken>,
    pub(crate) max_staleness: Option<Duration>,
    pub(crate) preference: ReadPreference,
}

impl ReadOptions {
    /// See [`Consistency::Linearizable`].
    pub fn linearizable() -> Self {
        Self::default()
    }

    /// See [`Consistency::Session`]. [`crate::Session`] carries the token by itself. Without one it begins a session.
    pub fn session(token: Option<SessionToken>) -> Self {
        Self { consistency: Consistency::Session, token, ..Self::default() }
    }

    /// See [`Consistency::Eventual`].
    pub fn eventual() -> Self {
        Self { consistency: Consistency::Eventual, ..Self::default() }
    }

    /// See [`Consistency::At`].
    pub fn at(position: Position) -> Self {
        Self { consistency: Consistency::At(position), ..Self::default() }
    }

    /// Not before what `token` stands for. With a linearizable read: sees a commit at level `off` or `local` too.
    pub fn token(mut self, token: SessionToken) -> Self {
        self.token = Some(token);
        self
    }

    /// For eventual and session reads: data may be so old at most, at least 1 ms. A node whose data is older is passed over.
    pub fn max_staleness(mut self, age: Duration) -> Self {
        self.max_staleness = Some(age);
        self
    }

    /// Who answers. A linearizable read is the primary's whatever this says.
    pub fn preference(mut self, preference: ReadPreference) -> Self {
        self.preference = preference;
        self
    }

    pub(crate) fn is_primarys(&self) -> bool {
        self.consistency == Consistency::Linearizable || self.preference == ReadPreference::Primary
    }

    pub(crate) fn consistency_number(&self) -> i32 {
        let consistency = match self.consistency {
            Consistency::Linearizable => v1::Consistency::Linearizable,
            Consistency::Session => v1::Consistency::Session,
            Consistency::Eventual => v1::Consistency::Eventual,
            Consistency::At(_) => v1::Consistency::At,
        };
        consistency.into()
    }

    pub(crate) fn token_bytes(&self) -> bytes::Bytes {
        self.token.map(convert::token_bytes).unwrap_or_default()
    }

    pub(crate) fn position(&self) -> Option<v1::Position> {
        match self.consistency {
            Consistency::At(position) => Some(position.into()),
            Consistency::Linearizable | Consistency::Session | Consistency::Eventual => None,
        }
    }

    pub(crate) fn max_staleness_ms(&self) -> Option<u64> {
        self.max_staleness.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }
}

/// The token that an answer came with; none from a node that sends none.
pub(crate) fn token_of(bytes: &[u8]) -> Option<SessionToken> {
    SessionToken::from_bytes(bytes).ok()
}
