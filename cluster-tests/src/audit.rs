//! Reads the WAL files themselves: what no answer of a server can gloss over.
//!
//! Below the safe LSN the segments of all nodes must be the same bytes (INV-BYTES), and along the chain of timelines
//! no request id may stand in two commits. Every segment from the first on must be there (INV-RETAIN). Files of servers that run are read: what lies below the safe LSN does not
//! change any more.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
use understudy_rpc::v1::HistoryResponse;
use understudy_types::{Lsn, RequestId, SegmentNo, SegmentSize, SystemId, TimelineHistory, TimelineId, TimelineSwitch};
use understudy_wal::segment::SEGMENT_HEADER_BYTES;
use understudy_wal::{Decoder, Record};

/// What is audited.
#[derive(Debug, Clone)]
pub struct Log {
    /// The cluster's.
    pub system_id: SystemId,
    /// Of every node's WAL.
    pub segment_size: SegmentSize,
    /// The final chain.
    pub timelines: TimelineHistory,
    /// All nodes have applied up to here, and it is the end of a record.
    pub upto: Lsn,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Commit records on the chain.
    pub commits: u64,
    /// Request ids with more than one commit record, and the ends of the first two.
    pub duplicated: Vec<(RequestId, Lsn, Lsn)>,
    /// Segments that were compared on all nodes, whole or in part.
    pub segments: u64,
    /// Where nodes differ, for people.
    pub differences: Vec<String>,
}

impl Findings {
    /// Whether at least one segment was compared, and all bytes agree.
    pub fn identical(&self) -> bool {
        self.segments > 0 && self.differences.is_empty()
    }
}

impl Log {
    /// Audits the WAL folders of all nodes, by name; the commits are read from the first.
    ///
    /// # Errors
    /// When a file cannot be read, or holds something else than records.
    pub fn audit(&self, folders: &[(String, PathBuf)]) -> Result<Findings> {
        let decoder = Decoder::new(self.system_id, self.segment_size, &self.timelines);
        let mut findings = Findings::default();
        let mut seen: HashMap<RequestId, Lsn> = HashMap::new();
        let mut segment = SegmentNo::FIRST;
        while self.segment_size.start_of(segment) < self.upto {
            let copies = folders.iter().map(|(name, folder)| {
                Ok((name, self.read(folder, segment).with_context(|| format!("WAL of {name}"))?))
            });
            let copies: Vec<(&String, Bytes)> = copies.collect::<Result<_>>()?;
            let Some(((first, bytes), others)) = copies.split_first() else { break };
            for (name, copy) in others {
                if let Some(at) = bytes.iter().zip(copy).position(|(one, other)| one != other) {
                    let lsn = self.segment_size.start_of(segment).advance(at as u64);
                    findings
                        .differences
                        .push(format!("{} differs between {first} and {name} at {lsn}", self.file_name(segment)));
                }
            }
            findings.segments += 1;
            self.count(&decoder, segment, bytes, &mut seen, &mut findings)?;
            segment = segment.next();
        }
        Ok(findings)
    }

    fn count(
        &self,
        decoder: &Decoder,
        segment: SegmentNo,
        bytes: &Bytes,
        seen: &mut HashMap<RequestId, Lsn>,
        findings: &mut Findings,
    ) -> Result<()> {
        // A fork's file has the header of its own timeline before records of an older one: it is not decoded here.
        let header = usize::try_from(SEGMENT_HEADER_BYTES).expect("a header is small").min(bytes.len());
        let start = self.segment_size.start_of(segment).advance(header as u64);
        for record in decoder.decode(start, &bytes.slice(header..)) {
            let record = record.with_context(|| format!("segment {}", self.file_name(segment)))?;
            let commit = match record.record {
                Record::Commit(commit) => commit,
                Record::EndOfRecovery { .. } | Record::Filler | Record::Noop | Record::GcHorizon(_) => continue,
            };
            findings.commits += 1;
            let Some(request_id) = commit.request_id else { continue };
            if let Some(before) = seen.insert(request_id, record.end) {
                findings.duplicated.push((request_id, before, record.end));
            }
        }
        Ok(())
    }

    /// What a node's file of the segment holds below the end.
    fn read(&self, folder: &Path, segment: SegmentNo) -> Result<Bytes> {
        let path = folder.join(self.file_name(segment));
        let mut bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let length = self.upto.saturating_since(self.segment_size.start_of(segment)).min(self.segment_size.get());
        let length = usize::try_from(length).context("a segment fits into memory")?;
        anyhow::ensure!(bytes.len() >= length, "{} has {} bytes, {length} are needed", path.display(), bytes.len());
        bytes.truncate(length);
        Ok(bytes.into())
    }

    /// PostgreSQL's name of the file that holds the segment on the chain: of the last timeline that has bytes in it.
    fn file_name(&self, segment: SegmentNo) -> String {
        let end = self.segment_size.start_of(segment.next()).min(self.upto);
        let spans = self.timelines.spans();
        let timeline = spans.iter().rev().find(|span| span.begin < end).map_or(TimelineId::NONE, |span| span.timeline);
        let per_high = (1_u64 << 32) / self.segment_size.get();
        format!("{:08X}{:08X}{:08X}", timeline.get(), segment.get() / per_high, segment.get() % per_high)
    }
}

/// The chain of timelines in a node's answer.
///
/// # Errors
/// When the answer is not a history.
pub fn timelines(response: &HistoryResponse) -> Result<TimelineHistory> {
    let switches = response.entries.iter().map(|entry| TimelineSwitch {
        timeline: TimelineId::new(entry.timeline),
        parent: TimelineId::new(entry.parent),
        switch_lsn: Lsn::new(entry.switch_lsn),
    });
    TimelineHistory::try_from(switches.collect::<Vec<_>>()).context("the node's timeline history does not continue")
}

