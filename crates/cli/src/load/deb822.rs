//! Debian control files (deb822(5)): stanzas of `Field: value`, separated by blank lines.
//!
//! | line | what it is |
//! |---|---|
//! | `Package: bash` | a field; names are compared without regard to case |
//! | ` more of it` | continues the field above: begins with a blank or a tab |
//! | `# text` | a comment: dropped |
//! | blank | ends the stanza |
//!
//! A stanza becomes a record: key `pkg/<Package>/<Version>/<Architecture>`, with `-` for a version or an architecture
//! that it lacks (dpkg has such stanzas for packages that are not installed), and the stanza's lines as the value.

use bytes::Bytes;
use understudy_types::limits::VALUE_BYTES_MAX;

use crate::load::LoadError;
use crate::load::lines::{Line, Lines};
use crate::load::source::Parsed;

/// The fields that make the key.
const KEY_FIELDS: [&str; 3] = ["Package", "Version", "Architecture"];

/// A stanza under construction.
#[derive(Default)]
struct Stanza {
    /// Of its first line.
    line: u64,
    text: Vec<u8>,
    fields: [Option<Vec<u8>>; 3],
}

/// The next record; none at the end.
pub fn next(lines: &mut Lines) -> Result<Option<Parsed>, LoadError> {
    let mut stanza = Stanza::default();
    while let Some(line) = lines.next()? {
        if line.text.first() == Some(&b'#') {
            continue;
        }
        if !line.is_blank() {
            stanza.take(&line, lines)?;
        } else if !stanza.text.is_empty() {
            break;
        }
    }
    if stanza.text.is_empty() {
        return Ok(None);
    }
    stanza.finish(lines).map(Some)
}

impl Stanza {
    fn take(&mut self, line: &Line, lines: &Lines) -> Result<(), LoadError> {
        let refuse = |what: &str| Err(lines.malformed(line.number, what));
        if self.text.is_empty() {
            self.line = line.number;
        } else {
            self.text.push(b'\n');
        }
        let continues = matches!(line.text.first(), Some(b' ' | b'\t'));
        if continues && self.text.is_empty() {
            return refuse("a stanza begins with a continuation line; expected \"Field: value\"");
        }
        if !continues {
            let Some((name, value)) = split_field(&line.text) else {
                return refuse(
                    "not a line of a control file; expected \"Field: value\", or a blank \
                     before what continues the field above",
                );
            };
            if let Some(index) = KEY_FIELDS.iter().position(|field| field.as_bytes().eq_ignore_ascii_case(name)) {
                if self.fields[index].is_some() {
                    return refuse(&format!("the stanza has a second field {}", KEY_FIELDS[index]));
                }
                self.fields[index] = Some(value.to_vec());
            }
        }
        self.text.extend_from_slice(&line.text);
        if self.text.len() > VALUE_BYTES_MAX {
            return Err(lines.malformed(
                self.line,
                format!("the stanza has more than {VALUE_BYTES_MAX} bytes, the limit of a value"),
            ));
        }
        Ok(())
    }

    fn finish(self, lines: &Lines) -> Result<Parsed, LoadError> {
        let [package, version, architecture] = self.fields.map(|field| field.filter(|value| !value.is_empty()));
        let Some(package) = package else {
            return Err(lines.malformed(self.line, "the stanza that begins here has no field Package"));
        };
        let or_dash = |field: Option<Vec<u8>>| field.unwrap_or_else(|| b"-".to_vec());
        let key = [b"pkg".to_vec(), package, or_dash(version), or_dash(architecture)].join(&b'/');
        Ok(Parsed { key, value: Bytes::from(self.text), line: self.line })
    }
}

/// A field's name and its value without blanks around it.
fn split_field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let well_formed = !name.is_empty() && name[0] != b'-' && name.iter().all(u8::is_ascii_graphic);
    well_formed.then_some((name, value.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::lines::lines;

    fn all(text: &'static [u8]) -> Vec<(String, String, u64)> {
        let mut lines = lines(text);
        let mut records = Vec::new();
        while let Some(record) = next(&mut lines).expect("a record") {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
            records.push((text(&record.key), text(&record.value), record.line));
        }
        records
    }

    fn refusal(text: &'static [u8]) -> String {
        let mut lines = lines(text);
        loop {
            match next(&mut lines) {
                Ok(Some(_)) => {}
                Ok(None) => panic!("not refused"),
                Err(error) => return error.to_string(),
            }
        }
    }

    #[test]
    fn stanzas_become_records() {
        let text =
            b"\n# a comment\nPackage: bash\nVersion: 5.2-1\nArchitecture: amd64\nDescription: shell\n a: long\n .\n\
                     \tstory\n\n \n\
                     package:libc6\n# in between\nVERSION: 2.36 \nArchitecture: all";
        assert_eq!(
            all(text),
            [
                (
                    "pkg/bash/5.2-1/amd64".to_owned(),
                    "Package: bash\nVersion: 5.2-1\nArchitecture: amd64\nDescription: shell\n a: long\n .\n\tstory"
                        .to_owned(),
                    3
                ),
                ("pkg/libc6/2.36/all".to_owned(), "package:libc6\nVERSION: 2.36 \nArchitecture: all".to_owned(), 12),
            ]
        );
    }

    #[test]
    fn an_empty_file_has_no_records() {
        assert_eq!(all(b""), []);
        assert_eq!(all(b"\n# nothing\n\n"), []);
    }

    #[test]
    fn a_package_that_was_never_installed_has_a_key_too() {
        assert_eq!(all(b"Package: x\nStatus: unknown ok not-installed\n")[0].0, "pkg/x/-/-");
        assert_eq!(all(b"Package: x\nVersion:\n")[0].0, "pkg/x/-/-");
    }

    #[test]
    fn windows_line_ends_do_not_end_up_in_keys() {
        assert_eq!(all(b"Package: x\r\nVersion: 1\r\nArchitecture: all\r\n\r\nPackage: y\r\n").len(), 2);
    }

    #[test]
    fn what_is_no_stanza_is_named_with_its_line() {
        for (text, line, hint) in [
            (&b"Package: a\n\nVersion: 1\nArchitecture: all\n"[..], 3, "no field Package"),
            (b"Package:\n", 1, "no field Package"),
            (b"Package: a\nnonsense\n", 2, "Field: value"),
            (b"Package: a\n: x\n", 2, "Field: value"),
            (b"Package: a\n-x: y\n", 2, "Field: value"),
            (b"\n continued\n", 2, "continuation"),
            (b"Package: a\nVersion: 1\nversion: 2\n", 3, "second field Version"),
        ] {
            let error = refusal(text);
            assert!(error.starts_with(&format!("input, line {line}: ")) && error.contains(hint), "{error}");
        }
    }

    #[test]
    fn a_stanza_without_end_is_refused() {
        let long = std::iter::once(b"Package: a\n".to_vec())
            .chain((0..5).map(|_| [b" ".to_vec(), vec![b'x'; 1 << 20], b"\n".to_vec()].concat()));
        let text: &'static [u8] = Box::leak(long.collect::<Vec<_>>().concat().into_boxed_slice());
        let error = refusal(text);
        assert!(error.starts_with("input, line 1: the stanza has more than 4194304 bytes"), "{error}");
    }
}
