//! Reads a declaration such as `list<struct<a: int not null, b: decimal(10, 2)>>`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};

use super::{OTHER, SIMPLE, UTC, map_of};

/// What is wrong with a declaration.
pub(super) struct Problem {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }
}

pub(super) type Parsed<T> = Result<T, Problem>;

/// Type and nullability of a column, from its declaration.
pub(super) fn parse(column: &str, text: &str) -> Parsed<Field> {
    let mut parser = Parser { text, at: 0 };
    let field = parser.field(column)?;
    parser.end()?;
    Ok(field)
}

/// Recursive descent over one declaration. Words are case-insensitive.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn field(&mut self, name: &str) -> Parsed<Field> {
        let data_type = self.data_type()?;
        let mut nullable = true;
        if self.eat_word("not") {
            if !self.eat_word("null") {
                return Err(Problem::new("expected `null` after `not`"));
            }
            nullable = false;
        } else {
            self.eat_word("null");
        }
        Ok(Field::new(name, data_type, nullable))
    }

    fn data_type(&mut self) -> Parsed<DataType> {
        let start = self.at;
        let word = self.word().to_ascii_lowercase();
        let mut found = match word.as_str() {
            "" => {
                return Err(Problem::new(format!(
                    "expected a type at position {}",
                    start + 1
                )));
            }
            "double" if self.eat_word("precision") => DataType::Float64,
            "decimal" | "numeric" | "decimal32" | "decimal64" | "decimal256" => {
                self.decimal(&word)?
            }
            "varchar" | "char" | "character" => {
                // The length of SQL's varchar(n) is not enforced, as in DuckDB.
                if self.eat('(') {
                    self.number()?;
                    self.expect(')')?;
                }
                DataType::Utf8
            }
            "time" => self.time()?,
            "timestamp" | "datetime" | "timestamptz" => self.timestamp(&word)?,
            "dictionary" | "dict" => self.dictionary()?,
            "list" | "array" | "large_list" => {
                self.expect('<')?;
                let item = Arc::new(self.field("item")?);
                self.expect('>')?;
                if word == "large_list" {
                    DataType::LargeList(item)
                } else {
                    DataType::List(item)
                }
            }
            "fixed_size_list" => {
                self.expect('<')?;
                let item = Arc::new(self.field("item")?);
                self.expect(',')?;
                let size = self.number()?;
                self.expect('>')?;
                DataType::FixedSizeList(item, i32::from(size))
            }
            "fixed_size_binary" => {
                self.expect('(')?;
                let size = self.number()?;
                self.expect(')')?;
                DataType::FixedSizeBinary(i32::from(size))
            }
            "map" => {
                self.expect('<')?;
                let key = self.data_type()?;
                self.expect(',')?;
                let value = self.field("value")?;
                self.expect('>')?;
                map_of(key, value)
            }
            "struct" | "row" => self.structure()?,
            word => match SIMPLE.iter().find(|(name, _)| *name == word) {
                Some((_, simple)) => simple.clone(),
                None => return Err(unknown(word)),
            },
        };
        while self.eat('[') {
            self.expect(']')?;
            found = DataType::List(Arc::new(Field::new("item", found, true)));
        }
        Ok(found)
    }

    fn decimal(&mut self, word: &str) -> Parsed<DataType> {
        let (mut precision, mut scale) = (38, 10);
        if self.eat('(') {
            precision = self.number()?;
            scale = if self.eat(',') { self.number()? } else { 0 };
            self.expect(')')?;
        }
        let most = match word {
            "decimal32" => 9,
            "decimal64" => 18,
            _ => 76,
        };
        if precision == 0 || precision > most || scale > precision {
            return Err(Problem::new(format!(
                "precision must be 1 to {most} and scale at most it"
            )));
        }
        let (precision, scale) = (precision as u8, scale as i8);
        Ok(match word {
            "decimal32" => DataType::Decimal32(precision, scale),
            "decimal64" => DataType::Decimal64(precision, scale),
            "decimal256" => DataType::Decimal256(precision, scale),
            _ if precision > 38 => DataType::Decimal256(precision, scale),
            _ => DataType::Decimal128(precision, scale),
        })
    }

    fn time(&mut self) -> Parsed<DataType> {
        Ok(match self.unit()?.0 {
            unit @ (TimeUnit::Second | TimeUnit::Millisecond) => DataType::Time32(unit),
            unit => DataType::Time64(unit),
        })
    }

    fn timestamp(&mut self, word: &str) -> Parsed<DataType> {
        let (unit, zone) = self.unit()?;
        let mut with_zone = word == "timestamptz";
        if self.eat_word("with") {
            with_zone = true;
            self.time_zone()?;
        } else if self.eat_word("without") {
            self.time_zone()?;
        }
        Ok(match zone {
            Some(zone) => DataType::Timestamp(unit, Some(zone.into())),
            None => DataType::Timestamp(unit, with_zone.then(|| UTC.into())),
        })
    }

    fn time_zone(&mut self) -> Parsed<()> {
        if self.eat_word("time") && self.eat_word("zone") {
            return Ok(());
        }
        Err(Problem::new("expected `time zone`"))
    }

    /// `(unit)` or `(unit, zone)`; SQL's digits 0, 3, 6, 9 are units too. Default: microseconds.
    fn unit(&mut self) -> Parsed<(TimeUnit, Option<String>)> {
        if !self.eat('(') {
            return Ok((TimeUnit::Microsecond, None));
        }
        let unit = match self.word().to_ascii_lowercase().as_str() {
            "s" | "0" => TimeUnit::Second,
            "ms" | "3" => TimeUnit::Millisecond,
            "us" | "6" => TimeUnit::Microsecond,
            "ns" | "9" => TimeUnit::Nanosecond,
            _ => return Err(Problem::new("expected a unit of s, ms, us, ns")),
        };
        let mut zone = None;
        if self.eat(',') {
            let rest = &self.text[self.at..];
            let end = rest.find(')').unwrap_or(rest.len());
            zone = Some(rest[..end].trim().trim_matches(['\'', '"']).to_owned());
            self.at += end;
        }
        self.expect(')')?;
        Ok((unit, zone))
    }

    /// `(value)` or `(key, value)`, in round or angle brackets; bare: of strings.
    fn dictionary(&mut self) -> Parsed<DataType> {
        let close = if self.eat('(') {
            ')'
        } else if self.eat('<') {
            '>'
        } else {
            return Ok(DataType::Dictionary(
                Box::new(DataType::Int32),
                Box::new(DataType::Utf8),
            ));
        };
        let first = self.data_type()?;
        let (key, value) = if self.eat(',') {
            (first, self.data_type()?)
        } else {
            (DataType::Int32, first)
        };
        self.expect(close)?;
        if !key.is_dictionary_key_type() {
            return Err(Problem::new("a dictionary's key is an integer type"));
        }
        Ok(DataType::Dictionary(Box::new(key), Box::new(value)))
    }

    fn structure(&mut self) -> Parsed<DataType> {
        let close = if self.eat('(') {
            ')'
        } else {
            self.expect('<').map(|()| '>')?
        };
        let mut fields: Vec<Field> = Vec::new();
        while !self.eat(close) {
            if !fields.is_empty() {
                self.expect(',')?;
            }
            let name = self.identifier()?;
            self.eat(':');
            if fields.iter().any(|field| *field.name() == name) {
                return Err(Problem::new(format!("field {name} is there twice")));
            }
            fields.push(self.field(&name)?);
        }
        if fields.is_empty() {
            return Err(Problem::new("a struct needs a field"));
        }
        Ok(DataType::Struct(fields.into()))
    }

    fn identifier(&mut self) -> Parsed<String> {
        self.skip_blanks();
        if !self.eat('"') {
            let word = self.word();
            return if word.is_empty() {
                Err(Problem::new("expected a field name"))
            } else {
                Ok(word.to_owned())
            };
        }
        let mut name = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(end) = rest.find('"') else {
                return Err(Problem::new("missing `\"`"));
            };
            name.push_str(&rest[..end]);
            self.at += end + 1;
            if !self.text[self.at..].starts_with('"') {
                return Ok(name);
            }
            name.push('"');
            self.at += 1;
        }
    }

    fn number(&mut self) -> Parsed<u16> {
        self.word()
            .parse()
            .map_err(|_| Problem::new("expected a number"))
    }

    fn skip_blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn word(&mut self) -> &str {
        self.skip_blanks();
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn eat_word(&mut self, expected: &str) -> bool {
        let before = self.at;
        if self.word().eq_ignore_ascii_case(expected) {
            return true;
        }
        self.at = before;
        false
    }

    fn eat(&mut self, expected: char) -> bool {
        self.skip_blanks();
        let found = self.text[self.at..].starts_with(expected);
        if found {
            self.at += expected.len_utf8();
        }
        found
    }

    fn expect(&mut self, expected: char) -> Parsed<()> {
        if self.eat(expected) {
            return Ok(());
        }
        Err(Problem::new(format!(
            "expected `{expected}` at position {}",
            self.at + 1
        )))
    }

    fn end(&mut self) -> Parsed<()> {
        self.skip_blanks();
        if self.at == self.text.len() {
            return Ok(());
        }
        Err(Problem::new(format!(
            "unexpected text at position {}",
            self.at + 1
        )))
    }
}

fn unknown(word: &str) -> Problem {
    let names = SIMPLE
        .iter()
        .map(|(name, _)| *name)
        .chain(OTHER.iter().copied());
    let nearest = names
        .map(|name| (strsim::damerau_levenshtein(word, name), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
    Problem {
        message: format!("unknown type `{word}`"),
        hint: nearest.map(|(_, name)| format!("did you mean `{name}`?")),
    }
}
