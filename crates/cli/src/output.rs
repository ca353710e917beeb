//! Printing: tables, JSON, bytes.

use std::io::{self, Write};

use bytes::Bytes;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use understudy_types::{Lsn, Position};

/// A table without borders: columns of text to the left, of numbers to the right.
pub struct Grid {
    table: Table,
    numeric: Vec<bool>,
}

impl Grid {
    /// A table with this header; columns whose name begins with `>` hold numbers.
    pub fn new(header: &[&str]) -> Self {
        let numeric: Vec<bool> = header.iter().map(|name| name.starts_with('>')).collect();
        let mut grid = Self { table: Table::new(), numeric };
        grid.table.load_style(presets::NOTHING);
        let names: Vec<String> = header.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
        let cells = grid.cells(names);
        grid.table.set_header(cells);
        grid
    }

    /// One more row.
    pub fn row(&mut self, cells: Vec<String>) {
        let cells = self.cells(cells);
        self.table.add_row(cells);
    }

    fn cells(&self, texts: Vec<String>) -> Vec<Cell> {
        let alignment = |numeric: bool| if numeric { CellAlignment::Right } else { CellAlignment::Left };
        texts
            .into_iter()
            .zip(&self.numeric)
            .map(|(text, numeric)| Cell::new_owned(text).set_alignment(alignment(*numeric)))
            .collect()
    }

    /// The lines, without blanks at either end.
    pub fn render(&self) -> String {
        let lines: Vec<String> = self.table.lines().map(|line| line.trim_end().to_owned()).collect();
        let indent = lines.iter().map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
        lines.iter().map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect()
    }
}

/// Writes text to standard output.
pub fn print(text: &str) -> io::Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes bytes to standard output. A reader that has gone is no error: `head` has what it wanted.
pub fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result,
    }
}

/// Writes one JSON value as one line.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print(&format!("{}\n", serde_json::to_string(value)?))?)
}

/// Adds bytes to a JSON object: under `name` where they are text, else in base64 under `name_base64`.
pub fn insert_bytes(object: &mut serde_json::Map<String, serde_json::Value>, name: &str, bytes: &Bytes) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), base64(bytes).into()),
    };
}

/// A position in JSON: the LSN in bytes.
#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq)]
pub struct JsonPosition {
    pub timeline: u32,
    pub lsn: u64,
}

impl From<Position> for JsonPosition {
    fn from(position: Position) -> Self {
        Self { timeline: position.timeline.get(), lsn: position.lsn.get() }
    }
}

/// An LSN in a table: none is a dash.
pub fn lsn_text(lsn: u64) -> String {
    if lsn == 0 { "-".to_owned() } else { Lsn::new(lsn).to_string() }
}

/// A number of bytes for people: at most four digits and a unit.
pub fn bytes_text(bytes: u64) -> String {
    let mut rest = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if rest < 10_000 {
            return format!("{rest} {unit}");
        }
        rest /= 1024;
    }
    format!("{rest} TiB")
}

/// A text in a table: none is a dash.
pub fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// RFC 4648, section 4.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let sextet = (group >> (18 - 6 * index)) & 0x3f;
            let letter = ALPHABET[usize::try_from(sextet).expect("six bits")];
            out.push(if index <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

/// Unix milliseconds as RFC 3339 in UTC.
pub fn time_text(unix_ms: i64) -> String {
    let (days, ms) = (unix_ms.div_euclid(86_400_000), unix_ms.rem_euclid(86_400_000));
    // Days since 1 March of the year 0, in eras of 400 years: H. Hinnant, "chrono-compatible low-level date
    // algorithms".
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time_text(951_827_696_789), "2000-02-29T12:34:56.789Z");
        assert_eq!(time_text(1_796_083_199_999), "2026-11-30T23:59:59.999Z");
        assert_eq!(time_text(-1), "1969-12-31T23:59:59.999Z");
    }

    #[test]
    fn numbers_stand_to_the_right() {
        let mut grid = Grid::new(&["NAME", ">BYTES"]);
        grid.row(vec!["a".to_owned(), "7".to_owned()]);
        grid.row(vec!["bcdef".to_owned(), "12345".to_owned()]);
        assert_eq!(grid.render(), "NAME   BYTES\na          7\nbcdef  12345\n");
    }

    #[test]
    fn bytes_in_json_are_text_or_base64() {
        let mut object = serde_json::Map::new();
        insert_bytes(&mut object, "key", &Bytes::from_static(b"text"));
        insert_bytes(&mut object, "value", &Bytes::from_static(b"\xff"));
        assert_eq!(serde_json::Value::Object(object), serde_json::json!({"key": "text", "value_base64": "/w=="}));
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes_text(0), "0 B");
        assert_eq!(bytes_text(9_999), "9999 B");
        assert_eq!(bytes_text(16 << 20), "16 MiB");
    }
}
