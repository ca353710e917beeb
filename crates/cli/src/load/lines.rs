//! Lines of a file, with their numbers and a bound on their length.

use std::io::{BufRead, Read};
use std::sync::Arc;

use crate::load::LoadError;

/// A line, in bytes. A value of 4 MiB escaped as `\u00XX` has 24 MiB.
pub const LINE_BYTES_MAX: usize = 32 << 20;

/// One line without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub number: u64,
    pub text: Vec<u8>,
}

impl Line {
    /// Whether it has nothing but blanks.
    pub fn is_blank(&self) -> bool {
        self.text.iter().all(u8::is_ascii_whitespace)
    }
}

/// Reads lines, and can look at the first that says something.
pub struct Lines {
    inner: Box<dyn BufRead>,
    file: Arc<str>,
    number: u64,
    peeked: Option<Line>,
}

impl Lines {
    /// Of a file that errors call `file`.
    pub fn new(inner: Box<dyn BufRead>, file: Arc<str>) -> Self {
        Self { inner, file, number: 0, peeked: None }
    }

    /// An error at `line`.
    pub fn malformed(&self, line: u64, what: impl Into<String>) -> LoadError {
        LoadError::Malformed { file: self.file.to_string(), line, what: what.into() }
    }

    /// The next line; none at the end.
    pub fn next(&mut self) -> Result<Option<Line>, LoadError> {
        if let Some(line) = self.peeked.take() {
            return Ok(Some(line));
        }
        let mut text = Vec::new();
        let limit = LINE_BYTES_MAX as u64 + 1;
        let read = self.inner.by_ref().take(limit).read_until(b'\n', &mut text);
        let read = read.map_err(|source| LoadError::Io { what: "read", file: self.file.to_string(), source })?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if text.last() == Some(&b'\n') {
            text.pop();
        } else if text.len() > LINE_BYTES_MAX {
            return Err(self.malformed(self.number, format!("the line has more than {LINE_BYTES_MAX} bytes")));
        }
        if text.last() == Some(&b'\r') {
            text.pop();
        }
        Ok(Some(Line { number: self.number, text }))
    }

    /// The first byte that is no blank, of the lines that are left; none if there is none. Blank lines before it are
    /// dropped.
    pub fn peek_byte(&mut self) -> Result<Option<u8>, LoadError> {
        while let Some(line) = self.next()? {
            if let Some(byte) = line.text.iter().copied().find(|byte| !byte.is_ascii_whitespace()) {
                self.peeked = Some(line);
                return Ok(Some(byte));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
pub fn lines(text: &'static [u8]) -> Lines {
    Lines::new(Box::new(text), "input".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_with_and_without_an_end() {
        let mut lines = lines(b"a\r\n\nb");
        let mut all = Vec::new();
        while let Some(line) = lines.next().expect("a line") {
            all.push((line.number, line.text));
        }
        assert_eq!(all, [(1, b"a".to_vec()), (2, Vec::new()), (3, b"b".to_vec())]);
    }

    #[test]
    fn a_look_ahead_loses_nothing() {
        let mut lines = lines(b"\n \n  {x\ny");
        assert_eq!(lines.peek_byte().expect("a byte"), Some(b'{'));
        assert_eq!(lines.next().expect("a line").map(|line| line.number), Some(3));
        assert_eq!(lines.peek_byte().expect("a byte"), Some(b'y'));
        lines.next().expect("a line");
        assert_eq!(lines.peek_byte().expect("the end"), None);
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let endless = std::io::BufReader::new(std::io::repeat(b'x'));
        let error = Lines::new(Box::new(endless), "endless".into()).next().expect_err("a bound");
        assert!(error.to_string().starts_with("endless, line 1: the line has more than"), "{error}");
    }
}
