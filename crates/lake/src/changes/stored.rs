//! Keys and orders of the rows of a data file: all that the index of keys is made of. Only these
//! columns are read.

use std::{fs::File, sync::Arc};

use arrow::array::RecordBatch;
use calve_engine::error::{Error, Result};
use futures::TryStreamExt;
use parquet::arrow::{
    ParquetRecordBatchStreamBuilder, ProjectionMask,
    arrow_reader::{ArrowReaderBuilder, ParquetRecordBatchReaderBuilder},
};
use tokio::runtime::Handle;

use super::keys::{KeyCodec, KeyedRows};
use crate::iceberg::access::{self, FileAccess, Place};

/// Rows that are read at once.
const ROWS: usize = 1 << 15;

/// The columns of key and order in the files of a table.
#[derive(Clone, Debug)]
pub(crate) struct StoredColumns {
    codec: Arc<KeyCodec>,
    access: FileAccess,
}

impl StoredColumns {
    pub(crate) fn new(codec: Arc<KeyCodec>, access: FileAccess) -> Self {
        Self { codec, access }
    }

    /// Reads a file from its first row to its last: number of the first row of each piece, and the
    /// piece. Blocks; objects are read within the runtime that the thread belongs to.
    ///
    /// # Errors
    /// `Corrupt` when the file is gone or cannot be read; whatever `each` fails with.
    pub(crate) fn read(
        &self,
        location: &str,
        mut each: impl FnMut(u32, KeyedRows) -> Result<()>,
    ) -> Result<()> {
        let mut row = 0u32;
        let mut take = |rows: &RecordBatch| {
            let count = rows.num_rows() as u32;
            each(row, self.codec.encode_stored(rows)?)?;
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
                let builder = self.projected(builder);
                for rows in builder.build().map_err(|e| unreadable(location, e))? {
                    take(&rows.map_err(|e| unreadable(location, e))?)?;
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
                let builder = self.projected(builder);
                let mut rows = builder.build().map_err(|e| unreadable(location, e))?;
                while let Some(rows) = rows.try_next().await.map_err(|e| unreadable(location, e))? {
                    take(&rows)?;
                }
                Ok(())
            }),
        }
    }

    /// A reader of these columns alone.
    fn projected<T>(&self, builder: ArrowReaderBuilder<T>) -> ArrowReaderBuilder<T> {
        let fields = builder.schema().fields().iter().enumerate();
        let wanted = fields.filter(|(_, field)| self.codec.place(field).is_some());
        let places: Vec<usize> = wanted.map(|(at, _)| at).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), places);
        builder.with_projection(mask).with_batch_size(ROWS)
    }
}

fn wrong(what: &str, location: &str) -> Error {
    Error::corrupt(format!("{what}: file={location}"))
        .hint("the table refers to this file; restore it, or roll the table back")
}

fn unreadable(location: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    access::unreadable(wrong("cannot read a data file", location), cause)
}
