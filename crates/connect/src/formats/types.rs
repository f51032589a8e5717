//! Names of column types: Arrow's and SQL's, as in `columns: {ts: bigint, tags: list<varchar>}`.
//!
//! Invariant: [`parse`] of what [`name`] printed gives the same type, so that an inferred schema can
//! be shown, pasted into a pipeline file, and stored with the checkpoint.

use std::{fmt::Write as _, sync::Arc};

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use calve_engine::{Error, Result};

const UTC: &str = "UTC";

/// Names without parameters; the first name of a type is the one that is printed.
const SIMPLE: &[(&str, DataType)] = &[
    ("boolean", DataType::Boolean),
    ("bool", DataType::Boolean),
    ("tinyint", DataType::Int8),
    ("int8", DataType::Int8),
    ("smallint", DataType::Int16),
    ("int16", DataType::Int16),
    ("int", DataType::Int32),
    ("integer", DataType::Int32),
    ("int32", DataType::Int32),
    ("bigint", DataType::Int64),
    ("long", DataType::Int64),
    ("int64", DataType::Int64),
    ("uint8", DataType::UInt8),
    ("uint16", DataType::UInt16),
    ("uint32", DataType::UInt32),
    ("uint64", DataType::UInt64),
    ("float16", DataType::Float16),
    ("float", DataType::Float32),
    ("real", DataType::Float32),
    ("float32", DataType::Float32),
    ("double", DataType::Float64),
    ("double precision", DataType::Float64),
    ("float64", DataType::Float64),
    ("varchar", DataType::Utf8),
    ("text", DataType::Utf8),
    ("string", DataType::Utf8),
    ("utf8", DataType::Utf8),
    ("large_string", DataType::LargeUtf8),
    ("large_utf8", DataType::LargeUtf8),
    ("binary", DataType::Binary),
    ("bytea", DataType::Binary),
    ("varbinary", DataType::Binary),
    ("blob", DataType::Binary),
    ("large_binary", DataType::LargeBinary),
    ("date", DataType::Date32),
    ("date32", DataType::Date32),
    ("date64", DataType::Date64),
];

/// Names that take parameters or need more than one word, for suggestions.
const OTHER: &[&str] = &[
    "decimal",
    "numeric",
    "time",
    "timestamp",
    "timestamptz",
    "dictionary",
    "dict",
    "list",
    "array",
    "map",
    "struct",
    "fixed_size_binary",
    "fixed_size_list",
    "large_list",
];

/// Type and nullability of a column, from its declaration.
///
/// # Errors
/// `Config`, with the column and the nearest type name.
pub fn parse(column: &str, text: &str) -> Result<Field> {
    let mut parser = Parser { text, at: 0 };
    parser
        .field(column)
        .and_then(|field| parser.end().map(|()| field))
        .map_err(|problem| {
            let error = Error::config(format!(
                "column {column}: {} in type `{text}`",
                problem.message
            ));
            match problem.hint {
                Some(hint) => error.hint(hint),
                None => error.hint(
                    "types are for example bigint, double, varchar, timestamp(ms), timestamptz, \
                 decimal(10, 2), list<varchar>, map<varchar, int>, struct<a: int, b: varchar>",
                ),
            }
        })
}

/// The declaration of a column: its type, and `not null` where it is not nullable.
pub fn declaration(field: &Field) -> Option<String> {
    let mut text = name(field.data_type())?;
    if !field.is_nullable() {
        text.push_str(" not null");
    }
    Some(text)
}

/// The name of a type; none for types that calve does not take (unions, run-end encodings, …).
pub fn name(data_type: &DataType) -> Option<String> {
    if let Some((simple, _)) = SIMPLE.iter().find(|(_, simple)| simple == data_type) {
        return Some((*simple).to_owned());
    }
    Some(match data_type {
        DataType::Utf8View => "varchar".to_owned(),
        DataType::BinaryView => "binary".to_owned(),
        DataType::Decimal32(p, s) => format!("decimal32({p}, {s})"),
        DataType::Decimal64(p, s) => format!("decimal64({p}, {s})"),
        DataType::Decimal128(p, s) => format!("decimal({p}, {s})"),
        DataType::Decimal256(p, s) => format!("decimal256({p}, {s})"),
        DataType::Time32(TimeUnit::Second) => "time(s)".to_owned(),
        DataType::Time32(_) => "time(ms)".to_owned(),
        DataType::Time64(TimeUnit::Nanosecond) => "time(ns)".to_owned(),
        DataType::Time64(_) => "time".to_owned(),
        DataType::Timestamp(unit, None) => format!("timestamp({})", unit_name(*unit)),
        DataType::Timestamp(unit, Some(zone)) if &**zone == UTC => {
            format!("timestamptz({})", unit_name(*unit))
        }
        DataType::Timestamp(unit, Some(zone)) => {
            format!("timestamptz({}, {zone})", unit_name(*unit))
        }
        DataType::FixedSizeBinary(size) => format!("fixed_size_binary({size})"),
        DataType::Dictionary(key, value) if **key == DataType::Int32 => {
            format!("dictionary({})", name(value)?)
        }
        DataType::Dictionary(key, value) => format!("dictionary({}, {})", name(key)?, name(value)?),
        DataType::List(item) | DataType::ListView(item) => format!("list<{}>", declaration(item)?),
        DataType::LargeList(item) => format!("large_list<{}>", declaration(item)?),
        DataType::FixedSizeList(item, size) => {
            format!("fixed_size_list<{}, {size}>", declaration(item)?)
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) if pair.len() == 2 => {
                format!(
                    "map<{}, {}>",
                    name(pair[0].data_type())?,
                    declaration(&pair[1])?
                )
            }
            _ => return None,
        },
        DataType::Struct(fields) => {
            let mut text = "struct<".to_owned();
            for (i, field) in fields.iter().enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                let _ = write!(
                    text,
                    "{comma}{}: {}",
                    quoted(field.name()),
                    declaration(field)?
                );
            }
            text + ">"
        }
        _ => return None,
    })
}

/// A map type as calve makes them: entries of key and value.
pub(crate) fn map_of(key: DataType, value: Field) -> DataType {
    let pair = Fields::from(vec![
        Field::new("key", key, false),
        value.with_name("value"),
    ]);
    DataType::Map(
        Arc::new(Field::new("entries", DataType::Struct(pair), false)),
        false,
    )
}

fn unit_name(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

fn quoted(name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

struct Problem {
    message: String,
    hint: Option<String>,
}

impl Problem {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }
}

type Parsed<T> = Result<T, Problem>;

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

#[cfg(test)]
#[path = "types_tests.rs"]
mod tests;
