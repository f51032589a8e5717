//! The small language of filters: comparisons of columns with literals, `IN`, `IS NULL`, `AND`, `OR`,
//! `NOT` and parentheses, as in SQL, with its logic of three values: a row counts where it is true.

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch, Scalar, StringArray},
    compute::{
        CastOptions, and_kleene, cast_with_options, is_not_null, is_null,
        kernels::cmp::{eq, gt, gt_eq, lt, lt_eq, neq},
        not, or_kleene,
    },
    error::ArrowError,
};
use calve_engine::error::{Error, Result};

/// Which rows are meant.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Filter {
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
    Not(Box<Filter>),
    /// A column, an operator, a literal.
    Compare(String, Operator, String),
    IsNull(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A word as it is written: a keyword or a column.
    Word(String),
    /// A column in double quotes.
    Column(String),
    /// A text in single quotes.
    Text(String),
    Number(String),
    Sign(&'static str),
}

/// Longest first.
const SIGNS: [&str; 10] = ["<=", ">=", "<>", "!=", "=", "<", ">", "(", ")", ","];

fn wrong(what: &str) -> Error {
    Error::config(format!("the filter cannot be read: {what}")).hint(
        "write for example \"region = 'eu' AND (amount > 5 OR sku IS NULL)\"; columns with other \
         characters than letters, digits and _ stand in double quotes",
    )
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, used) = if first == '\'' || first == '"' {
            let (inside, used) = quoted(rest, first)?;
            let token = if first == '"' {
                Token::Column(inside)
            } else {
                Token::Text(inside)
            };
            (token, used)
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            (Token::Sign(sign), sign.len())
        } else {
            let number = first.is_ascii_digit() || matches!(first, '-' | '+' | '.');
            let part = |c: char| {
                c.is_alphanumeric() || c == '_' || (number && matches!(c, '.' | '-' | '+'))
            };
            let used = rest.find(|c| !part(c)).unwrap_or(rest.len());
            if used == 0 {
                return Err(wrong(&format!("character={first}")));
            }
            let word = rest[..used].to_owned();
            let token = if number {
                Token::Number(word)
            } else {
                Token::Word(word)
            };
            (token, used)
        };
        tokens.push(token);
        rest = rest[used..].trim_start();
    }
    Ok(tokens)
}

/// What stands between quotes, where a quote is doubled; and how many bytes that takes.
fn quoted(text: &str, quote: char) -> Result<(String, usize)> {
    let mut inside = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            inside.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == quote) {
            inside.push(quote);
            chars.next();
        } else {
            return Ok((inside, at + 1));
        }
    }
    Err(wrong("a quote is not closed"))
}

/// Reads tokens from the left to the right.
struct Parser<'a> {
    rest: &'a [Token],
    depth: usize,
}

/// Parentheses and `NOT` within each other.
const DEEPEST: usize = 100;

