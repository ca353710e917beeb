//! The `.history` files: which chain of timelines this log is on.
//!
//! `TTTTTTTT.history` holds the history up to timeline `T`, one switch a line, in PostgreSQL's three columns
//! (parent, switch LSN, reason, parted by tabs), and a last line for the timeline itself:
//!
//! ```text
//! 0<TAB>0/01000000<TAB>timeline 1 begins
//! 1<TAB>0/0523A8F0<TAB>timeline 2 begins
//! 2<TAB>-<TAB>present
//! ```
//!
//! The timeline that a switch opens is the parent on the next line. Lines that begin with `#` and empty lines are
//! skipped. The chain in force is that of the highest timeline that has a file. A file is made in one step
//! (temporary, fsync, rename, fsync of the directory), after the segment file of its fork: while it is
//! not there the timeline has not begun on this node.

use std::fmt::Write as _;
use std::path::PathBuf;

use understudy_types::{Lsn, TimelineHistory, TimelineId, TimelineSwitch};

use crate::chain::Chain;
use crate::directory::Directory;
use crate::error::WalError;
use crate::files::{read_file, replace_file};

const PRESENT: &str = "-\tpresent";

fn path_of(directory: &Directory, timeline: TimelineId) -> PathBuf {
    directory.path.join(format!("{:08X}.history", timeline.get()))
}

pub(crate) fn print(history: &TimelineHistory) -> String {
    let mut text = String::from("# the history of this timeline: parent, switch LSN, reason\n");
    for switch in history.switches() {
        let TimelineSwitch { timeline, parent, switch_lsn } = switch;
        writeln!(text, "{parent}\t{switch_lsn}\ttimeline {timeline} begins").expect("a string takes it");
    }
    writeln!(text, "{}\t{PRESENT}", history.latest()).expect("a string takes it");
    text
}

/// The history in `text`; otherwise the number of the line that is wrong and why.
pub(crate) fn parse(text: &str) -> Result<TimelineHistory, (usize, String)> {
    let mut history = TimelineHistory::new();
    let mut pending: Option<(TimelineId, Lsn)> = None;
    let mut complete = false;
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let wrong = |reason: String| (number, reason);
        if complete {
            return Err(wrong("a line behind that of the present timeline".to_owned()));
        }
        let (first, rest) = line.split_once('\t').ok_or_else(|| wrong("no tab".to_owned()))?;
        let parent = if first == "0" { Ok(TimelineId::NONE) } else { first.parse() };
        let parent: TimelineId = parent.map_err(|error| wrong(error.to_string()))?;
        if let Some((before, switch_lsn)) = pending.take() {
            let switch = TimelineSwitch { timeline: parent, parent: before, switch_lsn };
            history.push(switch).map_err(|error| wrong(error.to_string()))?;
        }
        if rest == PRESENT {
            complete = true;
            continue;
        }
        let lsn = rest.split('\t').next().unwrap_or(rest);
        pending =
            Some((parent, lsn.parse().map_err(|error: understudy_types::ParseLsnError| wrong(error.to_string()))?));
    }
    if complete && history.latest() != TimelineId::NONE {
        Ok(history)
    } else {
        Err((text.lines().count() + 1, "the file ends before the line of the present timeline".to_owned()))
    }
}

/// The chain in force: that of the highest timeline with a file; empty when there is none.
pub(crate) fn load(directory: &Directory) -> Result<Chain, WalError> {
    match directory.histories()?.last() {
        Some(timeline) => read(directory, *timeline),
        None => Ok(Chain::default()),
    }
}

fn read(directory: &Directory, timeline: TimelineId) -> Result<Chain, WalError> {
    let path = path_of(directory, timeline);
    let bytes = read_file(&*directory.files, &path).map_err(WalError::io("read", &path))?.unwrap_or_default();
    let corrupt = |expected: &str, found: String| WalError::CorruptFile {
        path: path.clone(),
        expected: expected.to_owned(),
        found,
    };
    let text = String::from_utf8(bytes).map_err(|error| corrupt("text", error.to_string()))?;
    let history =
        parse(&text).map_err(|(line, reason)| corrupt("a timeline history", format!("line {line}: {reason}")))?;
    if history.latest() != timeline {
        return Err(corrupt(&format!("the history of timeline {timeline}"), format!("that of {}", history.latest())));
    }
    let begin = directory.segment_size.log_start();
    match history.switches().iter().find(|switch| switch.switch_lsn < begin) {
        Some(switch) => Err(corrupt(
            &format!("switches at or beyond the begin of the log at {begin}"),
            switch.switch_lsn.to_string(),
        )),
        None => Ok(Chain::new(history)),
    }
}

/// Puts a chain in force, durably, when it is later than all that have files.
pub(crate) fn store(directory: &Directory, chain: &Chain) -> Result<(), WalError> {
    let path = path_of(directory, chain.latest());
    replace_file(&*directory.files, &path, print(chain.history()).as_bytes()).map_err(WalError::io("write", &path))
}

/// Takes every file away, the latest first: what is left is a chain in every moment.
pub(crate) fn remove_all(directory: &Directory) -> Result<(), WalError> {
    for timeline in directory.histories()?.iter().rev() {
        directory.remove(&path_of(directory, *timeline))?;
    }
    Ok(())
}

/// Puts `chain` in force and takes the files of all later timelines away.
pub(crate) fn cut(directory: &Directory, chain: &Chain) -> Result<(), WalError> {
    let files = directory.histories()?;
    let later: Vec<TimelineId> = files.iter().copied().filter(|timeline| *timeline > chain.latest()).collect();
    if later.is_empty() {
        return Ok(());
    }
    if chain.latest() != TimelineId::NONE && !files.contains(&chain.latest()) {
        // Whoever wrote on a timeline made its file; should that be gone, the later ones' files hold all that it said.
        store(directory, chain)?;
    }
    for timeline in later.iter().rev() {
        directory.remove(&path_of(directory, *timeline))?;
    }
    directory.sync()
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
