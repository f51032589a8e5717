//! Runs: pages of open windows in the checkpoint store, as Arrow IPC streams.
//!
//! A run is written before the record that refers to it, under a name of its own; it is deleted after
//! a record that does not. What a crash leaves is removed by the next owner.

use std::sync::Arc;

use arrow::{
    array::{MutableArrayData, RecordBatch, make_array},
    buffer::Buffer,
    compute::{concat_batches, interleave_record_batch},
    datatypes::SchemaRef,
    ipc::{reader::StreamDecoder, writer::StreamWriter},
};

use super::arrow_failed;
use crate::{
    checkpoint::Checkpoints,
    conform,
    error::{Error, Result},
    shard::blocking,
};

/// Above this many rows a piece, copying slices is cheaper than picking rows.
const SLICES: usize = 64;

/// Reads runs.
pub(crate) struct Runs {
    checkpoints: Checkpoints,
    /// Rows that were written with another schema are brought into this one.
    schema: Option<SchemaRef>,
    /// The last one, decoded. What fires together is read run by run, so one is enough.
    kept: Option<(String, Arc<Vec<RecordBatch>>)>,
}

impl Runs {
    pub(crate) fn new(checkpoints: Checkpoints, schema: Option<SchemaRef>) -> Self {
        Self {
            checkpoints,
            schema,
            kept: None,
        }
    }

    /// The batches of a run.
    ///
    /// # Errors
    /// `Corrupt` when it is not there, or is none; `Fenced` when another owner has deleted it.
    pub(crate) async fn load(&mut self, name: &str) -> Result<Arc<Vec<RecordBatch>>> {
        if let Some((kept, batches)) = &self.kept
            && kept == name
        {
            return Ok(Arc::clone(batches));
        }
        self.kept = None;
        let Some(bytes) = self.checkpoints.run(name).await? else {
            // The next owner deletes what its own records do not need.
            self.checkpoints.check_owner().await?;
            return Err(Error::corrupt(format!(
                "rows of open windows are gone from the checkpoint store: run={name}"
            ))
            .hint(
                "put the checkpoint store back, or start over: `calve checkpoint reset FILE --yes`",
            ));
        };
        let (named, schema) = (name.to_owned(), self.schema.clone());
        let batches = blocking(move || {
            let batches = decode(bytes)?;
            match schema {
                Some(schema) => batches
                    .iter()
                    .map(|rows| conformed(rows, &schema))
                    .collect(),
                None => Ok(batches),
            }
        })
        .await?;
        let batches = batches
            .map_err(|e| Error::corrupt(format!("a run is unreadable: run={named}")).because(e))?;
        let batches = Arc::new(batches);
        self.kept = Some((named, Arc::clone(&batches)));
        Ok(batches)
    }
}

fn conformed(
    rows: &RecordBatch,
    schema: &SchemaRef,
) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    if rows.schema().fields() == schema.fields() {
        return Ok(rows.clone());
    }
    conform::rows(rows, schema)
}

/// All batches lie in the one block that was read: many blocks that one thread makes and others free
/// would stay with the thread.
fn decode(bytes: Vec<u8>) -> std::result::Result<Vec<RecordBatch>, arrow::error::ArrowError> {
    let mut buffer = Buffer::from_vec(bytes);
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while let Some(batch) = decoder.decode(&mut buffer)? {
        batches.push(batch);
    }
    decoder.finish()?;
    Ok(batches)
}

/// A copy of some rows that holds nothing else: a slice of a run holds the run.
pub(crate) fn copied(rows: &RecordBatch) -> Result<RecordBatch> {
    let columns = rows.columns().iter().map(|column| {
        let column = column.to_data();
        let mut copy = MutableArrayData::new(vec![&column], false, column.len());
        copy.extend(0, 0, column.len());
        make_array(copy.freeze())
    });
    RecordBatch::try_new(rows.schema(), columns.collect()).map_err(arrow_failed)
}

/// A run's bytes. A stream and not a file: a file has one dictionary a column, batches have their own.
pub(crate) fn encode(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let buffer = Vec::with_capacity(bytes + 4096);
    let mut writer = StreamWriter::try_new(buffer, &batches[0].schema()).map_err(arrow_failed)?;
    for batch in batches {
        writer.write(batch).map_err(arrow_failed)?;
    }
    writer.into_inner().map_err(arrow_failed)
}

/// Rows of several batches (batch, first row, rows) as one; of one alone, as a slice of it.
pub(crate) fn gathered(
    batches: &[RecordBatch],
    places: &[(usize, u32, u32)],
) -> Result<RecordBatch> {
    if let [(batch, start, rows)] = places {
        return Ok(batches[*batch].slice(*start as usize, *rows as usize));
    }
    let total: usize = places.iter().map(|(_, _, rows)| *rows as usize).sum();
    if total >= places.len() * SLICES {
        let slices: Vec<RecordBatch> = places
            .iter()
            .map(|(batch, start, rows)| batches[*batch].slice(*start as usize, *rows as usize))
            .collect();
        let schema = batches
            .first()
            .ok_or_else(|| Error::internal("no batch to gather from"))?
            .schema();
        return concat_batches(&schema, &slices).map_err(arrow_failed);
    }
    let picks: Vec<(usize, usize)> = places
        .iter()
        .flat_map(|(batch, start, rows)| {
            (*start..*start + *rows).map(move |row| (*batch, row as usize))
        })
        .collect();
    let from: Vec<&RecordBatch> = batches.iter().collect();
    interleave_record_batch(&from, &picks).map_err(arrow_failed)
}
