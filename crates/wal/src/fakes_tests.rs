use super::*;
use crate::files::{read_file, replace_file};

fn disk() -> (SimFiles, PathBuf) {
    let files = SimFiles::new();
    let dir = PathBuf::from("/d");
    files.create_dir_all(&dir).expect("no fault");
    (files, dir)
}

#[test]
fn what_is_synced_survives_and_what_is_not_may_not() {
    let (files, dir) = disk();
    let path = dir.join("a");
    let file = files.create(&path).expect("no fault");
    file.write_all_at(0, &[1; 4096]).expect("no fault");
    file.sync_data().expect("no fault");
    files.sync_dir(&dir).expect("no fault");
    file.write_all_at(0, &[2; 4096]).expect("no fault");
    let mut torn = 0;
    for seed in 0..50 {
        let disk = files.fork();
        disk.crash(seed);
        let content = disk.content(&path).expect("its name is durable");
        assert!(content.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "sectors are whole");
        torn += usize::from(content.contains(&1) && content.contains(&2));
    }
    assert!(torn > 25, "writes are torn");
    assert!(file.write_all_at(0, &[3]).is_ok());
    files.crash(0);
    assert!(file.write_all_at(0, &[3]).is_err(), "files that were open are gone");
}

#[test]
fn a_name_is_durable_when_its_directory_was_synced() {
    let (files, dir) = disk();
    files.create(&dir.join("a")).expect("no fault");
    let survived = |files: &SimFiles| {
        (0..20)
            .filter(|seed| {
                let disk = files.fork();
                disk.crash(*seed);
                !disk.paths().is_empty()
            })
            .count()
    };
    assert!((1..20).contains(&survived(&files)));
    files.sync_dir(&dir).expect("no fault");
    assert_eq!(survived(&files), 20);
}

#[test]
fn a_failed_sync_loses_the_bytes_and_the_next_one_lies() {
    let (files, dir) = disk();
    replace_file(&files, &dir.join("a"), &[0; 512]).expect("no fault");
    let file = files.open(&dir.join("a")).expect("there");
    file.write_all_at(0, &[1; 512]).expect("no fault");
    files.plan(files.operations(), Fault::Error);
    assert!(file.sync_data().is_err());
    file.sync_data().expect("it lies");
    assert_eq!(files.content(&dir.join("a")).expect("there"), [1; 512]);
    files.crash(1);
    assert_eq!(files.content(&dir.join("a")).expect("there"), [0; 512]);
}

#[test]
fn a_small_file_is_replaced_in_one_step_wherever_it_crashes() {
    for operation in 0..5 {
        for seed in 0..20 {
            let (files, dir) = disk();
            let path = dir.join("a");
            replace_file(&files, &path, &[1; 2000]).expect("no fault");
            files.plan(files.operations() + operation, Fault::Crash);
            assert!(replace_file(&files, &path, &[2; 3000]).is_err());
            files.crash(seed);
            let content = read_file(&files, &path).expect("readable").expect("there");
            assert!(content == [1; 2000] || content == [2; 3000], "operation {operation}, seed {seed}");
        }
    }
}

#[test]
fn a_full_disk_refuses_more_but_not_what_is_allocated() {
    let (files, dir) = disk();
    files.set_capacity(Some(1000));
    let file = files.create(&dir.join("a")).expect("no bytes yet");
    file.write_all_at(0, &[0; 1000]).expect("just fits");
    file.write_all_at(500, &[1; 500]).expect("allocated");
    assert_eq!(file.write_all_at(999, &[1; 2]).expect_err("full").kind(), ErrorKind::StorageFull);
}
