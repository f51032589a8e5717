//! The pipeline file: read, variables put in, checked, and every error with its place and a way out.
//!
//! Never here: what a pipeline does. A file that [`load`] returns has been validated as far as that
//! is possible without reading anything else. Start with [`file::PipelineFile`].

mod auto;
mod commit;
mod file;
mod limits;
mod monitor;
mod stores;
mod suggest;
mod validate;
mod vars;
mod window;

use std::path::Path;

use calve_engine::{Error, Result};
use serde_yaml_ng::Value;

pub(crate) use calve_engine::Secret;

pub(crate) use self::auto::AutoOr;
pub(crate) use self::commit::Compact;
pub(crate) use self::file::{PipelineFile, SinkConfig, beside};

/// Reads and validates a pipeline file. Variables come from the environment.
///
/// # Errors
/// `Config`, with the file, the path of the key in it, and a hint.
pub(crate) fn load(path: &Path) -> Result<PipelineFile> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let what = format!("cannot read the pipeline file: file={}", path.display());
        Error::config(what)
            .because(error)
            .hint("name a file that you may read; `calve init > pipeline.yaml` writes a starter")
    })?;
    let mut file = parse(&text, &|name| std::env::var(name).ok())
        .map_err(|error| error.context(path.display()))?;
    let stores = crate::pipeline::stores(&file);
    if let SinkConfig::Iceberg(sink) = &mut file.sink {
        sink.catalog.stores = stores;
    }
    Ok(file)
}

/// Reads and validates the text of a pipeline file; `lookup` knows the variables.
///
/// # Errors
/// See [`load`].
pub(crate) fn parse(text: &str, lookup: vars::Lookup) -> Result<PipelineFile> {
    let mut value: Value = serde_yaml_ng::from_str(text).map_err(|error| syntax(text, &error))?;
    if !value.is_mapping() {
        return Err(Error::config("the pipeline file is not a map of keys")
            .hint("`calve init` prints a starter, `calve schema` the JSON Schema"));
    }
    let put_in = vars::substitute(&mut value, lookup)?;
    let file = read(value, &put_in).and_then(|mut file: PipelineFile| {
        file.resolve()?;
        file.validate().map(|()| file)
    });
    file.map_err(|error| put_in.redact(error))
}

/// Deserializes. A value that is one variable and nothing else may be a number or a boolean where
/// the key wants one: YAML would have read it so, had it stood there itself.
fn read(mut value: Value, put_in: &vars::PutIn) -> Result<PipelineFile> {
    loop {
        let error = match serde_path_to_error::deserialize(&value) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        let path = error.path().to_string();
        let message = error.inner().to_string();
        let of_a_string = message.starts_with("invalid type: string");
        if !(of_a_string && put_in.is_whole(&path) && vars::retype(&mut value, &path)) {
            return Err(suggest::wrong(&path, &message));
        }
    }
}

/// A file that is no YAML, with the line and column.
fn syntax(text: &str, error: &serde_yaml_ng::Error) -> Error {
    let Some(place) = error.location() else {
        return Error::config(format!("the pipeline file is not YAML: {error}"));
    };
    let (line, column) = (place.line(), place.column());
    let message = error.to_string();
    // The parser says the place itself, in its own words, in the middle or at the end.
    let what = message.split(" at line ").next().unwrap_or(&message);
    if let Some(key) = what.strip_prefix("duplicate entry with key ") {
        return Error::config(format!(
            "a key is there twice: key={key} map_begins_at_line={line}"
        ))
        .hint("leave one of them out");
    }
    let error = Error::config(format!(
        "the pipeline file is not YAML: {what}: line={line} column={column}"
    ));
    let near = text.lines().skip(line.saturating_sub(2)).take(2);
    if near.into_iter().any(|line| line.contains("${")) {
        error.hint("inside { } and [ ], put quotes around variables: { token: \"${TOKEN}\" }")
    } else {
        error.hint("look for a missing space behind a colon, tabs, or quotes that do not end")
    }
}

#[cfg(test)]
mod tests;
