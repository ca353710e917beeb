use tempfile::TempDir;
use understudy_types::{Position, TimelineHistory};

use super::*;
use crate::seed::digest::Hasher;
use crate::seed::manifest::FileEntry;

fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(bytes);
    hasher.finish()
}

fn manifest(files: &[(&str, &[u8])]) -> Manifest {
    let entry = |(name, bytes): &(&str, &[u8])| FileEntry {
        name: (*name).to_owned(),
        size: bytes.len() as u64,
        digest: digest(bytes),
    };
    Manifest { at: Position::default(), history: TimelineHistory::new(), files: files.iter().map(entry).collect() }
}

fn objects() -> (TempDir, Objects) {
    let dir = tempfile::tempdir().unwrap();
    let objects = Objects::open(dir.path()).unwrap();
    (dir, objects)
}

#[test]
fn only_what_is_nowhere_here_is_asked_for() {
    let (dir, objects) = objects();
    let own = dir.path().join("store");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("000009.sst"), b"own table").unwrap();
    fs::write(own.join("000010.sst"), b"else's!!!").unwrap();
    fs::write(own.join("CURRENT"), b"current").unwrap();
    fs::write(objects.path(digest(b"left over")), b"left over").unwrap();
    fs::write(objects.part(digest(b"half of it")), b"half").unwrap();
    fs::write(objects.part(digest(b"unverified")), b"unverified").unwrap();
    fs::write(objects.part(digest(b"torn bytes")), b"torn??????").unwrap();
    fs::write(objects.path(digest(b"unwanted")), b"unwanted").unwrap();
    let files: [(&str, &[u8]); 8] = [
        ("000001.sst", b"own table"),
        ("000002.sst", b"left over"),
        ("000003.sst", b"half of it"),
        ("000004.sst", b"unverified"),
        ("000005.sst", b"torn bytes"),
        ("000006.sst", b"half of it"),
        ("CURRENT", b"current"),
        ("empty.log", b""),
    ];
    let manifest = manifest(&files);
    let plan = objects.plan(&manifest, &[own, dir.path().join("none")], &CancellationToken::new()).unwrap();
    let missing: Vec<_> = plan.missing.iter().map(|file| (file.index, file.size, file.offset)).collect();
    assert_eq!(missing, [(2, 10, 4), (4, 10, 0), (6, 7, 0)]);
    assert_eq!((plan.bytes_total, plan.bytes_reused, plan.bytes_missing()), (55, 32, 23));
    assert!(!objects.path(digest(b"unwanted")).exists());

    for (bytes, _) in [(&b"half of it"[..], 0), (b"torn bytes", 0), (b"current", 0)] {
        fs::write(objects.path(digest(bytes)), bytes).unwrap();
    }
    let target = dir.path().join("new").join("store");
    objects.assemble(&manifest, &target).unwrap();
    for (name, bytes) in files {
        assert_eq!(fs::read(target.join(name)).unwrap(), bytes, "{name}");
    }
}
