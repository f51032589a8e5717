//! One Parquet or Arrow IPC file: rows, from any row on. Positions are rows.
//!
//! Files of an object store are copied to an unnamed temporary file first: both formats need to
//! seek, and memory stays bounded.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom, Write},
};

use arrow::{
    array::RecordBatch,
    datatypes::SchemaRef,
    error::ArrowError,
    ipc::reader::{FileReader, StreamReader},
};
use calve_engine::{Error, Payload, RawBatch, Result};
use calve_model::{OffsetRange, SourcePartition};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{
    input::Input,
    list::{Found, Location},
    text::{check_head, replaced},
};
use crate::sources::tag::{FileTag, HEAD_BYTES, Mark};

/// So much of a file's end is remembered by its hash: where Parquet has what it says of its columns.
const END_BYTES: u64 = 64 << 10;

/// Rows of one batch read from Parquet.
const BATCH_ROWS: usize = 16_384;

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>;

pub(crate) struct RowsReader {
    partition: SourcePartition,
    schema: SchemaRef,
    batches: Batches,
    /// One batch ahead, to know which is the last.
    ahead: Option<RecordBatch>,
    /// Rows to leave out before the next batch.
    skip: u64,
    offset: u64,
    started: bool,
    finished: bool,
    tag: FileTag,
}

impl RowsReader {
    pub(crate) async fn open(
        name: &str,
        found: &Found,
        offset: u64,
        tag: &FileTag,
        parquet: bool,
    ) -> Result<Self> {
        let mut input = Input::open(name, &found.location, tag.id.as_deref())?;
        let head = input.head(HEAD_BYTES).await?;
        check_head(name, tag, &head)?;
        let (id, size) = match input.object() {
            Some((id, size)) => (id.map(str::to_owned), size),
            None => (found.looks.id.clone(), found.looks.size),
        };
        if tag.size.is_some_and(|known| known != size) {
            return Err(replaced(name, "replaced"));
        }
        let mut file = match &found.location {
            Location::Local(path) => {
                File::open(path).map_err(|e| Error::io(format!("cannot open file={name}"), e))?
            }
            Location::Remote { .. } => spool(name, &mut input).await?,
        };
        let end = end_of(&mut file)
            .map_err(|e| Error::io(format!("cannot read the end of file={name}"), e))?;
        if tag.tail.as_ref().is_some_and(|known| *known != end) {
            return Err(replaced(name, "replaced"));
        }
        let bad =
            |error: Box<dyn std::error::Error + Send + Sync>| {
                Error::config(format!("cannot read file={name}")).because(error).hint(
                "the file is damaged, still being written, or `format` does not say what it is",
            )
            };
        let (schema, batches, skip) = if parquet {
            open_parquet(file, offset).map_err(|e| bad(Box::new(e)))?
        } else {
            let (schema, batches) =
                open_arrow(file, head.starts_with(b"ARROW1")).map_err(|e| bad(Box::new(e)))?;
            (schema, batches, offset)
        };
        let tag = FileTag {
            id,
            head: Some(Mark::of(&head)),
            tail: Some(end),
            size: Some(size),
            changed: found.looks.changed,
            ..FileTag::default()
        };
        Ok(Self {
            partition: SourcePartition::new(name),
            schema,
            batches,
            ahead: None,
            skip,
            offset,
            started: false,
            finished: false,
            tag,
        })
    }

    /// The next rows; none behind the last. Blocks while it reads.
    pub(crate) fn next(&mut self) -> Result<Option<RawBatch>> {
        if self.finished {
            return Ok(None);
        }
        if !self.started {
            self.ahead = self.read()?;
            self.started = true;
            if self.skip > 0 {
                return Err(replaced(self.partition.as_str(), "truncated"));
            }
        }
        let rows = match self.ahead.take() {
            Some(rows) => {
                self.ahead = self.read()?;
                rows
            }
            None => RecordBatch::new_empty(self.schema.clone()),
        };
        self.finished = self.ahead.is_none();
        let from = self.offset;
        self.offset += rows.num_rows() as u64;
        Ok(Some(RawBatch {
            partition: self.partition.clone(),
            range: OffsetRange {
                from,
                to: self.offset,
            },
            payload: Payload::Rows(rows),
            last: self.finished,
            tag: self.tag.print(),
            arrival: None,
        }))
    }

    pub(crate) fn tag(&self) -> &FileTag {
        &self.tag
    }

    fn read(&mut self) -> Result<Option<RecordBatch>> {
        for rows in self.batches.by_ref() {
            let rows = rows.map_err(|e| {
                Error::config(format!(
                    "cannot read file={} row={}",
                    self.partition, self.offset
                ))
                .because(e)
                .hint("the file is damaged")
            })?;
            let count = rows.num_rows() as u64;
            let skipped = self.skip.min(count);
            self.skip -= skipped;
            if skipped < count {
                let left = (count - skipped) as usize;
                return Ok(Some(rows.slice(skipped as usize, left)));
            }
        }
        Ok(None)
    }
}

/// The mark of a file's end. Leaves the position at 0.
fn end_of(file: &mut File) -> std::io::Result<Mark> {
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(size.saturating_sub(END_BYTES)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(Mark::of(&end))
}

/// Begins with the row group that holds row `offset`; says how many rows remain to be skipped.
fn open_parquet(file: File, offset: u64) -> parquet::errors::Result<(SchemaRef, Batches, u64)> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let mut skip = offset;
    let mut first = 0;
    for group in builder.metadata().row_groups() {
        let rows = group.num_rows() as u64;
        if skip < rows {
            break;
        }
        skip -= rows;
        first += 1;
    }
    let groups: Vec<usize> = (first..builder.metadata().num_row_groups()).collect();
    // Rows that the file does not have stay to be skipped, which is noticed as a truncation.
    let behind = if groups.is_empty() { skip } else { 0 };
    let schema = builder.schema().clone();
    let batches = builder
        .with_row_groups(groups)
        .with_offset(skip as usize)
        .with_batch_size(BATCH_ROWS)
        .build()?;
    Ok((schema, Box::new(batches), behind))
}

fn open_arrow(file: File, seekable: bool) -> Result<(SchemaRef, Batches), ArrowError> {
    let file = BufReader::with_capacity(1 << 20, file);
    if seekable {
        let reader = FileReader::try_new(file, None)?;
        return Ok((reader.schema(), Box::new(reader)));
    }
    let reader = StreamReader::try_new(file, None)?;
    Ok((reader.schema(), Box::new(reader)))
}

async fn spool(name: &str, input: &mut Input) -> Result<File> {
    let failed = |e| Error::io(format!("cannot copy to a temporary file: file={name}"), e);
    let mut file = tempfile::tempfile().map_err(failed)?;
    let mut piece = Vec::new();
    while input.read(&mut piece, 1 << 20).await? > 0 {
        file.write_all(&piece).map_err(failed)?;
        piece.clear();
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(file)
}
