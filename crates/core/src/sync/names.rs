//! `synchronous_standby_names`: PostgreSQL's grammar (`syncrep_gram.y`, `syncrep_scanner.l`).
//!
//! | text | means |
//! |---|---|
//! | (empty) | nobody is waited for |
//! | `a, b` | `FIRST 1 (a, b)` |
//! | `2 (a, b, c)` | `FIRST 2 (a, b, c)` |
//! | `FIRST 2 (a, b, c)` | the two best of those that are there, by their place in the list |
//! | `ANY 2 (a, b, c)` | whichever two are first |
//! | `ANY 1 (*)` | any standby; `*` may also stand for the rest, as in `FIRST 1 (a, *)` |
//! | `"node-1", "any"` | quoted: every character may stand in a name, `""` for a quote |
//!
//! Keywords and names are compared without regard to ASCII case. An unquoted name has letters, digits, `_` and `$`
//! and begins with a letter or `_`; a number is a name too. A name that stands twice counts at its first place. A
//! number of standbys above the length of the list is accepted: commits then wait in mode `required`. A quoted
//! `"*"` is `*`, as in PostgreSQL.
//!
//! Where it differs: a number above 2147483647 is refused (PostgreSQL lets it overflow), and so is a text over
//! [`StandbyNames::BYTES_MAX`].

use std::fmt;
use std::iter::Peekable;
use std::str::{CharIndices, FromStr};

use understudy_types::NodeName;

/// A parsed `synchronous_standby_names`. Prints what parses to the same again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyNames {
    method: SyncMethod,
    /// Zero if and only if `names` is empty.
    acks: u32,
    names: Vec<StandbyName>,
}

/// How the sync standbys are chosen among the named ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMethod {
    /// By their place in the list: PostgreSQL's priority-based method.
    First,
    /// All are equal: PostgreSQL's quorum-based method.
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum StandbyName {
    /// `*`
    Everybody,
    Named(String),
}

/// A text is not a `synchronous_standby_names`. Columns count characters from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StandbyNamesError {
    /// Something else should stand here.
    #[error("synchronous_standby_names {text:?}: found {found} at column {column}, expected {expected}")]
    Unexpected {
        /// What was given.
        text: String,
        /// Where.
        column: usize,
        /// What stands there.
        found: String,
        /// What could stand there.
        expected: &'static str,
    },
    /// A quoted name does not end.
    #[error("synchronous_standby_names {text:?}: the quoted name at column {column} has no closing quote")]
    Unterminated {
        /// What was given.
        text: String,
        /// Where it begins.
        column: usize,
    },
    /// Zero standbys, or more than can be counted.
    #[error(
        "synchronous_standby_names {text:?}: the number of standbys at column {column} is {number}, expected 1 to 2147483647"
    )]
    Number {
        /// What was given.
        text: String,
        /// Where.
        column: usize,
        /// As it stands there.
        number: String,
    },
    /// The text is longer than the limit.
    #[error("synchronous_standby_names has {bytes} bytes, expected at most {}", StandbyNames::BYTES_MAX)]
    TooLong {
        /// Its length, as given or as it would be printed.
        bytes: usize,
    },
}

impl StandbyNames {
    /// The text, in bytes.
    pub const BYTES_MAX: usize = 8 << 10;
    const ACKS_MAX: u32 = i32::MAX.unsigned_abs();

    /// The empty setting: nobody is waited for.
    pub const fn nobody() -> Self {
        Self { method: SyncMethod::First, acks: 0, names: Vec::new() }
    }

    /// Reads a setting.
    ///
    /// # Errors
    /// When it is not in the grammar, too long, or asks for no standby: what stands where, and what should.
    pub fn parse(text: &str) -> Result<Self, StandbyNamesError> {
        if text.len() > Self::BYTES_MAX {
            return Err(StandbyNamesError::TooLong { bytes: text.len() });
        }
        if text.is_empty() {
            return Ok(Self::nobody());
        }
        let names = Parser::new(text)?.parse()?;
        // The canonical form may be longer, and has to be accepted as well.
        let printed_bytes = names.to_string().len();
        if printed_bytes > Self::BYTES_MAX {
            return Err(StandbyNamesError::TooLong { bytes: printed_bytes });
        }
        Ok(names)
    }

