//! Patterns: `like` and `ilike` as PostgreSQL matches them, and of its regular expressions those that mean the same to the `regex` crate.
//!
//! PostgreSQL's `ilike` compares the lower case of both sides. Only two characters outside ASCII have a lower case within it: U+212A
//! KELVIN SIGN and U+0130, whose lower case also is one or two characters, as the locale says. Both sides replace them before they
//! compare, so that no locale's opinion matters. `~*` is another matter: it adds the other case of each character of the *pattern*, so
//! that these two stay themselves.

use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

use super::column::Ctype;
use super::parse::shown;

/// The longest pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// How much memory a compiled regular expression may take, and so, how long it may take over a text at worst.
const REGEX_BYTES_MAX: usize = 64 * 1024;
/// How much memory it may take while it is matched, for each thread that does so.
pub(super) const REGEX_CACHE_BYTES_MAX: usize = 64 * 1024;
/// About how many states `.` or `[…]` becomes: it is matched byte by byte.
const CLASS_STATES: u64 = 4;
/// How often `{m,n}` may repeat; PostgreSQL's own bound.
const REPEAT_MAX: u32 = 255;
/// How deep brackets may stand inside each other.
const GROUPS_MAX: usize = 32;

/// What the two characters with a lower case in ASCII are replaced by.
const REPLACEMENT: char = '\u{FFFD}';

/// The same in SQL, around a text.
pub(super) fn without_strange_letters(text: &str) -> String {
    format!(
        "pg_catalog.translate({text}, pg_catalog.chr(304) || pg_catalog.chr(8490), pg_catalog.repeat(pg_catalog.chr(65533), 2))"
    )
}

/// How letters compare in `ilike`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Case {
    Sensitive,
    /// ASCII letters only, which is all that the locale "C" knows.
    Ascii,
    /// ASCII letters, and the two characters replaced.
    Replacing,
}

impl Case {
    fn fold(self, char: char) -> char {
        match (self, char) {
            (Case::Sensitive, _) => char,
            (Case::Replacing, '\u{130}' | '\u{212A}') => REPLACEMENT,
            _ => char.to_ascii_lowercase(),
        }
    }
}

/// A pattern of `like` or `ilike`, cut where a `%` stands.
///
/// What lies between two `%` is looked for from where the one before was found, and never again from the beginning: so the time is that
/// of reading the text once, times [`Like::steps`], whatever the pattern.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Like {
    /// What the text begins with. All of the text, if there is no `%`.
    head: Vec<Token>,
    /// What follows somewhere, one behind the other.
    middle: Vec<Piece>,
    /// What the text ends with; none if there is no `%`.
    tail: Option<Vec<Token>>,
    case: Case,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Char(char),
    /// `_`
    One,
}

impl Token {
    fn fits(self, char: char, case: Case) -> bool {
        match self {
            Token::Char(wanted) => wanted == case.fold(char),
            Token::One => true,
        }
    }
}

/// What is looked for between two `%`. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    /// Characters as they stand.
    Text(String),
    /// Also `_`, or letters in either case: one bit for each token, all moved by one with each character (the algorithm is known as
    /// shift-and, or bitap).
    Bits {
        /// How many tokens.
        tokens: usize,
        /// For each kind of character, its words: which tokens it fits. The first kind is all that the piece does not name.
        fits: Vec<u64>,
        /// The kind of each ASCII character.
        ascii: Box<[u16; 128]>,
        /// The kinds of others, sorted.
        others: Vec<(char, u16)>,
    },
}

