//! Paths of fields, such as `meta.closed_at`: names of fields from the message inwards. A oneof has no
//! place in a path, as it has none on the wire.

use calve_engine::{Error, Result};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, OneofDescriptor};

use super::draft::oneof_of;

/// The fields of a path, from the outermost.
///
/// # Errors
/// `Config` for a name that is not there, with the nearest; for a oneof, a list and a scalar in the
/// middle.
pub(super) fn fields(message: &MessageDescriptor, path: &str) -> Result<Vec<FieldDescriptor>> {
    let names: Vec<&str> = path.split('.').collect();
    let mut message = message.clone();
    let mut fields = Vec::with_capacity(names.len());
    for (at, name) in names.iter().enumerate() {
        let Some(field) = message.get_field_by_name(name) else {
            return Err(unknown(&message, name, path, &names[at + 1..]));
        };
        if at + 1 < names.len() {
            let part = names[..=at].join(".");
            if field.is_list() || field.is_map() {
                return Err(Error::config(format!(
                    "`{part}` holds many, and a path leads through one: path={path}"
                ))
                .hint(format!(
                    "take the whole of `{part}` as a column, and unnest it in SQL"
                )));
            }
            let Kind::Message(inner) = field.kind() else {
                return Err(
                    Error::config(format!("`{part}` is no message: path={path}"))
                        .hint(format!("end the path there: `{part}`")),
                );
            };
            message = inner;
        }
        fields.push(field);
    }
    Ok(fields)
}

/// The oneof at the end of a path, and the fields before it.
///
/// # Errors
/// As [`fields`]; also when the path ends at something else.
pub(super) fn oneof(
    message: &MessageDescriptor,
    path: &str,
) -> Result<(Vec<FieldDescriptor>, OneofDescriptor)> {
    let (before, last) = match path.rsplit_once('.') {
        Some((before, last)) => (Some(before), last),
        None => (None, path),
    };
    let before = before.map_or_else(|| Ok(Vec::new()), |path| fields(message, path))?;
    let message = match before.last() {
        None => message.clone(),
        Some(field) => match field.kind() {
            Kind::Message(inner) if !field.is_list() && !field.is_map() => inner,
            _ => {
                return Err(Error::config(format!(
                    "`{}` is no message: path={path}",
                    field.name()
                )));
            }
        },
    };
    let mut real = message.oneofs().filter(|oneof| !oneof.is_synthetic());
    if let Some(found) = real.find(|oneof| oneof.name() == last) {
        return Ok((before, found));
    }
    let names = oneofs(&message);
    let error = Error::config(format!(
        "`{last}` is no oneof: path={path} message={}",
        message.full_name()
    ));
    Err(if names.is_empty() {
        error.hint("the message has none")
    } else {
        error.hint(format!("its oneofs: {}", names.join(", ")))
    })
}

/// Whether at most one of two paths can lead to a value: where they part, they lead through different
/// cases of one oneof.
pub(super) fn exclusive(left: &[FieldDescriptor], right: &[FieldDescriptor]) -> bool {
    let parted = left
        .iter()
        .zip(right)
        .find(|(l, r)| l.number() != r.number());
    let Some((left, right)) = parted else {
        return false;
    };
    match (oneof_of(left), oneof_of(right)) {
        (Some(left), Some(right)) => left.full_name() == right.full_name(),
        _ => false,
    }
}

fn oneofs(message: &MessageDescriptor) -> Vec<String> {
    let real = message.oneofs().filter(|oneof| !oneof.is_synthetic());
    real.map(|oneof| oneof.name().to_owned()).collect()
}

fn unknown(message: &MessageDescriptor, name: &str, path: &str, rest: &[&str]) -> Error {
    if oneofs(message).iter().any(|oneof| oneof == name) {
        let error = Error::config(format!("`{name}` is a oneof and no field: path={path}"));
        return if rest.is_empty() {
            error.hint(format!("which of its fields is set: `{{ case: {path} }}`"))
        } else {
            let without = path.replacen(&format!("{name}."), "", 1);
            error.hint(format!("leave it out: `{without}`"))
        };
    }
    let names: Vec<String> = message.fields().map(|f| f.name().to_owned()).collect();
    let nearest = names
        .iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(name, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let error = Error::config(format!(
        "unknown field: path={path} field={name} message={}",
        message.full_name()
    ));
    match nearest {
        Some((like, nearest)) if like >= 0.5 => error.hint(format!(
            "did you mean `{nearest}`? its fields: {}",
            names.join(", ")
        )),
        _ => error.hint(format!("its fields: {}", names.join(", "))),
    }
}
