use understudy_wal::files::RealFiles;

use super::*;

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn open(path: &Path, node: &str) -> Result<DataDir, DataDirError> {
    DataDir::open(&RealFiles, path, &name(node), SegmentSize::DEFAULT)
}

#[test]
fn a_directory_keeps_its_identity_and_an_emptied_one_gets_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = open(dir.path(), "n1").expect("made").identity().clone();
    let again = open(dir.path(), "n1").expect("reopened").identity().clone();
    assert_eq!(first, again);
    fs::remove_dir_all(dir.path()).expect("emptied");
    let emptied = open(dir.path(), "n1").expect("made anew").identity().clone();
    assert_ne!(first.node_id, emptied.node_id);
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let held = open(dir.path(), "n1").expect("made");
    assert!(matches!(open(dir.path(), "n1"), Err(DataDirError::Locked { .. })));
    drop(held);
    open(dir.path(), "n1").expect("free again");
}

#[test]
fn refuses_the_directory_of_another_node_cluster_or_version() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut held = open(dir.path(), "n1").expect("made");
    held.join_cluster(&RealFiles, SystemId::new(7)).expect("joined");
    held.join_cluster(&RealFiles, SystemId::new(7)).expect("the same again");
    let other = held.join_cluster(&RealFiles, SystemId::new(8)).expect_err("another cluster");
    assert!(
        other.to_string().contains("0000000000000007") && other.to_string().contains("0000000000000008"),
        "{other}"
    );
    drop(held);

    let error = open(dir.path(), "n2").expect_err("another node");
    assert!(error.to_string().contains("\"n1\"") && error.to_string().contains("\"n2\""), "{error}");
    let again =
        DataDir::open(&RealFiles, dir.path(), &name("n1"), SegmentSize::MIN).expect("the size is not a new one");
    assert_eq!(again.identity().segment_size, SegmentSize::DEFAULT);
    drop(again);

    let path = dir.path().join("identity");
    let text = fs::read_to_string(&path).expect("text").replace("\"format_version\": 1", "\"format_version\": 99");
    fs::write(&path, text).expect("written");
    let error = open(dir.path(), "n1").expect_err("another version");
    assert!(matches!(error, DataDirError::FormatVersion { found: 99, expected: FORMAT_VERSION, .. }), "{error}");
    fs::write(&path, "nonsense").expect("written");
    assert!(matches!(open(dir.path(), "n1"), Err(DataDirError::Malformed { .. })));
}

#[test]
fn refuses_a_directory_with_foreign_files() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("thesis.tex"), "precious").expect("written");
    assert!(matches!(open(dir.path(), "n1"), Err(DataDirError::Foreign { .. })));
}