impl Piece {
    fn new(tokens: &[Token], case: Case) -> Piece {
        let text: Option<String> = tokens
            .iter()
            .map(|token| match token {
                Token::Char(char) => Some(*char),
                Token::One => None,
            })
            .collect();
        if let Some(text) = text.filter(|_| case == Case::Sensitive) {
            return Piece::Text(text);
        }
        let words = tokens.len().div_ceil(64);
        let mut named: Vec<char> = tokens
            .iter()
            .filter_map(|token| match token {
                Token::Char(char) => Some(*char),
                Token::One => None,
            })
            .collect();
        named.sort_unstable();
        named.dedup();
        let mut fits = vec![0; words * (named.len() + 1)];
        for (index, token) in tokens.iter().enumerate() {
            let mut set = |kind: usize| fits[kind * words + index / 64] |= 1 << (index % 64);
            match token {
                Token::One => (0..=named.len()).for_each(set),
                // It was put there above.
                Token::Char(char) => set(named.partition_point(|other| other < char) + 1),
            }
        }
        let mut ascii = Box::new([0; 128]);
        let mut others = Vec::new();
        for (kind, char) in (1..).zip(named) {
            match ascii.get_mut(char as usize) {
                Some(ascii) => *ascii = kind,
                None => others.push((char, kind)),
            }
        }
        Piece::Bits { tokens: tokens.len(), fits, ascii, others }
    }

    /// What follows the first place in the text where the piece stands; none if it stands nowhere.
    fn behind_first<'a>(&self, text: &'a str, case: Case) -> Option<&'a str> {
        let (tokens, fits, ascii, others) = match self {
            Piece::Text(piece) => return text.find(piece).map(|at| &text[at + piece.len()..]),
            Piece::Bits { tokens, fits, ascii, others } => (*tokens, fits, ascii, others),
        };
        let words = tokens.div_ceil(64);
        let last = 1 << ((tokens - 1) % 64);
        // Bit n says that the last n + 1 characters fit the first n + 1 tokens.
        let mut state = vec![0_u64; words];
        for (at, char) in text.char_indices() {
            let folded = case.fold(char);
            let kind = match ascii.get(folded as usize) {
                Some(kind) => *kind,
                None => others.binary_search_by_key(&folded, |(other, _)| *other).map_or(0, |found| others[found].1),
            };
            let fits = &fits[usize::from(kind) * words..][..words];
            let mut carried = 1;
            for (state, fits) in state.iter_mut().zip(fits) {
                let moved = (*state << 1) | carried;
                carried = *state >> 63;
                *state = moved & fits;
            }
            if state[words - 1] & last != 0 {
                return Some(&text[at + char.len_utf8()..]);
            }
        }
        None
    }

    /// How many steps each character takes, at most.
    fn steps(&self) -> usize {
        match self {
            Piece::Text(_) => 1,
            // To look its kind up, and a word at a time.
            Piece::Bits { tokens, others, .. } => {
                others.len().checked_ilog2().unwrap_or(0) as usize + tokens.div_ceil(64)
            }
        }
    }

    /// How many bytes it takes.
    fn bytes(&self) -> usize {
        match self {
            Piece::Text(piece) => piece.len(),
            Piece::Bits { fits, others, .. } => 256 + 8 * fits.len() + 8 * others.len(),
        }
    }
}

impl Like {
    pub fn new(pattern: &str, case: Case) -> Result<Like, String> {
        check_length(pattern)?;
        let mut pieces = vec![Vec::new()];
        let mut chars = pattern.chars();
        while let Some(char) = chars.next() {
            let token = match char {
                '%' => {
                    pieces.push(Vec::new());
                    continue;
                }
                '_' => Token::One,
                '\\' => Token::Char(case.fold(chars.next().ok_or_else(|| {
                    format!(
                        "the pattern {} ends with a backslash, which escapes nothing; write two for one",
                        shown(pattern)
                    )
                })?)),
                char => Token::Char(case.fold(char)),
            };
            pieces.last_mut().expect("it begins with one, and none is taken").push(token);
        }
        if case == Case::Replacing {
            check_letters(pattern)?;
        }
        let tail = if pieces.len() > 1 { pieces.pop() } else { None };
        let mut pieces = pieces.into_iter();
        let head = pieces.next().unwrap_or_default();
        let middle = pieces.filter(|piece| !piece.is_empty()).map(|piece| Piece::new(&piece, case)).collect();
        Ok(Like { head, middle, tail, case })
    }

