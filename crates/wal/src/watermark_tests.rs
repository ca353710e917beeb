use super::*;
use crate::fakes::SimFiles;
use crate::files::Files;
use crate::tests::{directory, position, start};

fn made() -> (SimFiles, Directory) {
    let files = SimFiles::new();
    let directory = directory(&files);
    files.create_dir_all(&directory.path).expect("no fault is planned");
    (files, directory)
}

#[test]
fn a_claim_survives_and_a_torn_one_leaves_the_one_before() {
    let (files, directory) = made();
    let mut watermark = Watermark::open(&directory).expect("made");
    assert_eq!(watermark.position(), position(0, start()));
    for step in 1..6_u64 {
        watermark.raise(position(1, start().advance(step * 8))).expect("raised");
    }
    let reopened = Watermark::open(&directory).expect("there");
    assert_eq!(reopened.position(), position(1, start().advance(40)));
    // The fifth claim is the sixth of the file, in slot 1; a flipped bit stands for a torn write.
    files.flip_bit(&directory.path.join("watermark"), 2 * SECTOR_BYTES + 9, 3);
    assert_eq!(Watermark::open(&directory).expect("there").position(), position(1, start().advance(32)));
    files.flip_bit(&directory.path.join("watermark"), SECTOR_BYTES + 9, 3);
    assert!(matches!(Watermark::open(&directory), Err(WalError::CorruptFile { .. })));
}

#[test]
fn a_lowered_claim_does_not_come_back() {
    let (files, directory) = made();
    let mut watermark = Watermark::open(&directory).expect("made");
    watermark.raise(position(1, start().advance(4000))).expect("raised");
    watermark.lower(position(1, start().advance(80))).expect("lowered");
    for offset in [SECTOR_BYTES, 2 * SECTOR_BYTES] {
        let torn = files.fork();
        torn.flip_bit(&directory.path.join("watermark"), offset, 0);
        let position_after = Watermark::open(&crate::tests::directory(&torn)).expect("there").position();
        assert_eq!(position_after, position(1, start().advance(80)));
    }
}

#[test]
#[should_panic(expected = "is not lowered")]
fn a_claim_is_never_lowered_by_accident() {
    let (_files, directory) = made();
    let mut watermark = Watermark::open(&directory).expect("made");
    watermark.raise(position(1, start().advance(80))).expect("raised");
    drop(watermark.raise(position(1, start())));
}

#[test]
fn another_clusters_directory_is_refused_with_both_values() {
    let (_files, directory) = made();
    Watermark::open(&directory).expect("made");
    let other = Directory { system_id: understudy_types::SystemId::new(0xabc), ..directory.clone() };
    let text = Watermark::open(&other).err().expect("another cluster").to_string();
    assert!(text.contains("0000000000005157") && text.contains("0000000000000abc"), "{text}");
    let other = Directory { segment_size: understudy_types::SegmentSize::DEFAULT, ..directory };
    let text = Watermark::open(&other).err().expect("another size").to_string();
    assert!(text.contains("the segment size is 1048576, expected 16777216"), "{text}");
}
