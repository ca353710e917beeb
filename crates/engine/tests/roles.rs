//! Changes of role: seal, truncate, receive, promote.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod common;

use bytes::{Bytes, BytesMut};
use common::*;
use understudy_engine::{
    BeginTimelineError, Commit, CommitError, Committed, Condition, OpenPrimaryError, ReceiveError, RejoinError, Role,
    UnknownReason,
};
use understudy_types::{DurabilityLevel, Lsn, TimelineId};
use understudy_wal::{Appender, Record};

/// INV-FENCED: what waits ends as unknown, what was never appended as not written, and nothing comes after.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_ends_what_waits_and_refuses_what_comes() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let before = engine.wal().end();
    let on = start(&engine, at(DurabilityLevel::On, vec![put("a", "1")]));
    grown(&engine, before, 1).await;
    engine.set_confirmed_until(None);
    let held = start(&engine, at(DurabilityLevel::Off, vec![put("b", "1")]));
    grown(&engine, before, 2).await;
    let undecided =
        start(&engine, Commit { preconditions: when("a", Condition::Absent), ..local(vec![put("a", "2")]) });
    let end = tokio::task::block_in_place(|| engine.seal().unwrap());
    assert_eq!(*engine.wal().flushed().borrow(), end.lsn);
    assert_eq!(tokio::task::block_in_place(|| engine.seal().unwrap()), end, "may be repeated");
    for waiting in [on, held] {
        let error = waiting.await.unwrap().unwrap_err();
        let CommitError::Unknown { position: Some(position), why: UnknownReason::StepDown } = error else {
            panic!("{error}")
        };
        assert!(position <= end);
    }
    let error = undecided.await.unwrap().unwrap_err();
    assert!(
        matches!(error, CommitError::NotDecided { why: UnknownReason::StepDown } | CommitError::NotPrimary),
        "{error}"
    );
    assert_eq!(commit(&engine, local(vec![put("c", "1")])).await, Err(CommitError::NotPrimary));
    assert_eq!((engine.is_primary(), engine.wal().end()), (None, end));
    // The safe LSN of a sealed node stands still, and it receives nothing.
    let safe = *engine.safe().borrow();
    engine.advance_safe(Lsn::MAX);
    assert_eq!(*engine.safe().borrow(), safe);
    assert!(matches!(engine.receive(end.lsn, Bytes::new()), Err(ReceiveError::Role(_))));
    assert!(matches!(engine.begin_timeline(&history(&[])), Err(BeginTimelineError::Role(_))));
    engine.unseal();
    assert_eq!(engine.role(), Role::Standby);
    assert_eq!(engine.receive(end.lsn, Bytes::new()).unwrap(), end.lsn);
}