impl Parser<'_> {
    fn keyword(&mut self, keyword: &str) -> bool {
        let is = matches!(self.rest, [Token::Word(word), ..] if word.eq_ignore_ascii_case(keyword));
        if is {
            self.rest = &self.rest[1..];
        }
        is
    }

    fn sign(&mut self, sign: &str) -> bool {
        let is = matches!(self.rest, [Token::Sign(found), ..] if *found == sign);
        if is {
            self.rest = &self.rest[1..];
        }
        is
    }

    fn next(&mut self) -> Result<Token> {
        let (first, rest) = self
            .rest
            .split_first()
            .ok_or_else(|| wrong("it ends too early"))?;
        self.rest = rest;
        Ok(first.clone())
    }

    fn any(&mut self) -> Result<Filter> {
        let mut left = self.all()?;
        while self.keyword("or") {
            left = Filter::Or(Box::new(left), Box::new(self.all()?));
        }
        Ok(left)
    }

    fn all(&mut self) -> Result<Filter> {
        let mut left = self.one()?;
        while self.keyword("and") {
            left = Filter::And(Box::new(left), Box::new(self.one()?));
        }
        Ok(left)
    }

    fn one(&mut self) -> Result<Filter> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(wrong("it is nested too deeply"));
        }
        let found = if self.keyword("not") {
            Filter::Not(Box::new(self.one()?))
        } else if self.sign("(") {
            let inside = self.any()?;
            if !self.sign(")") {
                return Err(wrong("a parenthesis is not closed"));
            }
            inside
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(found)
    }

    fn comparison(&mut self) -> Result<Filter> {
        let (Token::Word(column) | Token::Column(column)) = self.next()? else {
            return Err(wrong("a column is expected before an operator"));
        };
        if self.keyword("is") {
            let negated = self.keyword("not");
            if !self.keyword("null") {
                return Err(wrong("NULL is expected behind IS"));
            }
            let is_null = Filter::IsNull(column);
            return Ok(if negated {
                Filter::Not(Box::new(is_null))
            } else {
                is_null
            });
        }
        let negated = self.keyword("not");
        if self.keyword("in") {
            let found = self.list(&column)?;
            return Ok(if negated {
                Filter::Not(Box::new(found))
            } else {
                found
            });
        }
        let operator = match self.next()? {
            Token::Sign("=") if !negated => Operator::Eq,
            Token::Sign("<>" | "!=") if !negated => Operator::Ne,
            Token::Sign("<") if !negated => Operator::Lt,
            Token::Sign("<=") if !negated => Operator::Le,
            Token::Sign(">") if !negated => Operator::Gt,
            Token::Sign(">=") if !negated => Operator::Ge,
            _ => return Err(wrong(&format!("an operator is expected: column={column}"))),
        };
        Ok(Filter::Compare(column, operator, self.literal()?))
    }

    fn list(&mut self, column: &str) -> Result<Filter> {
        if !self.sign("(") {
            return Err(wrong("a list in parentheses is expected behind IN"));
        }
        let one = |literal| Filter::Compare(column.to_owned(), Operator::Eq, literal);
        let mut found = one(self.literal()?);
        while self.sign(",") {
            found = Filter::Or(Box::new(found), Box::new(one(self.literal()?)));
        }
        if self.sign(")") {
            return Ok(found);
        }
        Err(wrong("a parenthesis is not closed"))
    }

    fn literal(&mut self) -> Result<String> {
        match self.next()? {
            Token::Text(text) | Token::Number(text) => Ok(text),
            Token::Word(word) if ["true", "false"].contains(&&*word.to_ascii_lowercase()) => {
                Ok(word.to_ascii_lowercase())
            }
            _ => Err(wrong(
                "a number, a text in single quotes, TRUE or FALSE is expected",
            )),
        }
    }
}

