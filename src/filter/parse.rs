//! From the text of a filter to its tree: PostgREST's words, quoting and bounds. What a column's type makes of it is decided later.

use crate::names::ident;

/// The longest text of one filter, in bytes.
pub const WHERE_BYTES_MAX: usize = 16 * 1024;
/// How deep `and(…)`, `or(…)` and `not.` may stand inside each other.
pub const DEPTH_MAX: usize = 16;
/// How many conditions one filter may have.
pub const CONDITIONS_MAX: usize = 256;
/// How many values one `in.(…)` may list.
pub const LIST_MAX: usize = 1000;

/// A filter as it was written, not yet bound to the columns of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expression(pub(super) Tree);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Tree {
    All(Vec<Tree>),
    Any(Vec<Tree>),
    Not(Box<Tree>),
    Condition(Condition),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Condition {
    pub column: String,
    pub operator: Operator,
    /// One value, or those of an `in.(…)`.
    pub values: Vec<Word>,
}

/// A value as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Word {
    pub text: String,
    pub quoted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operator {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
    In,
    Is,
    Like,
    Ilike,
    Match,
    Imatch,
    IsDistinct,
}

impl Operator {
    pub const ALL: [Operator; 13] = {
        use Operator::*;
        [Eq, Neq, Gt, Gte, Lt, Lte, In, Is, Like, Ilike, Match, Imatch, IsDistinct]
    };

    /// The word of the filter.
    pub fn name(self) -> &'static str {
        match self {
            Operator::Eq => "eq",
            Operator::Neq => "neq",
            Operator::Gt => "gt",
            Operator::Gte => "gte",
            Operator::Lt => "lt",
            Operator::Lte => "lte",
            Operator::In => "in",
            Operator::Is => "is",
            Operator::Like => "like",
            Operator::Ilike => "ilike",
            Operator::Match => "match",
            Operator::Imatch => "imatch",
            Operator::IsDistinct => "isdistinct",
        }
    }

    /// What SQL calls it, where it takes one value.
    pub fn sql(self) -> &'static str {
        match self {
            Operator::Eq => "=",
            Operator::Neq => "<>",
            Operator::Gt => ">",
            Operator::Gte => ">=",
            Operator::Lt => "<",
            Operator::Lte => "<=",
            Operator::In => "in",
            Operator::Is => "is",
            Operator::Like => "like",
            Operator::Ilike => "ilike",
            Operator::Match => "~",
            Operator::Imatch => "~*",
            Operator::IsDistinct => "is distinct from",
        }
    }
}

/// Operators of PostgREST's that are refused here, each with a reason.
const ELSEWHERE: [&str; 12] = ["fts", "plfts", "phfts", "wfts", "cs", "cd", "ov", "sl", "sr", "nxr", "nxl", "adj"];

/// Whether a text begins as what stands behind a column: with an operator and a dot.
pub fn begins_with_operator(text: &str) -> bool {
    let text = text.strip_prefix("not.").unwrap_or(text);
    let word = text.split_once('.').map(|(word, _)| word);
    word.is_some_and(|word| Operator::ALL.iter().any(|each| each.name() == word) || ELSEWHERE.contains(&word))
}

/// What does not count at the ends of a text.
pub(super) const BLANKS: [char; 4] = [' ', '\t', '\n', '\r'];

/// Several words as a list in a sentence: `eq, neq and in`.
pub(super) fn list(words: impl IntoIterator<Item = impl Into<String>>) -> String {
    let mut words: Vec<String> = words.into_iter().map(Into::into).collect();
    match words.pop() {
        Some(last) if !words.is_empty() => format!("{} and {last}", words.join(", ")),
        last => last.unwrap_or_default(),
    }
}

impl Tree {
    fn columns<'a>(&'a self, found: &mut Vec<&'a str>) {
        match self {
            Tree::All(trees) | Tree::Any(trees) => trees.iter().for_each(|tree| tree.columns(found)),
            Tree::Not(tree) => tree.columns(found),
            Tree::Condition(condition) => found.push(&condition.column),
        }
    }
}