/// The segment size, as the name and length of a node's segment files have it.
///
/// # Errors
/// When there is no segment file.
pub fn segment_size(folder: &Path) -> Result<SegmentSize> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let bytes = entry.metadata().with_context(|| format!("cannot look at {name}"))?.len();
            return SegmentSize::new(bytes).with_context(|| format!("segment {name}"));
        }
    }
    anyhow::bail!("{} has no segment", folder.display())
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use understudy_wal::{Appender, CommitRecord, Op};

    use super::*;

    const SIZE: SegmentSize = SegmentSize::MIN;

    fn commit(number: u8, value_bytes: usize) -> Record {
        let op = Op::Put { key: Bytes::from_static(b"k"), value: vec![number; value_bytes].into() };
        Record::Commit(CommitRecord { request_id: Some(RequestId::new([number; 16])), ops: vec![op] })
    }

    /// A log over several segments, written to `folder`, with these commits.
    fn write(folder: &Path, commits: &[u8]) -> Log {
        let system_id = SystemId::new(7);
        let mut timelines = TimelineHistory::new();
        let first =
            TimelineSwitch { timeline: TimelineId::FIRST, parent: TimelineId::NONE, switch_lsn: SIZE.log_start() };
        timelines.push(first).expect("the first");
        let mut appender = Appender::new(system_id, SIZE, TimelineId::FIRST, SIZE.log_start());
        let mut bytes = BytesMut::new();
        let mut upto = SIZE.log_start();
        for number in commits {
            upto = appender.append(&mut bytes, &commit(*number, 400_000), 0).expect("fits");
        }
        let log = Log { system_id, segment_size: SIZE, timelines, upto };
        let mut segment = SegmentNo::FIRST;
        for chunk in bytes.chunks(SIZE.get() as usize) {
            let mut file = chunk.to_vec();
            file.resize(SIZE.get() as usize, 0);
            std::fs::write(folder.join(log.file_name(segment)), file).expect("written");
            segment = segment.next();
        }
        log
    }

    fn folders(count: usize, commits: &[u8]) -> (Vec<tempfile::TempDir>, Vec<(String, PathBuf)>, Log) {
        let temporary: Vec<_> = (0..count).map(|_| tempfile::tempdir().expect("a directory")).collect();
        let logs: Vec<Log> = temporary.iter().map(|dir| write(dir.path(), commits)).collect();
        let folders = temporary.iter().enumerate().map(|(n, dir)| (format!("n{n}"), dir.path().to_owned())).collect();
        (temporary, folders, logs[0].clone())
    }

    #[test]
    fn bytes_equal_logs_are_identical_and_counted() {
        // INV-BYTES: five commits of 400 kB in segments of 1 MiB.
        let (_dirs, folders, log) = folders(3, &[1, 2, 3, 4, 5]);
        let findings = log.audit(&folders).expect("readable");
        assert_eq!((findings.commits, findings.segments), (5, 3));
        assert!(findings.identical() && findings.duplicated.is_empty(), "{findings:?}");
        assert_eq!(segment_size(&folders[0].1).expect("there"), SIZE);
    }

    #[test]
    fn a_request_id_in_two_commits_is_found() {
        let (_dirs, folders, log) = folders(1, &[1, 2, 1]);
        let findings = log.audit(&folders).expect("readable");
        assert_eq!(findings.duplicated.len(), 1);
        assert_eq!(findings.duplicated[0].0, RequestId::new([1; 16]));
    }

    #[test]
    fn bytes_that_differ_are_found_only_below_the_end() {
        // INV-BYTES.
        let (_dirs, folders, log) = folders(2, &[1, 2, 3]);
        let path = folders[1].1.join(log.file_name(SegmentNo::new(2)));
        let mut bytes = std::fs::read(&path).expect("there");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        assert!(log.audit(&folders).expect("readable").identical());
        bytes[1_000] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        let findings = log.audit(&folders).expect("the first node's is sound");
        assert!(!findings.identical());
        assert!(findings.differences[0].contains("n1"), "{:?}", findings.differences);
    }

    #[test]
    fn retained_a_segment_that_is_gone_is_an_error() {
        // INV-RETAIN: every segment from the first on is read on every node.
        let (_dirs, folders, log) = folders(2, &[1, 2, 3]);
        std::fs::remove_file(folders[1].1.join(log.file_name(SegmentNo::FIRST))).expect("removed");
        let error = format!("{:#}", log.audit(&folders).expect_err("a segment is missing"));
        assert!(error.contains("n1") && error.contains(&log.file_name(SegmentNo::FIRST)), "{error}");
    }

    #[test]
    fn a_log_without_segments_proves_nothing() {
        let (_dirs, folders, mut log) = folders(2, &[1]);
        log.upto = SIZE.log_start();
        assert!(!log.audit(&folders).expect("nothing to read").identical());
    }

    #[test]
    fn the_file_of_a_fork_is_that_of_the_last_timeline_in_the_segment() {
        let mut log = write(tempfile::tempdir().expect("a directory").path(), &[1]);
        let begin = SIZE.start_of(SegmentNo::new(3));
        for (timeline, parent, at) in [(2, 1, begin.advance(100)), (3, 2, begin.advance(500))] {
            let (timeline, parent) = (TimelineId::new(timeline), TimelineId::new(parent));
            log.timelines.push(TimelineSwitch { timeline, parent, switch_lsn: at }).expect("continues");
        }
        log.upto = begin.advance(600);
        let names = [2, 3].map(|number| log.file_name(SegmentNo::new(number)));
        assert_eq!(names, ["000000010000000000000002", "000000030000000000000003"]);
    }
}
