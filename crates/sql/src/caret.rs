//! Errors about SQL: what is wrong, the line with a caret below the place, and the nearest name that
//! exists. Planning errors quote the SQL; errors at run time never hold a value of a row.

use std::path::Path;

use arrow::error::ArrowError;
use calve_engine::{Error, ErrorKind};
use datafusion::{
    common::{DataFusionError, SchemaError},
    sql::sqlparser::{
        dialect::GenericDialect,
        parser::ParserError,
        tokenizer::{Token, Tokenizer},
    },
};

use crate::{lookup::LookupFormat, session};

/// A place in the text; line and column count from 1, the length is in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
    length: usize,
}

/// The line of the place with carets below it; empty where there is no such line.
fn point(sql: &str, place: Place) -> String {
    let Some(line) = sql.lines().nth(place.line.wrapping_sub(1)) else {
        return String::new();
    };
    let before = line.chars().take(place.column.saturating_sub(1));
    // A tab stays a tab, so that the caret stands below its place whatever a tab's width.
    let indent: String = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let rest = line.chars().count().saturating_sub(indent.chars().count());
    let carets = "^".repeat(place.length.clamp(1, rest.max(1)));
    let number = place.line.to_string();
    let margin = " ".repeat(number.len());
    format!("\n  {number} | {line}\n  {margin} | {indent}{carets}")
}

/// Where these words stand one after the other (upper or lower case), with nothing but space between.
fn find(sql: &str, words: &[&str]) -> Option<Place> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location()
        .ok()?;
    let tokens: Vec<_> = tokens
        .iter()
        .filter(|t| !matches!(t.token, Token::Whitespace(_)))
        .collect();
    let is = |token: &Token, word: &str| match token {
        Token::Word(w) => w.value.eq_ignore_ascii_case(word),
        Token::SingleQuotedString(s) | Token::DoubleQuotedString(s) => s == word,
        _ => false,
    };
    let at = tokens.windows(words.len().max(1)).find(|window| {
        window
            .iter()
            .zip(words)
            .all(|(token, word)| is(&token.token, word))
    })?;
    let (first, last) = (at.first()?.span, at.last()?.span);
    let length = if first.start.line == last.end.line {
        last.end.column.saturating_sub(first.start.column)
    } else {
        1
    };
    Some(Place {
        line: first.start.line as usize,
        column: first.start.column as usize,
        length: length as usize,
    })
}

/// A Config error that points at the first place where one of the phrases stands.
pub(crate) fn refuse(sql: &str, message: &str, phrases: &[&str]) -> Error {
    let place = phrases.iter().find_map(|phrase| {
        let words: Vec<&str> = phrase.split(' ').collect();
        find(sql, &words)
    });
    let pointed = place.map(|place| point(sql, place)).unwrap_or_default();
    Error::config(format!("{message}{pointed}"))
}

/// What DataFusion says about a text that it could not plan.
pub(crate) fn planning(sql: &str, tables: &[String], error: &DataFusionError) -> Error {
    let root = error
        .iter()
        .next()
        .map_or_else(|| error.find_root(), DataFusionError::find_root);
    let spanned = error.diagnostic().and_then(|d| d.span).map(|span| Place {
        line: span.start.line as usize,
        column: span.start.column as usize,
        length: if span.start.line == span.end.line {
            span.end.column.saturating_sub(span.start.column) as usize
        } else {
            1
        },
    });
    let at = |place: Option<Place>, word: &str| {
        place
            .or_else(|| find(sql, &[word]))
            .map(|place| point(sql, place))
            .unwrap_or_default()
    };
    match root {
        DataFusionError::SQL(parser, _) => unparsable(sql, parser),
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound {
                field,
                valid_fields,
            } => {
                let names: Vec<String> = valid_fields.iter().map(|f| f.name().to_owned()).collect();
                let pointed = at(spanned, field.name());
                let message = format!("unknown column: column={}{pointed}", field.flat_name());
                Error::config(message).hint(suggest("columns", field.name(), names))
            }
            SchemaError::AmbiguousReference { field } => {
                let pointed = at(spanned, field.name());
                Error::config(format!(
                    "ambiguous column: column={}{pointed}",
                    field.name()
                ))
                .hint("say which table it is from, as in `events.name`")
            }
            SchemaError::DuplicateQualifiedField { name, .. }
            | SchemaError::DuplicateUnqualifiedField { name } => duplicate(sql, name),
        },
        other => {
            let text = other.message();
            let text = text.lines().next().unwrap_or_default();
            let quoted = text.split('\'').nth(1).unwrap_or_default();
            if text.starts_with("table '") {
                // The planner puts the default catalog and schema in front of a name.
                let name = quoted.strip_prefix("calve.").unwrap_or(quoted);
                let name = name.strip_prefix("main.").unwrap_or(name);
                let pointed = at(spanned, name);
                return Error::config(format!("unknown table: table={name}{pointed}"))
                    .hint(unknown_table(name, tables));
            }
            if text.starts_with("Invalid function '") {
                let state = session::state();
                let names = state.scalar_functions().keys();
                let names = names.chain(state.aggregate_functions().keys()).cloned();
                let pointed = at(spanned, quoted);
                return Error::config(format!("unknown function: function={quoted}{pointed}"))
                    .hint(suggest("functions", quoted, names.collect()));
            }
            if text.contains("unique expression names") {
                let name = text.split('"').nth(1).unwrap_or_default();
                return duplicate(sql, name.rsplit('.').next().unwrap_or(name));
            }
            let mut message: String = text.chars().take(400).collect();
            if let Some(first) = message.get_mut(..1) {
                first.make_ascii_lowercase();
            }
            let pointed = spanned.map(|place| point(sql, place)).unwrap_or_default();
            Error::config(format!("the SQL cannot be planned: {message}{pointed}"))
        }
    }
}

