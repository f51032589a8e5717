//! Keys and orders of the rows of a data file: all that the index of keys is made of. Only these
//! columns are read.

use std::fs::File;

use arrow::{
    array::{Array as _, ArrayRef, RecordBatch},
    datatypes::{Field, Schema},
};
use calve_engine::error::{Error, Result};
use futures::TryStreamExt;
use parquet::arrow::{
    PARQUET_FIELD_ID_META_KEY, ParquetRecordBatchStreamBuilder, ProjectionMask,
    arrow_reader::{ArrowReaderBuilder, ParquetRecordBatchReaderBuilder},
};
use tokio::runtime::Handle;

use super::keys::{KeyCodec, KeyedRows};
use crate::iceberg::access::{self, FileAccess, Place};

/// Rows that are read at once.
const ROWS: usize = 1 << 15;

/// Where the columns of key and order are in the files of a table: by field id, since older files may
/// have other names.
#[derive(Clone, Debug)]
pub(crate) struct StoredColumns {
    /// Name in the table, field id.
    columns: Vec<(String, Option<String>)>,
    access: FileAccess,
}

impl StoredColumns {
    /// Of files of this schema.
    pub(crate) fn new(codec: &KeyCodec, files: &Schema, access: FileAccess) -> Self {
        let columns = codec.names().iter().map(|name| {
            let field = files.field_with_name(name).ok();
            (name.clone(), field.and_then(id_of))
        });
        Self {
            columns: columns.collect(),
            access,
        }
    }

    /// Fields of some columns, the first ones, with their ids.
    pub(crate) fn fields(&self, columns: &[ArrayRef]) -> Vec<Field> {
        let fields = self.columns.iter().zip(columns);
        fields
            .map(|((name, id), column)| {
                let id = id
                    .clone()
                    .map(|id| (PARQUET_FIELD_ID_META_KEY.to_owned(), id));
                Field::new(name, column.data_type().clone(), true)
                    .with_metadata(id.into_iter().collect())
            })
            .collect()
    }

    /// Reads a file from its first row to its last: number of the first row of each piece, and the
    /// piece. Blocks; objects are read within the runtime that the thread belongs to.
    ///
    /// # Errors
    /// `Corrupt` when the file is gone or cannot be read; whatever `each` fails with.
    pub(crate) fn read(
        &self,
        codec: &KeyCodec,
        location: &str,
        mut each: impl FnMut(u32, KeyedRows) -> Result<()>,
    ) -> Result<()> {
        let mut row = 0u32;
        let mut take = |rows: &RecordBatch, names: &[String]| {
            let count = rows.num_rows() as u32;
            each(row, codec.encode_stored(&renamed(rows, names))?)?;
            row = row.checked_add(count).ok_or_else(|| {
                wrong(
                    "a data file has too many rows for an index of keys",
                    location,
                )
            })?;
            Ok(())
        };
        match self.access.place(location)? {
            Place::Local(path) => {
                let file = File::open(path)
                    .map_err(|e| wrong("cannot open a data file", location).because(e))?;
                let builder = ParquetRecordBatchReaderBuilder::try_new(file)
                    .map_err(|e| unreadable(location, e))?;
                let (builder, names) = self.projected(builder);
                for rows in builder.build().map_err(|e| unreadable(location, e))? {
                    take(&rows.map_err(|e| unreadable(location, e))?, &names)?;
                }
                Ok(())
            }
            Place::Object(_) => Handle::current().block_on(async {
                let missing = || wrong("a data file is gone", location);
                let bytes = self.access.size(location).await?.ok_or_else(missing)?;
                let reader = self.access.parquet(location, bytes).await;
                let reader = reader.map_err(|e| unreadable(location, e))?;
                let builder = ParquetRecordBatchStreamBuilder::new(reader)
                    .await
                    .map_err(|e| unreadable(location, e))?;
                let (builder, names) = self.projected(builder);
                let mut rows = builder.build().map_err(|e| unreadable(location, e))?;
                while let Some(rows) = rows.try_next().await.map_err(|e| unreadable(location, e))? {
                    take(&rows, &names)?;
                }
                Ok(())
            }),
        }
    }

    /// A reader of these columns alone, and their names in the table.
    fn projected<T>(&self, builder: ArrowReaderBuilder<T>) -> (ArrowReaderBuilder<T>, Vec<String>) {
        let mut places = Vec::new();
        let mut names = Vec::new();
        for (at, field) in builder.schema().fields().iter().enumerate() {
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
        let mask = ProjectionMask::roots(builder.parquet_schema(), places);
        (builder.with_projection(mask).with_batch_size(ROWS), names)
    }
}

fn wrong(what: &str, location: &str) -> Error {
    Error::corrupt(format!("{what}: file={location}"))
        .hint("the table refers to this file; restore it, or roll the table back")
}

fn unreadable(location: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    access::unreadable(wrong("cannot read a data file", location), cause)
}

fn id_of(field: &impl AsRef<Field>) -> Option<String> {
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
