//! Sizes and lengths of time as people write them: `16MiB`, `5min`, `500ms`.
//!
//! What is printed parses to the same number again: the largest unit that divides it, and plain `0`. A number other
//! than zero needs its unit; a size may also be a plain number of bytes.

/// Units of time, in milliseconds.
pub const TIME: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of size, in bytes.
pub const SIZE: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads a number with one of these units; none when it is not one, or overflows. A space may stand before the unit.
fn parse(text: &str, units: &[(&str, u64)], plain: Option<u64>) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let factor = match unit.trim_start() {
        "" if number == 0 => Some(1),
        "" => plain,
        unit => units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor),
    };
    number.checked_mul(factor?)
}

fn print(number: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().find(|(_, factor)| number != 0 && number.is_multiple_of(*factor));
    unit.map_or_else(|| number.to_string(), |(name, factor)| format!("{}{name}", number / factor))
}

/// Milliseconds; none when the text is no length of time.
pub fn parse_ms(text: &str) -> Option<u64> {
    parse(text, &TIME, None)
}

/// `5min`
pub fn print_ms(ms: u64) -> String {
    print(ms, &TIME)
}

/// Bytes; none when the text is no size.
pub fn parse_bytes(text: &str) -> Option<u64> {
    parse(text, &SIZE, Some(1))
}

/// `16MiB`
pub fn print_bytes(bytes: u64) -> String {
    print(bytes, &SIZE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_times_are_read_and_printed() {
        for (text, ms) in [("500ms", 500), ("1s", 1_000), ("5min", 300_000), ("1h", 3_600_000), ("2d", 172_800_000)] {
            assert_eq!((parse_ms(text), print_ms(ms).as_str()), (Some(ms), text));
        }
        for (text, bytes) in [("16MiB", 16 << 20), ("1GiB", 1 << 30), ("3KiB", 3 << 10), ("17B", 17)] {
            assert_eq!((parse_bytes(text), print_bytes(bytes).as_str()), (Some(bytes), text));
        }
        assert_eq!((parse_ms("0"), print_ms(0).as_str()), (Some(0), "0"));
        assert_eq!((parse_ms(" 1500 ms "), print_ms(1_500).as_str()), (Some(1_500), "1500ms"));
        assert_eq!(parse_bytes("16777216"), Some(16 << 20));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "5", "s", "-1s", "1.5s", "1 s s", "1S", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse_ms(text), None, "{text}");
        }
        for text in ["", "MiB", "16MB", "16mb", "-1", "99999999999999999999GiB", "18446744073709551615KiB"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(number: u64) {
            prop_assert_eq!(parse_ms(&print_ms(number)), Some(number));
            prop_assert_eq!(parse_bytes(&print_bytes(number)), Some(number));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let (ms, bytes) = (parse_ms(&text), parse_bytes(&text));
            prop_assert!(ms.is_none_or(|ms| parse_ms(&print_ms(ms)) == Some(ms)));
            prop_assert!(bytes.is_none_or(|bytes| parse_bytes(&print_bytes(bytes)) == Some(bytes)));
        }
    }
}