/// Two columns of the result have one name.
pub(crate) fn duplicate(sql: &str, name: &str) -> Error {
    refuse(
        sql,
        &format!("two columns of the result have one name: column={name}"),
        &[name],
    )
    .hint(format!("rename one of them, as in `{name} AS {name}_2`"))
}

fn unparsable(sql: &str, error: &ParserError) -> Error {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => {
            return Error::config("the SQL is nested too deeply");
        }
    };
    // The parser ends its message with the place.
    let (what, place) = text.rsplit_once(" at Line: ").unwrap_or((text, ""));
    let place = place.split_once(", Column: ").and_then(|(line, column)| {
        Some(Place {
            line: line.trim().parse().ok()?,
            column: column.trim().parse().ok()?,
            length: 1,
        })
    });
    let mut what = what.to_owned();
    if let Some(first) = what.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    let pointed = place.map(|place| point(sql, place)).unwrap_or_default();
    Error::config(format!("the SQL does not parse: {what}{pointed}"))
}

fn unknown_table(name: &str, tables: &[String]) -> String {
    let named = suggest("tables", name, tables.to_vec());
    if name.contains(['/', '\\']) || LookupFormat::of(Path::new(name)).is_some() {
        return format!(
            "{named}; a file is read under a name of its own: tables: {{ name: {{ file: … }} }}"
        );
    }
    named
}

/// The nearest names, or the names that there are.
fn suggest(what: &str, name: &str, names: Vec<String>) -> String {
    let mut near: Vec<(f64, &String)> = names
        .iter()
        .map(|n| {
            (
                strsim::jaro_winkler(&n.to_lowercase(), &name.to_lowercase()),
                n,
            )
        })
        .filter(|(score, _)| *score > 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    if let Some((_, nearest)) = near.first() {
        let quoted = if **nearest == nearest.to_lowercase() || what != "columns" {
            format!("`{nearest}`")
        } else {
            format!("`\"{nearest}\"` (quoted: unquoted names are lower case)")
        };
        return format!("did you mean {quoted}?");
    }
    if names.is_empty() || names.len() > 100 {
        return format!("there is nothing of that name among the {what}");
    }
    format!("{what}: {}", names.join(", "))
}

/// What went wrong while a plan ran over rows: mostly a value that does not fit, which is the
/// event's fault.
pub(crate) fn running(error: &DataFusionError, column: Option<&str>) -> Error {
    let at = column
        .map(|name| format!(": column={name}"))
        .unwrap_or_default();
    let root = error.find_root();
    let (kind, what) = match root {
        DataFusionError::ArrowError(arrow, _) => match arrow.as_ref() {
            ArrowError::CastError(text) | ArrowError::ParseError(text) => {
                let target = text
                    .rfind(" to value of ")
                    .map(|at| text[at + " to value of ".len()..].trim_end_matches(" type"))
                    .map(|target| format!(" to {target}"));
                let what = format!("a value does not convert{}", target.unwrap_or_default());
                (ErrorKind::Data, what)
            }
            ArrowError::DivideByZero => (ErrorKind::Data, "division by zero".into()),
            ArrowError::ArithmeticOverflow(_) => (ErrorKind::Data, "arithmetic overflow".into()),
            ArrowError::OffsetOverflowError(_) => (
                ErrorKind::Data,
                "the text of one batch is above 2 GiB".into(),
            ),
            _ => (
                ErrorKind::Data,
                "an expression does not accept a value".into(),
            ),
        },
        DataFusionError::Execution(_)
        | DataFusionError::External(_)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::Plan(_) => (
            ErrorKind::Data,
            "an expression does not accept a value".into(),
        ),
        DataFusionError::ResourcesExhausted(_) => (
            ErrorKind::Unavailable,
            "the SQL needs more memory than it may use".into(),
        ),
        other => {
            let text = other.message();
            let text = text.lines().next().unwrap_or_default().to_owned();
            (ErrorKind::Internal, format!("the SQL failed: {text}"))
        }
    };
    Error::new(kind, format!("{what}{at}"))
}
