//! Changes without an envelope: rows with a few fields more, as the transform ExtractNewRecordState
//! leaves them.

use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray},
    datatypes::{DataType, Field},
};

use super::config::DebeziumConfig;
use crate::formats::json::wire::{How, Wire};

/// The field of the operation, and the one that marks a delete.
const FIELDS: [(&str, How); 2] = [("__op", How::Operation), ("__deleted", How::Text)];

/// The names that a path of metadata may have.
pub(super) fn names(path: &str) -> Vec<String> {
    let mut names = vec![format!("__{}", path.replace('.', "_"))];
    if let Some((_, last)) = path.split_once('.') {
        names.push(format!("__{}", last.replace('.', "_")));
    }
    names
}

/// Whether a field is none of the table's columns.
pub(super) fn is_extra(config: &DebeziumConfig, name: &str) -> bool {
    FIELDS.iter().any(|(field, _)| *field == name)
        || config
            .metadata
            .iter()
            .any(|path| names(path).iter().any(|known| known == name))
}

/// The fields that are read behind the columns of the table: operation and mark, then each name of
/// each path of metadata.
pub(super) fn extras(metadata: &[Field]) -> (Vec<Field>, Vec<Wire>) {
    let (mut fields, mut wires) = (Vec::new(), Vec::new());
    for (name, how) in FIELDS {
        fields.push(Field::new(name, DataType::Utf8, true));
        wires.push(Wire::leaf(how));
    }
    for path in metadata {
        for name in names(path.name()) {
            let how = match path.data_type() {
                DataType::Utf8 => How::Text,
                _ => How::Plain,
            };
            fields.push(Field::new(name, path.data_type().clone(), true));
            wires.push(Wire::leaf(how));
        }
    }
    (fields, wires)
}

/// Operations and metadata of rows, from the columns of [`extras`]. A row without operation is an
/// update: whether it was there before is not known, and makes no difference.
pub(super) fn finish(metadata: &[Field], extras: &[ArrayRef]) -> (Vec<u8>, Vec<ArrayRef>) {
    let texts = |n: usize| -> &StringArray { extras[n].as_string() };
    let (ops, marks) = (texts(0), texts(1));
    let ops = ops.iter().zip(marks).map(|(op, mark)| match (op, mark) {
        (_, Some("true")) => b'd',
        (Some(op), _) => op.as_bytes().first().copied().unwrap_or(b'u'),
        (None, _) => b'u',
    });
    let mut rest = &extras[FIELDS.len()..];
    let columns = metadata.iter().map(|path| {
        let (found, others) = rest.split_at(names(path.name()).len());
        rest = others;
        // Of the names, the one that is there.
        let there = found
            .iter()
            .find(|column| column.null_count() < column.len());
        ArrayRef::clone(there.unwrap_or(&found[0]))
    });
    (ops.collect(), columns.collect())
}