impl Filter {
    /// # Errors
    /// `Config` for what is no filter.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let tokens = tokens(text)?;
        let mut parser = Parser {
            rest: &tokens,
            depth: 0,
        };
        let filter = parser.any()?;
        if parser.rest.is_empty() {
            return Ok(filter);
        }
        Err(wrong("something follows it"))
    }

    /// The columns that it names.
    pub(super) fn columns<'a>(&'a self, to: &mut Vec<&'a str>) {
        match self {
            Self::And(a, b) | Self::Or(a, b) => {
                a.columns(to);
                b.columns(to);
            }
            Self::Not(a) => a.columns(to),
            Self::Compare(name, ..) | Self::IsNull(name) => to.push(name),
        }
    }

    /// Where it is true, in rows that have its columns.
    ///
    /// # Errors
    /// `Config` when a literal is none of the column's type, or the type cannot be compared.
    pub(super) fn holds(&self, rows: &RecordBatch) -> Result<BooleanArray> {
        let column = |name: &str| -> Result<&ArrayRef> {
            let column = rows.column_by_name(name);
            column.ok_or_else(|| wrong(&format!("the table has no such column: column={name}")))
        };
        let failed = |e: ArrowError| wrong("a column cannot be compared").because(e);
        match self {
            Self::And(a, b) => and_kleene(&a.holds(rows)?, &b.holds(rows)?).map_err(failed),
            Self::Or(a, b) => or_kleene(&a.holds(rows)?, &b.holds(rows)?).map_err(failed),
            Self::Not(a) => match a.as_ref() {
                Self::IsNull(name) => is_not_null(column(name)?).map_err(failed),
                other => not(&other.holds(rows)?).map_err(failed),
            },
            Self::IsNull(name) => is_null(column(name)?).map_err(failed),
            Self::Compare(name, operator, literal) => {
                let values = column(name)?;
                let of = values.data_type();
                let options = CastOptions {
                    safe: false,
                    ..CastOptions::default()
                };
                let text = StringArray::from(vec![literal.as_str()]);
                let literal = cast_with_options(&text, of, &options).map_err(|e| {
                    wrong(&format!(
                        "a literal is not of the column's type: column={name} type={of}"
                    ))
                    .because(e)
                })?;
                let literal = Scalar::new(literal);
                match operator {
                    Operator::Eq => eq(values, &literal),
                    Operator::Ne => neq(values, &literal),
                    Operator::Lt => lt(values, &literal),
                    Operator::Le => lt_eq(values, &literal),
                    Operator::Gt => gt(values, &literal),
                    Operator::Ge => gt_eq(values, &literal),
                }
                .map_err(failed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array};
    use std::sync::Arc;

    use super::*;

    fn rows() -> RecordBatch {
        let id: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(3), None]));
        let region: ArrayRef = Arc::new(StringArray::from(vec![
            Some("eu"),
            Some("us"),
            None,
            Some("it's"),
        ]));
        let amount: ArrayRef = Arc::new(Float64Array::from(vec![1.5, -2.0, 0.0, 9.0]));
        RecordBatch::try_from_iter([("id", id), ("region", region), ("a b", amount)])
            .expect("a batch")
    }

    #[test]
    fn rows_count_where_it_is_true() {
        for (filter, wanted) in [
            ("id = 2", &[1][..]),
            ("id <> 2", &[0, 2]),
            ("NOT id = 2", &[0, 2]),
            ("id >= 2 and region is not null", &[1]),
            ("id IN (1, 3) OR region = 'it''s'", &[0, 2, 3]),
            ("id not in (1,2)", &[2]),
            ("region IS NULL", &[2]),
            ("region = 'eu' OR id < 3 AND \"a b\" < -1", &[0, 1]),
            ("(region = 'eu' OR id < 3) AND \"a b\" < -1", &[1]),
            ("\"a b\" > 1e0", &[0, 3]),
            ("NOT (region = 'eu' OR region IS NULL)", &[1, 3]),
        ] {
            let holds = Filter::parse(filter).expect(filter).holds(&rows());
            let holds = holds.expect(filter);
            let found: Vec<usize> = (0..4)
                .filter(|row| holds.is_valid(*row) && holds.value(*row))
                .collect();
            assert_eq!(found, wanted, "{filter}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for filter in [
            "",
            "id",
            "id =",
            "id = 1 2",
            "= 1",
            "id = 'x",
            "(id = 1",
            "id is 3",
            "id in ()",
            "id = region",
            "id ~ 1",
            "id not 3",
            "id = 1;",
        ] {
            assert!(Filter::parse(filter).is_err(), "{filter}");
        }
        let deep = "(".repeat(5000);
        assert!(Filter::parse(&deep).is_err());
        for filter in ["id = 'x'", "nobody = 1", "id = 1.5"] {
            let parsed = Filter::parse(filter).expect(filter);
            assert!(parsed.holds(&rows()).is_err(), "{filter}");
        }
    }
}
