//! What a group commit costs, beside what the disk alone costs: a raw write and `fdatasync` of the same bytes into a
//! zero-filled file. The difference is ours; the rest is the disk's, and moves with the machine.
//!
//! Run with `cargo bench --profile dev -p benches` (one profile for all, so that nothing is built twice). The files lie in
//! the target directory, on a real disk.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use understudy_types::{Lsn, SegmentSize, SystemId, TimelineHistory, TimelineId, TimelineSwitch};
use understudy_wal::{Appender, CommitRecord, Decoder, Op, RealFiles, Record, Wal, WalConfig};

const SYSTEM: SystemId = SystemId::new(1);
const SIZE: SegmentSize = SegmentSize::DEFAULT;
const VALUE_BYTES: usize = 200;
const GROUPS: [usize; 3] = [1, 16, 256];

fn first_timeline() -> TimelineHistory {
    let switch = TimelineSwitch { timeline: TimelineId::FIRST, parent: TimelineId::NONE, switch_lsn: SIZE.log_start() };
    TimelineHistory::try_from(vec![switch]).expect("one timeline")
}

fn commit() -> Record {
    let (key, value) = (Bytes::from_static(b"pkg/understudy/1.0/amd64"), Bytes::from(vec![7; VALUE_BYTES]));
    Record::Commit(CommitRecord { request_id: None, ops: vec![Op::Put { key, value }] })
}

fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("the target directory takes files")
}

fn open(dir: &Path) -> Wal {
    let config = WalConfig::new(dir.join("wal"), SYSTEM, SIZE);
    let (wal, _) = Wal::open(Arc::new(RealFiles), config, Lsn::INVALID).expect("an empty directory");
    wal.begin_timeline(&first_timeline()).expect("the first timeline");
    wal
}

fn appender() -> Appender {
    Appender::new(SYSTEM, SIZE, TimelineId::FIRST, SIZE.log_start())
}

/// Lays out a group and appends each record by itself, as the sequencer does.
fn append_group(wal: &Wal, appender: &mut Appender, record: &Record, commits: usize) {
    for _ in 0..commits {
        let start = appender.next();
        let mut bytes = BytesMut::new();
        appender.append(&mut bytes, record, 0).expect("fits");
        wal.append(start, bytes.freeze()).expect("open");
    }
}

fn flush(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flush");
    group.sample_size(20).measurement_time(Duration::from_secs(5));
    let record = commit();
    for commits in GROUPS {
        group.throughput(Throughput::Elements(commits as u64));
        let dir = directory();
        let wal = open(dir.path());
        let mut appender = appender();
        group.bench_function(BenchmarkId::new("wal", commits), |bencher| {
            bencher.iter(|| {
                append_group(&wal, &mut appender, &record, commits);
                black_box(wal.flush().expect("no fault"))
            });
        });
        wal.close().expect("no fault");

        let mut bytes = BytesMut::new();
        let mut probe_appender = self::appender();
        for _ in 0..commits {
            probe_appender.append(&mut bytes, &record, 0).expect("fits");
        }
        let file = File::create(dir.path().join("probe")).expect("the target directory takes files");
        file.write_all_at(&vec![0; 16 << 20], 0).expect("there is room");
        file.sync_all().expect("no fault");
        let mut offset = 0;
        group.bench_function(BenchmarkId::new("raw_fdatasync", commits), |bencher| {
            bencher.iter(|| {
                file.write_all_at(&bytes, offset).expect("no fault");
                file.sync_data().expect("no fault");
                offset = (offset + bytes.len() as u64) % (15 << 20);
            });
        });
    }
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let mut bytes = BytesMut::new();
    let mut appender = appender();
    let record = commit();
    while bytes.len() < 256 << 10 {
        appender.append(&mut bytes, &record, 0).expect("fits");
    }
    let bytes = bytes.freeze();
    let decoder = Decoder::new(SYSTEM, SIZE, &first_timeline());
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("frame of 256 KiB", |bencher| {
        bencher.iter(|| decoder.decode(SIZE.log_start(), &bytes).map(|record| record.expect("good").end).max());
    });
    group.finish();
}

criterion_group!(benches, flush, decode);
criterion_main!(benches);