    /// Whether SQL has to replace the two characters in the text.
    pub fn replaces(&self) -> bool {
        self.case == Case::Replacing
    }

    pub fn matches(&self, text: &str) -> bool {
        let mut rest = text.chars();
        let begins = self.head.iter().all(|token| rest.next().is_some_and(|char| token.fits(char, self.case)));
        let Some(tail) = self.tail.as_ref().filter(|_| begins) else { return begins && rest.next().is_none() };
        let mut rest = rest.as_str();
        for piece in &self.middle {
            let Some(behind) = piece.behind_first(rest, self.case) else { return false };
            rest = behind;
        }
        let mut from_behind = rest.chars().rev();
        tail.iter().rev().all(|token| from_behind.next().is_some_and(|char| token.fits(char, self.case)))
    }

    /// How many steps each character of a text takes, at most.
    pub fn steps(&self) -> usize {
        self.middle.iter().map(Piece::steps).max().unwrap_or(1)
    }

    /// How many bytes it takes beside its pattern.
    pub fn bytes(&self) -> usize {
        self.middle.iter().map(Piece::bytes).sum()
    }
}

fn check_length(pattern: &str) -> Result<(), String> {
    if pattern.len() <= PATTERN_BYTES_MAX {
        return Ok(());
    }
    Err(format!(
        "the pattern {} has {} bytes and may have {PATTERN_BYTES_MAX}; shorten it",
        shown(pattern),
        pattern.len()
    ))
}

/// Whether every locale agrees that the character has no other case. The scripts of East Asia have none.
fn is_caseless(char: char) -> bool {
    char.is_ascii()
        || !char.is_alphabetic()
        || matches!(char, '\u{3041}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7A3}' | '\u{20000}'..='\u{3FFFD}')
}

fn check_letters(pattern: &str) -> Result<(), String> {
    match pattern.chars().find(|char| !is_caseless(*char)) {
        None => Ok(()),
        Some(char) => Err(format!(
            "the letter {char:?} in the pattern {} has cases that depend on the locale; write _ (in imatch a dot) in its place, use like or match, or give the column collate \"C\"",
            shown(pattern)
        )),
    }
}

/// A regular expression that the `regex` crate decides as PostgreSQL does.
pub(super) struct Compiled {
    pub regex: Regex,
    /// About how many states it has: at worst each of them is looked at for each byte of a text.
    pub states: u64,
}

/// Translates a regular expression of PostgreSQL's (an ARE) into one that the `regex` crate decides alike, or says why not.
pub(super) fn regex(pattern: &str, ignore_case: bool, ctype: Ctype) -> Result<Compiled, String> {
    check_length(pattern)?;
    if ignore_case && ctype != Ctype::C {
        check_letters(pattern)?;
    }
    let mut translator = Translator { chars: pattern.chars().peekable(), out: String::new(), ignore_case, ctype };
    let translated = translator.branches(0).and_then(|shape| match translator.chars.next() {
        None => Ok((translator.out, shape.states)),
        Some(char) => Err(format!("a {char:?} that closes nothing; write \\{char} for the character")),
    });
    let translated = translated.map_err(|reason| format!("the regular expression {} has {reason}", shown(pattern)));
    let (translated, states) = translated?;
    let built = RegexBuilder::new(&translated)
        .dot_matches_new_line(true)
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_CACHE_BYTES_MAX)
        .build();
    let regex = built.map_err(|_| {
        format!("the regular expression {} is too large; make it shorter, or its repetitions fewer", shown(pattern))
    })?;
    Ok(Compiled { regex, states })
}

struct Translator<'a> {
    chars: Peekable<Chars<'a>>,
    out: String,
    ignore_case: bool,
    ctype: Ctype,
}

/// What is to be known of a piece of a regular expression.
#[derive(Clone, Copy, Default)]
struct Shape {
    /// Whether it holds `^` or `$`, which are not repeated.
    anchored: bool,
    /// About how many states it becomes.
    states: u64,
}

