//! Which WAL must stay (design, INV-RETAIN): the lowest LSN that somebody still needs.
//!
//! | who | needs |
//! |---|---|
//! | redo after a crash | everything from what the store has durably applied |
//! | `wal_keep_size` | the last so many bytes, for standbys that come back |
//! | others | from the lowest LSN that they named: nodes that are being seeded, later slots and the archive |
//!
//! ```text
//! others need 0/05800000   redo 0/09000000   the WAL ends at 0/0A000000, 16 MiB are kept
//! floor = min(0/05800000, 0/09000000, 0/0A000000 - 0/01000000) = 0/05800000
//! ```
//!
//! Run by the engine's checkpointer, on every node and in every role. Every need is a minimum: none takes anything from
//! another. The WAL removes whole segments below the floor, so up to a segment more stays.
//!
//! What it refuses to do: guess. A store that has nothing durable needs everything, and so does whoever named no valid LSN.

use understudy_types::Lsn;

/// What is known when WAL is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionNeeds {
    /// What the store has applied as far as it is on disk; invalid for nothing.
    pub redo: Lsn,
    /// The flushed end of the WAL.
    pub wal_end: Lsn,
    /// `wal_keep_size`, in bytes: a minimum.
    pub wal_keep_size_bytes: u64,
    /// The lowest LSN that anybody else needs WAL from; none when nobody does.
    pub others: Option<Lsn>,
}

/// Everything from here on must stay, and nothing below it is needed.
pub fn retention_floor(needs: &RetentionNeeds) -> Lsn {
    let RetentionNeeds { redo, wal_end, wal_keep_size_bytes, others } = *needs;
    let kept = Lsn::new(wal_end.get().saturating_sub(wal_keep_size_bytes));
    redo.min(kept).min(others.unwrap_or(Lsn::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, byte by byte.
    fn is_needed(byte: u64, needs: &RetentionNeeds) -> bool {
        let for_redo = byte >= needs.redo.get();
        let for_keep_size = byte + needs.wal_keep_size_bytes >= needs.wal_end.get();
        let for_others = needs.others.is_some_and(|from| byte >= from.get());
        for_redo || for_keep_size || for_others
    }

    proptest! {
        /// INV-RETAIN: exactly what is needed stays.
        #[test]
        fn nothing_needed_lies_below_the_floor_and_nothing_above_is_unneeded(
            redo in 0_u64..200,
            wal_end in 0_u64..200,
            wal_keep_size_bytes in 0_u64..250,
            others in proptest::option::of(0_u64..250),
        ) {
            let (redo, wal_end) = (Lsn::new(redo), Lsn::new(wal_end));
            let needs = RetentionNeeds { redo, wal_end, wal_keep_size_bytes, others: others.map(Lsn::new) };
            let floor = retention_floor(&needs).get();
            for byte in 0..300 {
                prop_assert_eq!(is_needed(byte, &needs), byte >= floor, "byte {} of {:?}", byte, needs);
            }
        }
    }

    #[test]
    fn every_need_alone_sets_the_floor() {
        let needs = RetentionNeeds {
            redo: Lsn::new(900),
            wal_end: Lsn::new(1_000),
            wal_keep_size_bytes: 50,
            others: Some(Lsn::new(920)),
        };
        assert_eq!(retention_floor(&needs), Lsn::new(900));
        assert_eq!(retention_floor(&RetentionNeeds { wal_keep_size_bytes: 300, ..needs }), Lsn::new(700));
        assert_eq!(retention_floor(&RetentionNeeds { others: Some(Lsn::new(10)), ..needs }), Lsn::new(10));
        assert_eq!(retention_floor(&RetentionNeeds { redo: Lsn::INVALID, ..needs }), Lsn::INVALID);
        assert_eq!(retention_floor(&RetentionNeeds { wal_keep_size_bytes: u64::MAX, ..needs }), Lsn::INVALID);
    }
}