impl Expression {
    /// The columns that it names, each as often as it does.
    pub fn columns(&self) -> Vec<&str> {
        let mut found = Vec::new();
        self.0.columns(&mut found);
        found
    }

    /// One filter that holds where all of these hold.
    pub fn and(expressions: Vec<Expression>) -> Expression {
        // Side by side, however many there are: nesting is what recursion has to be safe from.
        let side_by_side = expressions.into_iter().flat_map(|expression| match expression.0 {
            Tree::All(trees) => trees,
            tree => vec![tree],
        });
        let mut trees: Vec<Tree> = side_by_side.collect();
        match trees.pop() {
            Some(tree) if trees.is_empty() => Expression(tree),
            Some(tree) => {
                trees.push(tree);
                Expression(Tree::All(trees))
            }
            None => Expression(Tree::All(trees)),
        }
    }
}

/// Reads a filter. Only its syntax: whether its columns exist and take its values is decided when it is bound.
pub fn parse(text: &str) -> Result<Expression, String> {
    if text.len() > WHERE_BYTES_MAX {
        return Err(format!(
            "the filter has {} bytes and may have {WHERE_BYTES_MAX}; shorten it, or follow more rows and choose among them in the client",
            text.len()
        ));
    }
    if text.contains('\0') {
        return Err("the filter has a character U+0000, which PostgreSQL cannot hold; take it out".to_owned());
    }
    let mut parser = Parser { whole: text, rest: text, conditions: 0 };
    let tree = parser.tree(0)?;
    match parser.rest.chars().next() {
        None => Ok(Expression(tree)),
        Some(_) => Err(format!(
            "the filter goes on behind its end with {}; several conditions are written and(…,…), or as one where parameter each",
            shown(parser.rest)
        )),
    }
}

/// A piece of the filter for a sentence, no more of it than one can read.
pub(super) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 40;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

struct Parser<'a> {
    whole: &'a str,
    rest: &'a str,
    conditions: usize,
}

impl<'a> Parser<'a> {
    fn take(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Everything up to one of these characters, or to the end.
    fn until(&mut self, ends: &[char]) -> &'a str {
        let (text, rest) = self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
        self.rest = rest;
        text
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches(' ');
    }

    fn tree(&mut self, depth: usize) -> Result<Tree, String> {
        if depth > DEPTH_MAX {
            return Err(format!("the filter is nested deeper than {DEPTH_MAX}; write it with fewer and(…) and or(…)"));
        }
        self.skip_blanks();
        for (word, negated, all) in
            [("and(", false, true), ("or(", false, false), ("not.and(", true, true), ("not.or(", true, false)]
        {
            if self.take(word) {
                let trees = self.trees(word, depth)?;
                let tree = if all { Tree::All(trees) } else { Tree::Any(trees) };
                return Ok(if negated { Tree::Not(Box::new(tree)) } else { tree });
            }
            let behind = self.rest.strip_prefix(&word[..word.len() - 1]);
            if behind
                .is_some_and(|behind| behind.starts_with(BLANKS) && behind.trim_start_matches(BLANKS).starts_with('('))
            {
                return Err(format!("there is a blank before the bracket in {}; write {word}…)", shown(self.rest)));
            }
        }
        self.condition(depth > 0)
    }

    /// What stands between the brackets of `and(…)`.
    fn trees(&mut self, word: &str, depth: usize) -> Result<Vec<Tree>, String> {
        self.skip_blanks();
        if self.rest.starts_with(')') {
            return Err(format!(
                "{word}) has no conditions; write some into its brackets, for example {word}level.gte.3)"
            ));
        }
        let mut trees = vec![self.tree(depth + 1)?];
        loop {
            self.skip_blanks();
            match () {
                () if self.take(",") => trees.push(self.tree(depth + 1)?),
                () if self.take(")") => break,
                () if self.rest.is_empty() => {
                    return Err(format!("{word} is not closed; add a \")\" behind its last condition"));
                }
                () => return Err(behind("condition", self.rest)),
            }
        }
        self.skip_blanks();
        Ok(trees)
    }