    /// Whether nobody is waited for.
    pub fn is_nobody(&self) -> bool {
        self.names.is_empty()
    }

    /// How many standbys must acknowledge; zero if and only if nobody is waited for.
    pub fn wanted_acks(&self) -> u32 {
        self.acks
    }

    /// How they are chosen.
    pub fn method(&self) -> SyncMethod {
        self.method
    }

    /// The priority of a standby, 1 for the best; none when it is not named. With `ANY` all have 1, as in
    /// PostgreSQL's `pg_stat_replication.sync_priority`. All that match the same `*` are equal.
    pub fn priority_of(&self, node: &NodeName) -> Option<u32> {
        let place = self.names.iter().position(|name| match name {
            StandbyName::Everybody => true,
            StandbyName::Named(text) => node.matches(text),
        })?;
        match self.method {
            SyncMethod::First => Some(u32::try_from(place + 1).expect("the text is at most 8 KiB long")),
            SyncMethod::Any => Some(1),
        }
    }
}

impl FromStr for StandbyNames {
    type Err = StandbyNamesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for SyncMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "FIRST",
            Self::Any => "ANY",
        })
    }
}

impl fmt::Display for StandbyNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_nobody() {
            return Ok(());
        }
        write!(f, "{} {} (", self.method, self.acks)?;
        for (place, name) in self.names.iter().enumerate() {
            if place > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{name}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for StandbyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("*"),
            Self::Named(text) if is_plain(text) => f.write_str(text),
            Self::Named(text) => write!(f, "\"{}\"", text.replace('"', "\"\"")),
        }
    }
}

/// Whether a name needs no quotes.
fn is_plain(text: &str) -> bool {
    let identifier = text.chars().next().is_some_and(begins_name) && text.chars().all(continues_name);
    let number = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    (identifier && keyword(text).is_none()) || number
}

fn begins_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn continues_name(c: char) -> bool {
    begins_name(c) || c.is_ascii_digit() || c == '$'
}

fn keyword(text: &str) -> Option<SyncMethod> {
    [SyncMethod::Any, SyncMethod::First].into_iter().find(|method| method.to_string().eq_ignore_ascii_case(text))
}

/// PostgreSQL's scanner takes the vertical tab for a space too.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\u{b}'
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Method(SyncMethod),
    Name(StandbyName),
    Number(String),
    Comma,
    Open,
    Close,
    /// A character that begins nothing.
    Junk,
    End,
}