impl Shape {
    fn of(states: u64) -> Shape {
        Shape { anchored: false, states }
    }
}

impl Translator<'_> {
    fn branches(&mut self, depth: usize) -> Result<Shape, String> {
        if depth > GROUPS_MAX {
            return Err(format!("groups deeper than {GROUPS_MAX}; write it with fewer"));
        }
        let mut whole = Shape::default();
        loop {
            match self.chars.peek() {
                None | Some(')') => return Ok(whole),
                Some('|') => {
                    self.chars.next();
                    self.out.push('|');
                    whole.states += 1;
                }
                Some(_) => {
                    let piece = self.piece(depth)?;
                    whole.anchored |= piece.anchored;
                    whole.states = whole.states.saturating_add(piece.states);
                }
            }
        }
    }

    fn piece(&mut self, depth: usize) -> Result<Shape, String> {
        let mut shape = Shape::of(1);
        match self.chars.next() {
            Some('^') => {
                self.out.push_str("\\A");
                shape.anchored = true;
            }
            Some('$') => {
                self.out.push_str("\\z");
                shape.anchored = true;
            }
            Some('(') => shape = self.group(depth)?,
            Some('[') => {
                self.bracket()?;
                shape = Shape::of(CLASS_STATES);
            }
            Some('.') => {
                self.out.push('.');
                shape = Shape::of(CLASS_STATES);
            }
            Some('\\') => self.escape()?,
            Some(char @ ('*' | '+' | '?')) => {
                return Err(format!("a {char:?} with nothing to repeat; write \\{char} for the character"));
            }
            Some(char @ ('{' | '}' | ']')) => {
                return Err(format!("a {char:?} by itself; write \\{char} for the character"));
            }
            Some(char) => self.literal(char),
            None => {}
        }
        shape.states = shape.states.saturating_mul(self.quantifier(shape.anchored)?);
        Ok(shape)
    }

    fn group(&mut self, depth: usize) -> Result<Shape, String> {
        if self.chars.next_if_eq(&'?').is_some() && self.chars.next_if_eq(&':').is_none() {
            return Err(
                "a (?…), an option or a look around, which the stream cannot follow; only (…) and (?:…) are taken"
                    .to_owned(),
            );
        }
        self.out.push_str("(?:");
        let shape = self.branches(depth + 1)?;
        self.out.push(')');
        match self.chars.next() {
            Some(_) => Ok(shape),
            None => Err("a group that is not closed; add a \")\", or write \\( for the character".to_owned()),
        }
    }

    /// How often the piece before it stands in what it becomes.
    fn quantifier(&mut self, anchored: bool) -> Result<u64, String> {
        let Some(char) = self.chars.next_if(|char| matches!(char, '*' | '+' | '?' | '{')) else { return Ok(1) };
        if anchored {
            return Err(format!(
                "a {char:?} behind ^, $ or a group with one of them; repeat only what stands beside them"
            ));
        }
        let times = match char {
            '{' => self.bound()?,
            char => {
                self.out.push(char);
                1
            }
        };
        // Greedy or not changes what is matched, and not whether.
        self.chars.next_if_eq(&'?');
        match self.chars.next_if(|char| matches!(char, '*' | '+' | '?' | '{')) {
            None => Ok(times),
            Some(again) => Err(format!("a {again:?} behind another repetition; put the first into a group")),
        }
    }

    /// `{m}`, `{m,}` or `{m,n}`, whose first bracket is taken.
    fn bound(&mut self) -> Result<u64, String> {
        let refused = || {
            format!(
                "a {{…}} that is no repetition; write {{m}}, {{m,}} or {{m,n}} up to {REPEAT_MAX}, or \\{{ for the character"
            )
        };
        let at_least = self.number().ok_or_else(refused)?;
        let mut at_most = Some(at_least);
        if self.chars.next_if_eq(&',').is_some() {
            at_most = self.number();
        }
        let bounded =
            at_least.max(at_most.unwrap_or_default()) <= REPEAT_MAX && at_most.is_none_or(|most| at_least <= most);
        if self.chars.next() != Some('}') || !bounded {
            return Err(refused());
        }
        self.out.push_str(&match at_most {
            Some(at_most) => format!("{{{at_least},{at_most}}}"),
            None => format!("{{{at_least},}}"),
        });
        Ok(at_most.unwrap_or(at_least).max(1).into())
    }

    fn number(&mut self) -> Option<u32> {
        let mut digits = String::new();
        while let Some(digit) = self.chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        digits.parse().ok()
    }

    fn literal(&mut self, char: char) {
        match self.ignore_case && char.is_ascii_alphabetic() {
            true => {
                self.out.extend(['[', char.to_ascii_lowercase(), char.to_ascii_uppercase(), ']']);
            }
            false => self.out.push_str(&regex::escape(char.encode_utf8(&mut [0; 4]))),
        }
    }

    fn escape(&mut self) -> Result<(), String> {
        match self.chars.next() {
            Some(letter @ ('d' | 'D' | 'w' | 'W' | 's' | 'S')) => {
                let ranges = self.shorthand(letter.to_ascii_lowercase())?;
                let not = if letter.is_ascii_uppercase() { "^" } else { "" };
                self.out.push_str(&format!("[{not}{ranges}]"));
            }
            other => {
                let char = escaped(other)?;
                self.literal(char);
            }
        }
        Ok(())
    }

    /// The ranges of `\d`, `\w` and `\s`.
    fn shorthand(&self, letter: char) -> Result<&'static str, String> {
        match letter {
            'd' => self.class("digit"),
            's' => self.class("space"),
            _ => self.class("alnum").map(|_| "0-9A-Z_a-z"),
        }
    }

    /// The ranges of `[:name:]`, where the locale leaves no doubt of them.
    fn class(&self, name: &str) -> Result<&'static str, String> {
        let ranges = match name {
            "digit" => "0-9",
            "space" => "\\t-\\r ",
            "alpha" => "A-Za-z",
            "alnum" => "0-9A-Za-z",
            "upper" if !self.ignore_case => "A-Z",
            "lower" if !self.ignore_case => "a-z",
            "punct" => "!-/:-@\\[-`{-~",
            "xdigit" => "0-9A-Fa-f",
            _ => {
                return Err(format!(
                    "the class [:{name}:], which the stream cannot decide; write the characters, for example [a-z]"
                ));
            }
        };
        match (self.ctype, name) {
            (Ctype::C, _) | (Ctype::Libc, "digit") => Ok(ranges),
            _ => Err(format!(
                "a class of characters ([:{name}:] or its short form) that depends on the locale; write the characters, for example [0-9A-Za-z_], or give the column collate \"C\""
            )),
        }
    }

    /// `[…]`, whose first bracket is taken.
    fn bracket(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.chars.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            let char = self.chars.next();
            match char {
                None => return Err("a [ that is not closed; add a \"]\", or write \\[ for the character".to_owned()),
                Some(']') if !first => break,
                Some('[') => self.bracket_class()?,
                Some('\\') if self.chars.peek().is_some_and(|char| matches!(char, 'd' | 'w' | 's')) => {
                    let letter = self.chars.next().unwrap_or_default();
                    let ranges = self.shorthand(letter)?;
                    self.out.push_str(ranges);
                    self.no_range()?;
                }
                Some('-') if !first && self.chars.peek() != Some(&']') => {
                    return Err("a \"-\" between brackets that is no range; write \\- for the character".to_owned());
                }
                Some(char) => self.range(char)?,
            }
            first = false;
        }
        self.out.push(']');
        Ok(())
    }

    fn range(&mut self, char: char) -> Result<(), String> {
        let from = if char == '\\' { escaped(self.chars.next())? } else { char };
        let mut to = from;
        let mut ahead = self.chars.clone();
        if ahead.next() == Some('-') && ahead.next() != Some(']') {
            self.chars.next();
            to = match self.chars.next() {
                Some('\\') => escaped(self.chars.next())?,
                Some(char) if char != '[' && char != '-' => char,
                _ => {
                    return Err(
                        "a range that ends with a bracket or nothing; write \\ before a sign that is meant itself"
                            .to_owned(),
                    );
                }
            };
            self.no_range()?;
        }
        if from > to {
            return Err(format!("the range {from}-{to}, which begins behind its end; turn it round"));
        }
        if self.ignore_case && from != to && !to.is_ascii() {
            return Err(format!(
                "the range {from}-{to}, whose cases depend on the locale; in imatch, write ranges of ASCII only"
            ));
        }
        self.push_range(from, to);
        if self.ignore_case {
            for (first, last, other) in [('a', 'z', 'A'), ('A', 'Z', 'a')] {
                let (low, high) = (from.max(first), to.min(last));
                if low <= high {
                    let moved = |char: char| (char as u8 - first as u8 + other as u8) as char;
                    self.push_range(moved(low), moved(high));
                }
            }
        }
        Ok(())
    }

    fn push_range(&mut self, from: char, to: char) {
        self.out.push_str(&format!("\\x{{{:x}}}-\\x{{{:x}}}", from as u32, to as u32));
    }

    /// Behind a range or a class, a `-` would begin a range that PostgreSQL refuses.
    fn no_range(&mut self) -> Result<(), String> {
        let mut ahead = self.chars.clone();
        match ahead.next() == Some('-') && ahead.next() != Some(']') {
            true => Err("a range behind a range; write \\- for the character".to_owned()),
            false => Ok(()),
        }
    }

    /// `[:name:]` inside of brackets.
    fn bracket_class(&mut self) -> Result<(), String> {
        let name: String = match self.chars.next_if_eq(&':') {
            Some(_) => std::iter::from_fn(|| self.chars.next_if(|char| char.is_ascii_alphabetic())).collect(),
            None => String::new(),
        };
        if name.is_empty() || self.chars.next() != Some(':') || self.chars.next() != Some(']') {
            return Err(
                "a [ inside of brackets that begins no class such as [:digit:]; write \\[ for the character".to_owned()
            );
        }
        let ranges = self.class(&name)?;
        self.out.push_str(ranges);
        self.no_range()
    }
}