    /// `column.operator.value`; inside of brackets an unquoted value ends at `,` or `)`.
    fn condition(&mut self, inside: bool) -> Result<Tree, String> {
        self.conditions += 1;
        if self.conditions > CONDITIONS_MAX {
            return Err(format!(
                "the filter has more than {CONDITIONS_MAX} conditions; write column.in.(…) where one column has many values"
            ));
        }
        let written = self.rest;
        let column = self.column()?;
        let negated = self.take("not.");
        let operator = self.operator(written, &column)?;
        let values = match operator {
            Operator::In => self.values(written)?,
            _ => vec![self.value(written, inside)?],
        };
        let condition = Tree::Condition(Condition { column, operator, values });
        Ok(if negated { Tree::Not(Box::new(condition)) } else { condition })
    }

    fn column(&mut self) -> Result<String, String> {
        let written = self.rest;
        let column = match self.take("\"") {
            true => self.quoted()?,
            false => self.until(&['.', ',', '(', ')', '"']).to_owned(),
        };
        if column.contains("->") && !written.starts_with('"') {
            return Err(format!(
                "{} is a path into JSON, which a filter cannot follow; keep the value in a column of its own (also a generated one) and filter by that",
                shown(&column)
            ));
        }
        if !written.starts_with('"') && column.ends_with(BLANKS) && self.rest.starts_with('.') {
            return Err(format!(
                "there is a blank behind the column in {}; take it out, or write the column in double quotes if the blank belongs to its name",
                shown(written)
            ));
        }
        if column.is_empty() || !self.take(".") {
            return Err(format!(
                "{} is no condition; write column.operator.value, for example level.gte.3, with the column in double quotes if its name holds other signs than letters and digits",
                shown(written)
            ));
        }
        Ok(column)
    }

    fn operator(&mut self, written: &str, column: &str) -> Result<Operator, String> {
        let word = self.until(&['.', ',', ')', '"']);
        let known = || list(Operator::ALL.iter().map(|operator| operator.name()));
        if let Some(operator) = Operator::ALL.into_iter().find(|operator| operator.name() == word) {
            return match self.take(".") {
                true => Ok(operator),
                false => Err(format!(
                    "{} has no value; write a dot and the value behind {word}, for example {}",
                    shown(written),
                    example(column, operator)
                )),
            };
        }
        let bare = word.split('(').next().unwrap_or_default();
        let trimmed = word.trim_matches(BLANKS);
        let known_but_for_blanks = trimmed == "not" || Operator::ALL.iter().any(|operator| operator.name() == trimmed);
        let column = &*ident(column);
        Err(match bare {
            _ if known_but_for_blanks => {
                format!("there is a blank beside {trimmed} in {}; take it out", shown(written))
            }
            _ if bare.len() < word.len() && Operator::ALL.iter().any(|operator| operator.name() == bare) => format!(
                "{}) is not among the operators here: {bare} takes no (any) or (all); write or({column}.{bare}.…,{column}.{bare}.…), or and(…) in place of all",
                word
            ),
            "fts" | "plfts" | "phfts" | "wfts" => format!(
                "the operator {bare} (full text search) cannot be decided on a stream; the operators are {}",
                known()
            ),
            "cs" | "cd" | "ov" | "sl" | "sr" | "nxr" | "nxl" | "adj" => format!(
                "the operator {bare} (arrays and ranges) cannot be decided on a stream; keep what you ask for in a column of its own and use one of {}",
                known()
            ),
            _ if written.starts_with("not.") => format!(
                "not.{} is no condition; write not. behind the column, for example {word}.not.eq.1, or before and(…) and or(…)",
                shown(word).trim_matches('"')
            ),
            _ => format!("{} is no operator in {}; the operators are {}", shown(word), shown(written), known()),
        })
    }

