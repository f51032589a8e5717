//! Variables in the values of a pipeline file: `${VAR}`, `${VAR:-default}`, `${VAR:?message}`.
//!
//! They are put in after the YAML was parsed, into strings that are values: a variable can never add
//! or change a key. `$${` stands for `${`. What came from a variable is never shown in an error.

use std::collections::BTreeSet;

use calve_engine::{Error, Result};
use serde_yaml_ng::Value;

/// Knows the values of variables.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What was put in.
#[derive(Default)]
pub(super) struct PutIn {
    /// Values of variables, longest first after [`substitute`].
    values: Vec<String>,
    /// Paths of the values that are one variable and nothing else.
    whole: BTreeSet<String>,
}

/// Puts variables into all strings of `value` that are not keys.
///
/// # Errors
/// `Config` for a variable that is not set and has no default, and for `${` that does not end.
pub(super) fn substitute(value: &mut Value, lookup: Lookup) -> Result<PutIn> {
    let mut put_in = PutIn::default();
    each_string(value, "", &mut |path, text| {
        if !text.contains("${") {
            return Ok(None);
        }
        if text.starts_with("${") && text.find('}') == Some(text.len() - 1) {
            put_in.whole.insert(path.to_owned());
        }
        expand(text, path, lookup, &mut put_in.values).map(|text| Some(Value::String(text)))
    })?;
    put_in.values.retain(|value| !value.trim().is_empty());
    // In messages values may stand in quotes, with escapes.
    let quoted = put_in.values.iter().map(|value| {
        let quoted = format!("{value:?}");
        quoted[1..quoted.len() - 1].to_owned()
    });
    let quoted: Vec<String> = quoted.collect();
    put_in.values.extend(quoted);
    put_in
        .values
        .sort_by_key(|value| std::cmp::Reverse(value.len()));
    put_in.values.dedup();
    Ok(put_in)
}

/// Makes the string at `path` the number or boolean that YAML would have read.
/// Answers whether it was one.
pub(super) fn retype(value: &mut Value, path: &str) -> bool {
    let mut done = false;
    let result = each_string(value, "", &mut |at, text| {
        let scalar = (at == path).then(|| serde_yaml_ng::from_str::<Value>(text).ok());
        let scalar = scalar
            .flatten()
            .filter(|scalar| scalar.is_number() || scalar.is_bool());
        done |= scalar.is_some();
        Ok(scalar)
    });
    result.is_ok() && done
}

impl PutIn {
    /// Whether the value at `path` is one variable and nothing else.
    pub(super) fn is_whole(&self, path: &str) -> bool {
        self.whole.contains(path)
    }

    /// The error without what came from variables.
    pub(super) fn redact(&self, error: Error) -> Error {
        if self.values.is_empty() {
            return error;
        }
        // The causes may hold values too; their text is kept, without them.
        let clean = Error::new(error.kind(), self.clean(&error.to_string()));
        match error.hint_text() {
            Some(hint) => clean.hint(self.clean(hint)),
            None => clean,
        }
    }

    fn clean(&self, text: &str) -> String {
        let values = self.values.iter();
        values.fold(text.to_owned(), |text, value| hide(&text, value))
    }
}

/// `text` with `***` for `value`, where it is not a part of a longer word.
fn hide(text: &str, value: &str) -> String {
    let mut hidden = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(value) {
        let (before, behind) = (&rest[..at], &rest[at + value.len()..]);
        let last = if before.is_empty() {
            hidden.chars().next_back()
        } else {
            before.chars().next_back()
        };
        let joined = |neighbour: Option<char>, own: Option<char>| {
            neighbour.is_some_and(char::is_alphanumeric) && own.is_some_and(char::is_alphanumeric)
        };
        let part_of_a_word = value.len() < 8
            && (joined(last, value.chars().next())
                || joined(behind.chars().next(), value.chars().next_back()));
        hidden.push_str(before);
        hidden.push_str(if part_of_a_word { value } else { "***" });
        rest = behind;
    }
    hidden + rest
}

/// Calls `change` with each string that is not a key, and its path as `serde_path_to_error` writes
/// it; takes what it answers for it.
fn each_string(
    value: &mut Value,
    path: &str,
    change: &mut dyn FnMut(&str, &str) -> Result<Option<Value>>,
) -> Result<()> {
    match value {
        Value::String(text) => {
            if let Some(new) = change(path, text)? {
                *value = new;
            }
            Ok(())
        }
        Value::Sequence(items) => items
            .iter_mut()
            .enumerate()
            .try_for_each(|(index, item)| each_string(item, &format!("{path}[{index}]"), change)),
        Value::Mapping(map) => map.iter_mut().try_for_each(|(key, item)| {
            let key = key.as_str().unwrap_or("?");
            let dot = if path.is_empty() { "" } else { "." };
            each_string(item, &format!("{path}{dot}{key}"), change)
        }),
        Value::Tagged(tagged) => each_string(&mut tagged.value, path, change),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// One string with its variables put in; their values are added to `values`.
fn expand(text: &str, path: &str, lookup: Lookup, values: &mut Vec<String>) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let before = &rest[..at];
        let inside = &rest[at + 2..];
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = inside;
            continue;
        }
        out.push_str(before);
        let end = inside.find('}').ok_or_else(|| {
            Error::config(format!("a variable does not end: path={path}"))
                .hint("write ${VAR}; for the characters ${ themselves write $${")
        })?;
        out.push_str(&variable(&inside[..end], path, lookup, values)?);
        rest = &inside[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The value of what stands between the braces. As in a shell, a variable that is empty counts as
/// not set for `:-` and `:?`.
fn variable(inside: &str, path: &str, lookup: Lookup, values: &mut Vec<String>) -> Result<String> {
    let (name, otherwise) = match inside.split_once(':') {
        Some((name, otherwise)) => (name, Some(otherwise)),
        None => (inside, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let wrong = || {
        Error::config(format!("not a variable: path={path} variable={name}"))
            .hint("write ${VAR}, ${VAR:-default} or ${VAR:?message}")
    };
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(word)
    {
        return Err(wrong());
    }
    let (default, message) = match otherwise.map(|text| text.split_at_checked(1)) {
        None => (None, None),
        Some(Some(("-", default))) => (Some(default), None),
        Some(Some(("?", message))) => (None, Some(message)),
        Some(_) => return Err(wrong()),
    };
    let value = lookup(name).filter(|value| otherwise.is_none() || !value.is_empty());
    if let Some(value) = value {
        values.push(value.clone());
        return Ok(value);
    }
    if let Some(default) = default {
        return Ok(default.to_owned());
    }
    let hint = match message {
        Some(message) if !message.is_empty() => message.to_owned(),
        _ => format!("set {name}, or give a default: ${{{name}:-default}}"),
    };
    Err(Error::config(format!(
        "a variable is not set: path={path} variable={name}"
    ))
    .hint(hint))
}