/// INV-ORDER, INV-BYTES: the same bytes, and the same content.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_received_everything_is_the_same() {
    let (first, second) = (Disk::new(), Disk::new());
    let primary = first.open_primary();
    let standby = second.open();
    assert!(matches!(standby.receive(Lsn::new(8), Bytes::new()), Err(ReceiveError::NotAtEnd { .. })));
    standby.begin_timeline(&primary.wal().history()).unwrap();
    // More than a segment, so that fillers and segment headers are among it.
    let value = "x".repeat(100_000);
    for number in 0..25 {
        let key = format!("key-{number}");
        let ops = vec![put(&key, &value), delete(&key), put(&key, &number.to_string())];
        commit(&primary, Commit { request_id: request(number), ..local(ops) }).await.unwrap();
        ship(&primary, &standby);
    }
    let end = make_all_safe(&primary).await;
    standby.wal().flush().unwrap();
    // Told more than has arrived: applies what it has.
    standby.advance_safe(Lsn::MAX);
    assert_eq!(visible(&standby, end.lsn).await, end);
    assert_eq!(primary.wal().end(), standby.wal().end());
    assert!(first.store.same_content(&second.store));
    let (ours, theirs) = (segments(&first, end.lsn), segments(&second, end.lsn));
    assert!(ours.iter().filter(|(_, content)| !content.is_empty()).count() > 1);
    assert_eq!(
        ours.iter().filter(|s| !s.1.is_empty()).collect::<Vec<_>>(),
        theirs.iter().filter(|s| !s.1.is_empty()).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_applies_up_to_what_is_safe_and_flushed() {
    let (first, second) = (Disk::new(), Disk::new());
    let (primary, standby) = (first.open_primary(), second.open());
    standby.begin_timeline(&primary.wal().history()).unwrap();
    // The segment file is there before its syncs are held.
    ship(&primary, &standby);
    standby.wal().flush().unwrap();
    let one = commit(&primary, local(vec![put("a", "1")])).await.unwrap().position;
    let two = commit(&primary, local(vec![put("a", "2")])).await.unwrap().position;
    second.files.hold_syncs(true);
    ship(&primary, &standby);
    standby.advance_safe(one.lsn);
    standby.wal().written().wait_for(|written| *written >= two.lsn).await.unwrap();
    assert!(standby.visible().borrow().lsn < one.lsn);
    second.files.hold_syncs(false);
    assert_eq!(visible(&standby, one.lsn).await, one);
    standby.wal().flush().unwrap();
    assert_eq!(value(&standby, "a"), Some("1".into()));
    standby.advance_safe(two.lsn);
    visible(&standby, two.lsn).await;
    assert_eq!(value(&standby, "a"), Some("2".into()));
    assert_eq!(commit(&standby, local(vec![put("a", "3")])).await, Err(CommitError::NotPrimary));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_foreign_bytes_are_refused_whole() {
    let (first, second) = (Disk::new(), Disk::new());
    let (primary, standby) = (first.open_primary(), second.open());
    standby.begin_timeline(&primary.wal().history()).unwrap();
    for number in 0..5 {
        commit(&primary, local(vec![put("a", &number.to_string())])).await.unwrap();
    }
    let start = standby.wal().end().lsn;
    let chunk = primary.wal().reader(start).read(Lsn::MAX, 1 << 20).unwrap().unwrap();
    for at in 0..chunk.bytes.len() {
        let mut damaged = chunk.bytes.to_vec();
        damaged[at] ^= 0x10;
        assert!(standby.receive(start, damaged.into()).is_err(), "byte {at}");
    }
    let cut = chunk.bytes.slice(..chunk.bytes.len() - 8);
    assert!(matches!(standby.receive(start, cut), Err(ReceiveError::Corrupt(_))));
    assert!(matches!(standby.receive(chunk.end, chunk.bytes.clone()), Err(ReceiveError::NotAtEnd { .. })));
    // Another timeline's record at the right place.
    let mut appender = Appender::new(SYSTEM, SIZE, TimelineId::new(2), start);
    let mut foreign = BytesMut::new();
    appender.append(&mut foreign, &Record::Noop, 0).unwrap();
    assert!(matches!(standby.receive(start, foreign.freeze()), Err(ReceiveError::Corrupt(_))));
    assert_eq!(standby.wal().end().lsn, start);
    assert_eq!(standby.receive(start, chunk.bytes).unwrap(), chunk.end);
}

/// Exactly once over a failover: the replica that received the bytes knows the request ids and the versions,
/// of what is applied and of what is still pending.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_knows_what_it_received() {
    let (first, second) = (Disk::new(), Disk::new());
    let (old, new) = (first.open_primary(), second.open());
    new.begin_timeline(&old.wal().history()).unwrap();
    let once = |number, key: &str| Commit { request_id: request(number), ..local(vec![put(key, "old")]) };
    let applied = commit(&old, once(1, "a")).await.unwrap().position;
    let acknowledged = commit(&old, once(2, "b")).await.unwrap().position;
    let pending = commit(&old, once(3, "c")).await.unwrap().position;
    ship(&old, &new);
    new.wal().flush().unwrap();
    new.advance_safe(applied.lsn);
    visible(&new, applied.lsn).await;
    old.seal().unwrap();
    let switch = new.seal().unwrap().lsn;
    let timelines = history(&[(1, SIZE.log_start()), (2, switch)]);
    new.open_primary(&timelines, acknowledged.lsn).unwrap();
    confirm(&new);
    assert_eq!(new.role(), Role::Primary { timeline: TimelineId::new(2) });
    assert_eq!(new.is_primary(), Some(TimelineId::new(2)));
    // Everything that may have been acknowledged is readable, the rest is pending.
    assert_eq!(*new.visible().borrow(), acknowledged);
    assert_eq!(value(&new, "b"), Some("old".into()));
    assert_eq!(value(&new, "c"), None);
    for (number, key, position) in [(1, "a", applied), (2, "b", acknowledged)] {
        assert_eq!(commit(&new, once(number, key)).await, Ok(Committed { position, already_done: true }));
    }
    let again = start(&new, once(3, "c"));
    let absent = start(&new, Commit { preconditions: when("c", Condition::Absent), ..local(vec![put("c", "new")]) });
    let on_it = Commit { preconditions: when("c", Condition::VersionEquals(pending)), ..local(vec![put("d", "new")]) };
    let fresh = commit(&new, on_it).await.unwrap();
    assert_eq!(fresh.position.timeline, TimelineId::new(2));
    assert!(!again.is_finished() && !absent.is_finished());
    make_all_safe(&new).await;
    assert_eq!(again.await.unwrap(), Ok(Committed { position: pending, already_done: true }));
    assert!(matches!(absent.await.unwrap(), Err(CommitError::PreconditionFailed { .. })));
    // The old one cuts off nothing: it was not ahead. It follows the new one.
    old.rejoin(&timelines).unwrap();
    old.unseal();
    old.begin_timeline(&timelines).unwrap();
    ship(&new, &old);
    old.wal().flush().unwrap();
    old.advance_safe(*new.safe().borrow());
    visible(&old, new.visible().borrow().lsn).await;
    assert!(first.store.same_content(&second.store));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_primary_cuts_off_its_tail_and_follows() {
    let (first, second) = (Disk::new(), Disk::new());
    let (old, new) = (first.open_primary(), second.open());
    new.begin_timeline(&old.wal().history()).unwrap();
    let shared = commit(&old, local(vec![put("a", "shared")])).await.unwrap().position;
    ship(&old, &new);
    let lost = Commit { request_id: request(9), ..local(vec![put("a", "lost"), put("only-there", "1")]) };
    commit(&old, lost.clone()).await.unwrap();
    new.wal().flush().unwrap();
    let switch = new.seal().unwrap();
    assert_eq!(switch, shared);
    let timelines = history(&[(1, SIZE.log_start()), (2, switch.lsn)]);
    new.open_primary(&timelines, switch.lsn).unwrap();
    confirm(&new);
    commit(&new, local(vec![put("a", "new")])).await.unwrap();
    make_all_safe(&new).await;
    assert!(matches!(old.rejoin(&timelines), Err(RejoinError::Role(_))), "as long as it is the primary");
    // Within the next record: it must not count for what will stand there.
    old.advance_safe(shared.lsn.advance(8));
    visible(&old, shared.lsn).await;
    let end = old.seal().unwrap();
    let rejoined = old.rejoin(&timelines).unwrap();
    assert_eq!((rejoined.end, rejoined.truncated_bytes), (shared, end.lsn.get() - shared.lsn.get()));
    assert_eq!(*old.safe().borrow(), shared.lsn);
    assert_eq!(old.rejoin(&timelines).unwrap().truncated_bytes, 0, "may be repeated");
    old.unseal();
    old.begin_timeline(&timelines).unwrap();
    ship(&new, &old);
    old.wal().flush().unwrap();
    old.advance_safe(*new.safe().borrow());
    visible(&old, new.visible().borrow().lsn).await;
    assert!(first.store.same_content(&second.store));
    assert_eq!(value(&old, "a"), Some("new".into()));
    assert_eq!(value(&old, "only-there"), None);
    // The lost request was never made, as far as the cluster goes: it takes effect now.
    assert!(!commit(&new, lost).await.unwrap().already_done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_applied_too_much_does_not_rejoin_by_truncation() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let kept = commit(&engine, local(vec![put("a", "1")])).await.unwrap().position;
    commit(&engine, local(vec![put("a", "2")])).await.unwrap();
    let applied = make_all_safe(&engine).await;
    let end = engine.seal().unwrap();
    let error = engine.rejoin(&history(&[(1, SIZE.log_start()), (2, kept.lsn)])).unwrap_err();
    assert!(matches!(error, RejoinError::NeedsUndo { applied: a, position } if a == applied && position == kept.lsn));
    assert_eq!(engine.wal().end(), end, "nothing was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_safe_lsn_from_a_branch_that_was_left_does_not_count() {
    let (first, second) = (Disk::new(), Disk::new());
    let (old, standby) = (first.open_primary(), second.open());
    standby.begin_timeline(&old.wal().history()).unwrap();
    ship(&old, &standby);
    standby.wal().flush().unwrap();
    standby.advance_safe(Lsn::MAX);
    let end = visible(&standby, standby.wal().end().lsn).await;
    standby.rejoin(&history(&[(1, SIZE.log_start()), (2, end.lsn)])).unwrap();
    assert_eq!(*standby.safe().borrow(), end.lsn);
}

/// INV-ONE-PRIMARY: a timeline that the log knows is never opened again, also after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_is_opened_once_and_only_where_it_begins() {
    let disk = Disk::new();
    let start = SIZE.log_start();
    let engine = disk.open();
    let open = |switches: &[(u32, Lsn)], safe| engine.open_primary(&history(switches), safe);
    assert!(matches!(open(&[], start), Err(OpenPrimaryError::NoTimeline)));
    assert!(matches!(open(&[(1, start.advance(8))], start), Err(OpenPrimaryError::NotAtSwitch { .. })));
    assert!(matches!(open(&[(1, start)], start.advance(8)), Err(OpenPrimaryError::SafeBeyondSwitch { .. })));
    open(&[(1, start)], start).unwrap();
    assert!(matches!(open(&[(1, start)], start), Err(OpenPrimaryError::Role(_))));
    let end = engine.seal().unwrap().lsn;
    assert!(matches!(open(&[(1, start)], start), Err(OpenPrimaryError::NotNew { .. })));
    drop(engine);
    let engine = disk.open();
    assert!(matches!(engine.open_primary(&history(&[(1, start)]), start), Err(OpenPrimaryError::NotNew { .. })));
    engine.open_primary(&history(&[(1, start), (2, end)]), end).unwrap();
    confirm(&engine);
    commit(&engine, local(vec![put("a", "1")])).await.unwrap();
}

/// INV-LINEAR: a new primary shows everything that may have been acknowledged before it takes a read or a commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_is_open_only_when_what_was_acknowledged_is_visible() {
    let (first, second) = (Disk::new(), Disk::new());
    let applying = std::sync::Arc::new(std::sync::Barrier::new(2));
    let (old, new) = (first.open_primary(), {
        let applying = std::sync::Arc::clone(&applying);
        second.open_watched(move |_| {
            applying.wait();
        })
    });
    new.begin_timeline(&old.wal().history()).unwrap();
    let acknowledged = commit(&old, local(vec![put("a", "1")])).await.unwrap().position;
    ship(&old, &new);
    let switch = new.seal().unwrap().lsn;
    let mut opening = tokio::task::spawn_blocking(move || {
        new.open_primary(&history(&[(1, SIZE.log_start()), (2, switch)]), acknowledged.lsn).unwrap();
        new
    });
    let early = tokio::time::timeout(std::time::Duration::from_millis(100), &mut opening).await;
    tokio::task::block_in_place(|| applying.wait());
    assert!(early.is_err(), "opened before what was acknowledged could be read");
    let new = opening.await.unwrap();
    assert_eq!(*new.visible().borrow(), acknowledged);
}

/// The winner of an election is sealed, and fetches up to the switch LSN and not beyond.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_node_fetches_up_to_where_it_is_allowed() {
    let (first, second) = (Disk::new(), Disk::new());
    let (ahead, winner) = (first.open_primary(), second.open());
    assert!(winner.allow_fetch(Lsn::MAX).is_err(), "only a sealed node fetches");
    winner.seal().unwrap();
    let until = commit(&ahead, local(vec![put("a", "1")])).await.unwrap().position.lsn;
    let beyond = commit(&ahead, local(vec![put("a", "2")])).await.unwrap().position.lsn;
    let mut reader = ahead.wal().reader(SIZE.log_start());
    let wanted = reader.read(until, 1 << 20).unwrap().unwrap();
    let rest = reader.read(beyond, 1 << 20).unwrap().unwrap();
    winner.allow_fetch(until).unwrap();
    winner.begin_timeline(&ahead.wal().history()).unwrap();
    assert_eq!(winner.receive(wanted.start, wanted.bytes).unwrap(), until);
    assert!(matches!(winner.receive(rest.start, rest.bytes.clone()), Err(ReceiveError::BeyondFetch { .. })));
    assert_eq!(winner.seal().unwrap().lsn, until);
    assert!(matches!(winner.receive(rest.start, rest.bytes), Err(ReceiveError::Role(_))), "a new seal ends it");
    winner.open_primary(&history(&[(1, SIZE.log_start()), (2, until)]), until).unwrap();
    assert_eq!(value(&winner, "a"), Some("1".into()));
}

/// Roles change under load, over and over: what is acknowledged at level `on` stays, in the log's order.
#[tokio::test(flavor = "multi_thread")]
async fn seals_under_load_lose_nothing_that_was_acknowledged() {
    let disk = Disk::new();
    let engine = disk.open_primary();
    let safe = follow_flush(&engine);
    let mut switches = vec![(1, SIZE.log_start())];
    for round in 0..10_u32 {
        let writers: Vec<_> = (0..8_u8)
            .map(|writer| {
                let engine = engine.clone();
                tokio::spawn(async move {
                    let mut acknowledged = Vec::new();
                    for number in 0_u32.. {
                        let key = format!("{round}/{writer}/{number}");
                        match commit(&engine, at(DurabilityLevel::On, vec![put(&key, &key)])).await {
                            Ok(made) => acknowledged.push((key, made.position)),
                            Err(_) => return acknowledged,
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        engine.wal().flushed().changed().await.unwrap();
        let end = tokio::task::block_in_place(|| engine.seal().unwrap()).lsn;
        let mut acknowledged = Vec::new();
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
        switches.push((round + 2, end));
        tokio::task::block_in_place(|| engine.open_primary(&history(&switches), end).unwrap());
        engine.advance_safe(*engine.wal().flushed().borrow());
        let visible = engine.visible().borrow().lsn;
        for (key, position) in acknowledged {
            assert!(position.lsn <= end);
            assert_eq!(engine.get(key.as_bytes(), visible).unwrap().unwrap().version, position);
        }
    }
    safe.abort();
}