    fn value(&mut self, written: &str, inside: bool) -> Result<Word, String> {
        if self.take("\"") {
            let text = self.quoted()?;
            self.ended("value")?;
            return Ok(Word { text, quoted: true });
        }
        if inside {
            let text = self.until(&[',', ')']).to_owned();
            if text.trim_start_matches(BLANKS).starts_with('"') && text.starts_with(BLANKS) {
                return Err(format!(
                    "there is a blank before a quoted value in {}; take it out, or put it inside the quotes",
                    shown(written)
                ));
            }
            // Whether it belongs to the value nobody can tell, and a text with it equals none without.
            if let Some(mistake) = blank_at_an_end(&text, &format!(" in {}", shown(written))) {
                return Err(mistake);
            }
            return Ok(Word { text, quoted: false });
        }
        if self.rest.contains(',') {
            return Err(format!(
                "there is a comma in {}; put the value in double quotes where the comma belongs to it, or write and({}) where several conditions were meant",
                shown(self.whole),
                shown(self.whole).trim_matches('"')
            ));
        }
        Ok(Word { text: std::mem::take(&mut self.rest).to_owned(), quoted: false })
    }

    /// The values of `in.(…)`.
    fn values(&mut self, written: &str) -> Result<Vec<Word>, String> {
        if !self.take("(") {
            return Err(format!("{} has no list; write the values in brackets, for example in.(1,2)", shown(written)));
        }
        let mut values = Vec::new();
        if self.take(")") {
            return Ok(values);
        }
        loop {
            if values.len() == LIST_MAX {
                return Err(format!("{} lists more than {LIST_MAX} values; split it with or(…)", shown(written)));
            }
            values.push(self.value(written, true)?);
            match () {
                () if self.take(",") => {}
                () if self.take(")") => break,
                () => return Err(format!("the list in {} is not closed; add a \")\"", shown(written))),
            }
        }
        Ok(values)
    }

    /// The rest of a quoted text, whose first quote is taken. A quote inside has a backslash before it, or is doubled as in SQL.
    fn quoted(&mut self) -> Result<String, String> {
        let written = self.rest;
        let mut text = String::new();
        loop {
            text.push_str(self.until(&['"', '\\']));
            if self.take("\"\"") {
                text.push('"');
                continue;
            }
            if self.take("\"") {
                return Ok(text);
            }
            let mut chars = self.rest.chars();
            chars.next();
            match chars.next() {
                Some(char) => text.push(char),
                None => {
                    return Err(format!(
                        "the quoted text \"{} has no end; close it with a double quote, and write \\\" for one inside",
                        shown(written).trim_matches('"')
                    ));
                }
            }
            self.rest = chars.as_str();
        }
    }

    /// Behind a quoted value only the end of a condition may come.
    fn ended(&self, what: &str) -> Result<(), String> {
        match self.rest.chars().next() {
            None | Some(',' | ')') => Ok(()),
            Some(_) => Err(behind(what, self.rest)),
        }
    }
}

/// What is wrong with an unquoted value that begins or ends with a blank.
pub(super) fn blank_at_an_end(text: &str, place: &str) -> Option<String> {
    let side = match () {
        () if text.starts_with(BLANKS) => "before",
        () if text.ends_with(BLANKS) => "behind",
        () => return None,
    };
    let value = text.trim_matches(BLANKS);
    // So a plus sign arrives that nobody encoded.
    let plus = match side == "before" && value.starts_with(|char: char| char.is_ascii_digit()) {
        true => "; a + in an address is written %2B",
        false => "",
    };
    Some(format!(
        "there is a blank {side} the value {}{place}; take it out, or put the value in double quotes if the blank belongs to it{plus}",
        shown(value)
    ))
}

fn behind(what: &str, rest: &str) -> String {
    format!(
        "behind a {what} comes {}, where only a comma, a \")\" or the end may come; quote the whole value",
        shown(rest)
    )
}

