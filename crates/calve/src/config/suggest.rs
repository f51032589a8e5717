//! Errors of deserialization, in the words of the pipeline file: the path of the key, what is known
//! there, and the nearest of it.

use calve_engine::Error;

/// The error of a key at `path` (as `serde_path_to_error` writes it) with serde's message.
pub(super) fn wrong(path: &str, message: &str) -> Error {
    let at_root = path.is_empty() || path == ".";
    if let Some((key, known)) = unknown(message, "unknown field ") {
        let path = if path.ends_with(key) {
            path.to_owned()
        } else {
            join(path, key)
        };
        let error = Error::config(format!("unknown key: path={path}"));
        return match nearest(key, &known) {
            _ if known.is_empty() => error.hint("no keys are known here"),
            Some(name) => error.hint(format!(
                "did you mean `{name}`? known here: {}",
                known.join(", ")
            )),
            None => error.hint(format!("known here: {}", known.join(", "))),
        };
    }
    if let Some((value, known)) = unknown(message, "unknown variant ") {
        let error = Error::config(format!("unknown value: path={path} value={value}"));
        return match nearest(value, &known) {
            Some(name) => error.hint(format!(
                "did you mean `{name}`? possible here: {}",
                known.join(", ")
            )),
            None => error.hint(format!("possible here: {}", known.join(", "))),
        };
    }
    if let Some(key) = message.strip_prefix("missing field ") {
        let key = key.trim_matches('`');
        let path = if at_root {
            key.to_owned()
        } else {
            join(path, key)
        };
        return Error::config(format!("a key is missing: path={path}"))
            .hint("docs/pipeline-file.md describes it; `calve init` prints a whole file");
    }
    if at_root {
        return Error::config(message);
    }
    Error::config(format!("{message}: path={path}"))
}

/// The known name that is most like `name`, if one is like it.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_lowercase();
    let like = |other: &str| {
        let spelling = strsim::normalized_damerau_levenshtein(&name, &other.to_lowercase());
        spelling.max(strsim::jaro_winkler(&name, &other.to_lowercase()) - 0.25)
    };
    let best = known.iter().map(|other| (like(other), *other));
    let best = best.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.55).then_some(best.1)
}

/// What was not known, and what is: from "unknown field `a`, expected one of `b`, `c`".
fn unknown<'a>(message: &'a str, what: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let mut ticked = message.strip_prefix(what)?.split('`').skip(1).step_by(2);
    let name = ticked.next()?;
    Some((name, ticked.collect()))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() || path == "." {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}
