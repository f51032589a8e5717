//! Keys and orders of the rows of a data file: all that the index of keys is made of. Only these
//! columns are read.

use std::fs::File;

use arrow::{array::RecordBatch, datatypes::Schema};
use calve_engine::error::{Error, Result};
use parquet::arrow::{
    PARQUET_FIELD_ID_META_KEY, ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder,
};

use super::keys::{KeyCodec, KeyedRows};
use crate::iceberg::catalog::local_path;

/// Rows that are read at once.
const ROWS: usize = 1 << 15;

/// Where the columns of key and order are in the files of a table: by field id, since older files may
/// have other names.
#[derive(Clone, Debug)]
pub(crate) struct StoredColumns {
    /// Name in the table, field id.
    columns: Vec<(String, Option<String>)>,
}

impl StoredColumns {
    /// Of files of this schema.
    pub(crate) fn new(codec: &KeyCodec, files: &Schema) -> Self {
        let columns = codec.names().iter().map(|name| {
            let field = files.field_with_name(name).ok();
            (name.clone(), field.and_then(id_of))
        });
        Self {
            columns: columns.collect(),
        }
    }

    /// Reads a file from its first row to its last: number of the first row of each piece, and the
    /// piece.
    ///
    /// # Errors
    /// `Corrupt` when the file is gone or cannot be read; whatever `each` fails with.
    pub(crate) fn read(
        &self,
        codec: &KeyCodec,
        location: &str,
        mut each: impl FnMut(u32, KeyedRows) -> Result<()>,
    ) -> Result<()> {
        let failed = |what: &str| {
            Error::corrupt(format!("{what}: file={location}"))
                .hint("the table refers to this file; restore it, or roll the table back")
        };
        let file = File::open(local_path(location)?)
            .map_err(|e| failed("cannot open a data file").because(e))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .map_err(|e| failed("cannot read a data file").because(e))?;
        let schema = reader.schema().clone();
        let mut places = Vec::new();
        let mut names = Vec::new();
        for (at, field) in schema.fields().iter().enumerate() {
            let id = id_of(field);
            let wanted = self
                .columns
                .iter()
                .find(|(name, known)| match (&id, known) {
                    (Some(id), Some(known)) => id == known,
                    _ => name == field.name(),
                });
            if let Some((name, _)) = wanted {
                places.push(at);
                names.push(name.clone());
            }
        }
        let mask = ProjectionMask::roots(reader.parquet_schema(), places);
        let reader = reader
            .with_projection(mask)
            .with_batch_size(ROWS)
            .build()
            .map_err(|e| failed("cannot read a data file").because(e))?;
        let mut row = 0u32;
        for rows in reader {
            let rows = rows.map_err(|e| failed("cannot read a data file").because(e))?;
            let count = rows.num_rows() as u32;
            let named = renamed(&rows, &names);
            each(row, codec.encode_stored(&named)?)?;
            row = row
                .checked_add(count)
                .ok_or_else(|| failed("a data file has too many rows for an index of keys"))?;
        }
        Ok(())
    }
}

fn id_of(field: &impl AsRef<arrow::datatypes::Field>) -> Option<String> {
    field
        .as_ref()
        .metadata()
        .get(PARQUET_FIELD_ID_META_KEY)
        .cloned()
}

fn renamed(rows: &RecordBatch, names: &[String]) -> RecordBatch {
    let fields: Vec<_> = (rows.schema_ref().fields().iter().zip(names))
        .map(|(field, name)| field.as_ref().clone().with_name(name))
        .collect();
    RecordBatch::try_new(Schema::new(fields).into(), rows.columns().to_vec())
        .unwrap_or_else(|_| rows.clone())
}