fn example(column: &str, operator: Operator) -> String {
    let value = match operator {
        Operator::In => "(1,2)",
        Operator::Is => "null",
        Operator::Like | Operator::Ilike => "A*",
        Operator::Match | Operator::Imatch => "^A",
        _ => "3",
    };
    format!("{}.{}.{value}", ident(column), operator.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(column: &str, operator: Operator, values: &[&str]) -> Tree {
        let word = |text: &&str| Word { text: text.to_string(), quoted: false };
        Tree::Condition(Condition { column: column.to_owned(), operator, values: values.iter().map(word).collect() })
    }

    /// The tree, without what says only how it was written.
    fn tree(text: &str) -> Tree {
        fn plain(tree: Tree) -> Tree {
            match tree {
                Tree::All(trees) => Tree::All(trees.into_iter().map(plain).collect()),
                Tree::Any(trees) => Tree::Any(trees.into_iter().map(plain).collect()),
                Tree::Not(tree) => Tree::Not(Box::new(plain(*tree))),
                Tree::Condition(mut condition) => {
                    condition.values.iter_mut().for_each(|word| word.quoted = false);
                    Tree::Condition(condition)
                }
            }
        }
        plain(parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).0)
    }

    fn refusal(text: &str) -> String {
        parse(text).expect_err(text)
    }

    #[test]
    fn a_condition_is_a_column_an_operator_and_the_rest() {
        use Operator::*;
        for (text, column, operator, value) in [
            ("level.gte.3", "level", Gte, "3"),
            ("name.eq.", "name", Eq, ""),
            ("name.eq.a.b(c) \"d\"", "name", Eq, "a.b(c) \"d\""),
            (r#""a.b, \"c\\".like."x\"y,z)""#, r#"a.b, "c\"#, Like, r#"x"y,z)"#),
            ("and.eq.1", "and", Eq, "1"),
            ("not.eq.1", "not", Eq, "1"),
            ("größe.isdistinct.ü", "größe", IsDistinct, "ü"),
            (r#""a""b.""".eq."say ""hi""""#, r#"a"b.""#, Eq, r#"say "hi""#),
            (r#"""".eq.1".is.null"#, r#"".eq.1"#, Is, "null"),
            ("first name.eq. x ", "first name", Eq, " x "),
        ] {
            assert_eq!(tree(text), condition(column, operator, &[value]), "{text}");
        }
    }

    #[test]
    fn conditions_nest_and_values_inside_end_at_commas_and_brackets() {
        use Operator::*;
        let expected = Tree::All(vec![
            condition("a", Eq, &["1"]),
            Tree::Not(Box::new(Tree::Any(vec![
                Tree::Not(Box::new(condition("b", Is, &["null"]))),
                condition("c", In, &["1", "2", "x,y", ""]),
            ]))),
            condition("d", Eq, &[""]),
        ]);

        assert_eq!(tree(r#"and(a.eq.1, not.or(b.not.is.null,c.in.(1,2,"x,y",)),d.eq.)"#), expected);
        assert_eq!(tree("c.in.()"), condition("c", In, &[]));
        assert_eq!(tree("c.not.in.(a b)"), Tree::Not(Box::new(condition("c", In, &["a b"]))));
    }

    #[test]
    fn a_refusal_names_the_value_and_the_remedy() {
        assert_eq!(
            refusal("a.eq.1,b.eq.2"),
            r#"there is a comma in "a.eq.1,b.eq.2"; put the value in double quotes where the comma belongs to it, or write and(a.eq.1,b.eq.2) where several conditions were meant"#
        );
        assert_eq!(
            refusal("level.ge.3"),
            r#""ge" is no operator in "level.ge.3"; the operators are eq, neq, gt, gte, lt, lte, in, is, like, ilike, match, imatch and isdistinct"#
        );
        assert_eq!(
            refusal("name.fts.cat"),
            "the operator fts (full text search) cannot be decided on a stream; the operators are eq, neq, gt, gte, lt, lte, in, is, like, ilike, match, imatch and isdistinct"
        );
        assert_eq!(
            refusal("data->>x.eq.1"),
            r#""data->>x" is a path into JSON, which a filter cannot follow; keep the value in a column of its own (also a generated one) and filter by that"#
        );
        assert_eq!(
            refusal("level.eq(any).{1,2}"),
            r#"eq(any) is not among the operators here: eq takes no (any) or (all); write or(level.eq.…,level.eq.…), or and(…) in place of all"#
        );
        assert_eq!(
            refusal("not.level.eq.3"),
            "not.level is no condition; write not. behind the column, for example level.not.eq.1, or before and(…) and or(…)"
        );
    }

    #[test]
    fn a_blank_that_may_belong_to_a_value_or_not_is_refused() {
        assert_eq!(
            refusal("id.in.(x, abc)"),
            r#"there is a blank before the value "abc" in "id.in.(x, abc)"; take it out, or put the value in double quotes if the blank belongs to it"#
        );
        assert_eq!(
            refusal("and(phone.eq. 4912)"),
            r#"there is a blank before the value "4912" in "phone.eq. 4912)"; take it out, or put the value in double quotes if the blank belongs to it; a + in an address is written %2B"#
        );
        for (text, part) in [
            ("id.in.(x ,abc)", "behind the value \"x\""),
            ("id.in.(x,abc )", "behind the value \"abc\""),
            ("id.in.( x)", "before the value \"x\""),
            ("id.in.( )", "before the value \"\""),
            ("id.in.(x,\tabc)", "before the value \"abc\""),
            ("and(a.eq.1 ,b.eq.2)", "behind the value \"1\""),
            ("or(a.like.x* )", "behind the value \"x*\""),
            ("level .gte.3", "behind the column"),
            ("level. gte.3", "beside gte"),
            ("level.gte .3", "beside gte"),
            ("level.not. gte.3", "beside gte"),
            ("level. not.gte.3", "beside not"),
            ("level. in.(1)", "beside in"),
            ("level.in. (1)", "has no list"),
            ("and (a.eq.1)", "write and(…)"),
            ("not.or  (a.eq.1)", "write not.or(…)"),
        ] {
            assert!(refusal(text).contains(part), "{text}: {}", refusal(text));
        }
        assert_eq!(tree(" and( a.eq.1, b.eq.2) "), tree("and(a.eq.1,b.eq.2)"));
        assert_eq!(tree(r#"id.in.(" x","y ",a b)"#), condition("id", Operator::In, &[" x", "y ", "a b"]));
    }

    #[test]
    fn what_has_no_end_or_goes_on_behind_it_is_refused() {
        for (text, part) in [
            ("", "is no condition"),
            ("level", "is no condition"),
            (".eq.1", "is no condition"),
            ("level.eq", "has no value"),
            ("and()", "has no conditions"),
            ("and(a.eq.1", "is not closed"),
            ("and(a.eq.1,)", "is no condition"),
            ("and(a.eq.1)x", "goes on behind its end"),
            ("and(a.eq.1),b.eq.2", "goes on behind its end"),
            ("a.in.(1,2", "is not closed"),
            ("a.in.1", "has no list"),
            ("a.in.(1)2", "goes on behind its end"),
            ("a.in.(1, \"b\")", "a blank before a quoted value"),
            ("a.eq.\"b", "has no end"),
            ("a.eq.\"b\\", "has no end"),
            ("a.eq.\"b\"c", "behind a value"),
            ("and(a.eq.\"b\"c)", "behind a value"),
            ("a.eq.\0", "U+0000"),
            ("a.cs.{1}", "(arrays and ranges)"),
        ] {
            assert!(refusal(text).contains(part), "{text}: {}", refusal(text));
        }
    }

    #[test]
    fn every_bound_is_kept_and_named() {
        let deep = |depth: usize| format!("{}a.eq.1{}", "and(".repeat(depth), ")".repeat(depth));
        let many = |count: usize| format!("or({})", vec!["a.eq.1"; count].join(","));
        let long_list = |count: usize| format!("a.in.({})", vec!["1"; count].join(","));
        let long = |bytes: usize| format!("a.eq.{}", "x".repeat(bytes - "a.eq.".len()));
        for (within, beyond, bound) in [
            (deep(DEPTH_MAX), deep(DEPTH_MAX + 1), DEPTH_MAX),
            (many(CONDITIONS_MAX), many(CONDITIONS_MAX + 1), CONDITIONS_MAX),
            (long_list(LIST_MAX), long_list(LIST_MAX + 1), LIST_MAX),
            (long(WHERE_BYTES_MAX), long(WHERE_BYTES_MAX + 1), WHERE_BYTES_MAX),
        ] {
            assert!(parse(&within).is_ok());
            assert!(refusal(&beyond).contains(&bound.to_string()), "{}", refusal(&beyond));
        }
    }
}
