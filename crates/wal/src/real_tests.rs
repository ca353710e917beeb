//! The operating system's files: one thread appends, two read, everything agrees.

use std::sync::Arc;

use understudy_types::Lsn;

use crate::tests::{SIZE, SYSTEM, TIME_US, commit, history, read_all, start};
use crate::{Appender, Decoder, RealFiles, Wal, WalConfig};

fn config(dir: &std::path::Path) -> WalConfig {
    WalConfig { ring_bytes_max: 200_000, ..WalConfig::new(dir.join("data").join("wal"), SYSTEM, SIZE) }
}

/// Follows the log to `end`; returns how many records it saw.
fn follow(wal: &Wal, end: Lsn, bytes_max: usize) -> usize {
    let decoder = Decoder::new(SYSTEM, SIZE, &wal.history());
    let mut reader = wal.reader(start());
    let mut records = 0;
    while reader.position() < end {
        match reader.read(Lsn::MAX, bytes_max).expect("readable") {
            Some(chunk) => {
                for record in decoder.decode(chunk.start, &chunk.bytes) {
                    record.expect("a good record");
                    records += 1;
                }
            }
            None => std::thread::yield_now(),
        }
    }
    records
}

#[test]
fn readers_follow_while_it_is_written() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (wal, _) = Wal::open(Arc::new(RealFiles), config(dir.path()), Lsn::INVALID).expect("new");
    wal.begin_timeline(&history(&[(1, start())])).expect("the first timeline");
    let timeline = wal.history().latest();
    let mut appender = Appender::new(SYSTEM, SIZE, timeline, start());
    let mut frames = Vec::new();
    for number in 0..400_u64 {
        let begin = appender.next();
        let mut bytes = bytes::BytesMut::new();
        appender
            .append(&mut bytes, &commit(number, 50 + usize::try_from(number * 37 % 20_000).expect("small")), TIME_US)
            .expect("fits");
        frames.push((begin, bytes.freeze()));
    }
    let end = appender.next();
    std::thread::scope(|scope| {
        let readers = [300_usize, 64 << 10].map(|bytes_max| {
            let wal = wal.clone();
            scope.spawn(move || follow(&wal, end, bytes_max))
        });
        for (number, (begin, bytes)) in frames.into_iter().enumerate() {
            wal.append(begin, bytes).expect("open");
            if number % 16 == 0 {
                wal.flush().expect("no fault");
            }
        }
        let counts = readers.map(|reader| reader.join().expect("no panic"));
        assert!(counts[0] == counts[1] && counts[0] >= 400, "{counts:?}");
    });
    assert_eq!(wal.flush().expect("no fault"), end);
    assert!(wal.memory_bytes() <= 200_000);
    let content = read_all(&wal, start(), 64 << 10);
    wal.close().expect("no fault");
    drop(wal);

    let (wal, recovery) = Wal::open(Arc::new(RealFiles), config(dir.path()), end).expect("clean");
    assert_eq!((recovery.end.lsn, recovery.truncated), (end, None));
    assert!(read_all(&wal, start(), 64 << 10) == content);
    wal.truncate(start()).expect("to the begin");
    assert_eq!(wal.end().lsn, start());
}