/// One token of lookahead; errors come in the order of the text.
struct Parser<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    token: Token,
    /// Where `token` begins, in bytes.
    at: usize,
    /// The byte after it.
    end: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, StandbyNamesError> {
        let mut parser = Self { text, chars: text.char_indices().peekable(), token: Token::End, at: 0, end: 0 };
        parser.advance()?;
        Ok(parser)
    }

    fn parse(mut self) -> Result<StandbyNames, StandbyNamesError> {
        if let Token::Method(method) = self.token {
            self.advance()?;
            let Token::Number(number) = self.token.clone() else {
                return Err(self.unexpected("the number of standbys to wait for"));
            };
            let acks = self.acks(number)?;
            self.advance()?;
            return self.counted(method, acks);
        }
        if let Token::Number(number) = self.token.clone() {
            // A number is how many when a list in parentheses follows, and a name when not.
            let counted = self.acks(number.clone());
            self.advance()?;
            if self.token == Token::Open {
                return self.counted(SyncMethod::First, counted?);
            }
            return self.plain(StandbyName::Named(number));
        }
        let first = self.name()?;
        self.plain(first)
    }

    /// `(a, b)` to the end of the text.
    fn counted(mut self, method: SyncMethod, acks: u32) -> Result<StandbyNames, StandbyNamesError> {
        if self.token != Token::Open {
            return Err(self.unexpected("( and the list of standbys"));
        }
        self.advance()?;
        let first = self.name()?;
        let names = self.more_names(first)?;
        if self.token != Token::Close {
            return Err(self.unexpected("a comma or )"));
        }
        self.advance()?;
        if self.token != Token::End {
            return Err(self.unexpected("nothing after the list"));
        }
        Ok(StandbyNames { method, acks, names })
    }

    /// `, b, c` to the end of the text.
    fn plain(mut self, first: StandbyName) -> Result<StandbyNames, StandbyNamesError> {
        let names = self.more_names(first)?;
        if self.token != Token::End {
            return Err(self.unexpected("a comma or the end (names with other characters need double quotes)"));
        }
        Ok(StandbyNames { method: SyncMethod::First, acks: 1, names })
    }

    fn more_names(&mut self, first: StandbyName) -> Result<Vec<StandbyName>, StandbyNamesError> {
        let mut names = vec![first];
        while self.token == Token::Comma {
            self.advance()?;
            names.push(self.name()?);
        }
        Ok(names)
    }

    fn name(&mut self) -> Result<StandbyName, StandbyNamesError> {
        let name = match self.token.clone() {
            Token::Name(name) => name,
            Token::Number(number) => StandbyName::Named(number),
            Token::Method(_) => {
                return Err(self.unexpected("a standby name (FIRST and ANY as names need double quotes)"));
            }
            Token::Comma | Token::Open | Token::Close | Token::Junk | Token::End => {
                return Err(self.unexpected("a standby name (in double quotes if it has - or .) or *"));
            }
        };
        self.advance()?;
        Ok(name)
    }

    /// The number that stands at the present token.
    fn acks(&self, number: String) -> Result<u32, StandbyNamesError> {
        match number.parse::<u32>() {
            Ok(acks) if (1..=StandbyNames::ACKS_MAX).contains(&acks) => Ok(acks),
            Ok(_) | Err(_) => {
                Err(StandbyNamesError::Number { text: self.text.to_owned(), column: self.column(), number })
            }
        }
    }

    fn column(&self) -> usize {
        self.text[..self.at].chars().count() + 1
    }

    fn unexpected(&self, expected: &'static str) -> StandbyNamesError {
        let found = match &self.token {
            Token::Method(_)
            | Token::Name(_)
            | Token::Number(_)
            | Token::Comma
            | Token::Open
            | Token::Close
            | Token::Junk => format!("{:?}", &self.text[self.at..self.end]),
            Token::End => "the end".to_owned(),
        };
        StandbyNamesError::Unexpected { text: self.text.to_owned(), column: self.column(), found, expected }
    }

    /// Where the next character stands.
    fn next_at(&mut self) -> usize {
        self.chars.peek().map_or(self.text.len(), |(at, _)| *at)
    }

    fn advance(&mut self) -> Result<(), StandbyNamesError> {
        while self.chars.next_if(|(_, c)| is_space(*c)).is_some() {}
        self.at = self.next_at();
        let Some((_, c)) = self.chars.next() else {
            self.token = Token::End;
            return Ok(());
        };
        self.token = match c {
            ',' => Token::Comma,
            '(' => Token::Open,
            ')' => Token::Close,
            '*' => Token::Name(StandbyName::Everybody),
            '"' => Token::Name(self.quoted()?),
            _ if c.is_ascii_digit() => {
                self.skip_while(|c| c.is_ascii_digit());
                let end = self.next_at();
                Token::Number(self.text[self.at..end].to_owned())
            }
            _ if begins_name(c) => {
                self.skip_while(continues_name);
                let end = self.next_at();
                let word = &self.text[self.at..end];
                keyword(word).map_or_else(|| Token::Name(StandbyName::Named(word.to_owned())), Token::Method)
            }
            _ => Token::Junk,
        };
        self.end = self.next_at();
        Ok(())
    }

    fn skip_while(&mut self, wanted: impl Fn(char) -> bool) {
        while self.chars.next_if(|(_, c)| wanted(*c)).is_some() {}
    }

    /// Behind the opening quote.
    fn quoted(&mut self) -> Result<StandbyName, StandbyNamesError> {
        let mut name = String::new();
        while let Some((_, c)) = self.chars.next() {
            if c != '"' {
                name.push(c);
            } else if self.chars.next_if(|(_, next)| *next == '"').is_some() {
                name.push('"');
            } else {
                return Ok(if name == "*" { StandbyName::Everybody } else { StandbyName::Named(name) });
            }
        }
        Err(StandbyNamesError::Unterminated { text: self.text.to_owned(), column: self.column() })
    }
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
