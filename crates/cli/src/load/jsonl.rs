//! JSON lines: `{"key": "...", "value": "..."}`, one a line.

use bytes::Bytes;
use serde::Deserialize;

use crate::load::LoadError;
use crate::load::lines::Lines;
use crate::load::source::Parsed;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRecord {
    key: String,
    value: String,
}

/// The next record; none at the end. Blank lines are passed over.
pub fn next(lines: &mut Lines) -> Result<Option<Parsed>, LoadError> {
    loop {
        let Some(line) = lines.next()? else { return Ok(None) };
        if line.is_blank() {
            continue;
        }
        let record: JsonRecord = serde_json::from_slice(&line.text).map_err(|error| {
            // The parser sees one line only: its own line number would mislead.
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or_default();
            let what =
                format!("{what} at column {}; expected {{\"key\": \"...\", \"value\": \"...\"}}", error.column());
            lines.malformed(line.number, what)
        })?;
        return Ok(Some(Parsed { key: record.key.into(), value: Bytes::from(record.value), line: line.number }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::lines::lines;

    #[test]
    fn records_and_blank_lines() {
        let mut lines = lines(b"{\"key\":\"a\",\"value\":\"1\"}\n\n {\"value\":\"\\u00fc\\n\",\"key\":\"b\"} \n");
        let first = next(&mut lines).expect("a record").expect("one");
        assert_eq!((first.key.as_slice(), &first.value[..], first.line), (&b"a"[..], &b"1"[..], 1));
        let second = next(&mut lines).expect("a record").expect("one");
        assert_eq!((second.key.as_slice(), &second.value[..], second.line), (&b"b"[..], "ü\n".as_bytes(), 3));
        assert_eq!(next(&mut lines).expect("the end"), None);
    }

    #[test]
    fn what_is_no_record_is_named_with_its_line() {
        for (text, hint) in [
            (&b"\n{\"key\":\"a\"}"[..], "missing field `value`"),
            (b"\n{\"key\":\"a\",\"value\":1}", "expected a string"),
            (b"\n{\"key\":\"a\",\"value\":\"b\",\"ttl\":1}", "unknown field `ttl`"),
            (b"\n{\"key\":\"a\"", "EOF"),
            (b"\nnonsense", "expected"),
            (b"\n{\"key\":\"\xff\",\"value\":\"\"}", "column"),
        ] {
            let error = next(&mut lines(text)).expect_err("a refusal").to_string();
            assert!(error.starts_with("input, line 2: ") && error.contains(hint), "{error}");
        }
    }
}