/// The character behind a backslash.
fn escaped(char: Option<char>) -> Result<char, String> {
    match char {
        Some('n') => Ok('\n'),
        Some('r') => Ok('\r'),
        Some('t') => Ok('\t'),
        Some(char) if char.is_ascii_punctuation() || char == ' ' => Ok(char),
        Some(char) if char.is_ascii_digit() => {
            Err(format!("the back reference \\{char}, which the stream cannot follow; write out what it repeats"))
        }
        Some(char) => Err(format!(
            "the escape \\{char}, which the stream cannot decide; escapes are \\d \\w \\s \\D \\W \\S \\n \\r \\t and those of signs such as \\."
        )),
        None => Err("a backslash at its end, which escapes nothing; write two for one".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_stream_cannot_follow_is_refused_by_name() {
        for (pattern, part) in [
            ("(?=a)", "a (?…)"),
            ("(?i)a", "a (?…)"),
            ("***=a", "nothing to repeat"),
            ("(a)\\1", "back reference"),
            ("\\ma", "the escape \\m"),
            ("[[=a=]]", "begins no class"),
            ("[[:foo:]]", "[:foo:]"),
            ("\\w", "depends on the locale"),
            ("a{256}", "up to 255"),
            ("a{2,1}", "no repetition"),
            ("a{x", "no repetition"),
            ("a**", "another repetition"),
            ("(^a)*", "repeat only"),
            ("a)", "closes nothing"),
            ("(a", "not closed"),
            ("[a", "not closed"),
            ("[b-a]", "begins behind its end"),
            ("a\\", "at its end"),
            ("((((a{255}){255}){255}){255})", "too large"),
        ] {
            let refusal = regex(pattern, false, Ctype::Libc).err().expect(pattern);
            assert!(refusal.contains(part), "{pattern}: {refusal}");
        }
        let deep = format!("{}a{}", "(".repeat(100), ")".repeat(100));
        assert!(regex(&deep, false, Ctype::C).is_err());
        let long = "a".repeat(PATTERN_BYTES_MAX + 1);
        assert!(regex(&long, false, Ctype::C).is_err());
        assert!(Like::new(&long, Case::Sensitive).is_err());
    }

    #[test]
    fn letters_with_cases_that_depend_on_the_locale_are_refused_where_case_is_ignored() {
        assert!(Like::new("%é%", Case::Replacing).is_err());
        assert!(Like::new("%é%", Case::Ascii).is_ok());
        assert!(Like::new("%日本€%", Case::Replacing).is_ok());
        assert!(regex("é", true, Ctype::Libc).is_err());
        assert!(regex("é", false, Ctype::Libc).is_ok());
    }

    /// What a pattern says, tried in every way: exponential, and plain to see.
    fn fits(pattern: &[char], text: &[char], case: Case) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, _) => text.is_empty(),
            (Some(('%', rest)), _) => (0..=text.len()).any(|taken| fits(rest, &text[taken..], case)),
            (Some((token, rest)), Some((char, behind))) => {
                (*token == '_' || case.fold(*token) == case.fold(*char)) && fits(rest, behind, case)
            }
            (Some(_), None) => false,
        }
    }

    #[test]
    fn patterns_match_what_they_say() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut pick = |from: &str, most: usize| -> String {
            let from: Vec<char> = from.chars().collect();
            (0..random.usize(..=most)).map(|_| from[random.usize(..from.len())]).collect()
        };
        let (mut matched, mut rounds) = (0, 0);
        while rounds < 20_000 {
            let (pattern, text) = (pick("aabB_%%日", 8), pick("aAbB日本", 9));
            for case in [Case::Sensitive, Case::Ascii] {
                let like = Like::new(&pattern, case).expect("a pattern");
                let (chars, of): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
                assert_eq!(like.matches(&text), fits(&chars, &of, case), "{pattern:?} {text:?} {case:?}");
                matched += usize::from(like.matches(&text));
                rounds += 1;
            }
        }
        assert!(matched > 1_000, "{matched} of {rounds} matched");
    }

    #[test]
    fn a_piece_may_be_longer_than_a_word() {
        let like = |pattern: &str| Like::new(pattern, Case::Ascii).expect("a pattern");
        for length in [63, 64, 65, 127, 128, 129, 500] {
            let piece = format!("{}x", "_".repeat(length - 1));
            let text = format!("{}X{}", "a".repeat(1000), "b".repeat(10));

            assert!(like(&format!("%{piece}%")).matches(&text), "{length}");
            assert!(!like(&format!("%{piece}%x%")).matches(&text), "{length}");
            assert!(!like(&format!("%x{piece}%")).matches(&text), "{length}");
        }
    }

    #[test]
    fn a_text_is_read_once_whatever_the_pattern() {
        // As many steps as the product of both lengths would take minutes.
        let text = "a".repeat(4 << 20);
        for pattern in [format!("%{}b%", "a_".repeat(250)), format!("{}b", "%a".repeat(400)), "%_a".repeat(300)] {
            let like = Like::new(&pattern, Case::Ascii).expect("a pattern");

            assert!(!like.matches(&format!("{text}c")), "{pattern}");
            assert!(like.steps() < 20);
        }
    }

    #[test]
    fn a_percent_sign_takes_as_much_as_it_has_to() {
        let matches =
            |pattern: &str, text: &str| Like::new(pattern, Case::Sensitive).is_ok_and(|like| like.matches(text));
        assert!(matches("%ab%c", "aababxc"));
        assert!(!matches("%ab%c", "aababxd"));
        assert!(matches("a\\%%", "a%b"));
        assert!(!matches("a\\%%", "ab"));
        assert!(matches("%%_", "é"));
        assert!(!matches("_", ""));
    }
}
