//! One open data file: column writers of the row group in progress, and the bytes on their way to
//! the disk. Decides nothing; who calls it decides when a row group or the file ends.

use std::{
    fs::{self, File},
    io::{self, Write},
    num::NonZeroU64,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{array::ArrayRef, datatypes::Field};
use calve_engine::{
    error::{Error, Result},
    stores::upload::{Pending, Upload, Uploads},
};
use parquet::{
    arrow::arrow_writer::{
        ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves,
    },
    errors::ParquetError,
    file::{
        metadata::ParquetMetaData,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
};
use rayon::prelude::*;

use super::{
    budget::Piece,
    dictionary::{DictionaryChunk, DictionaryColumn},
    encoding::{FileLayout, FilePlan},
    gather,
};

/// Bytes are given to the system in blocks of this size.
const BLOCK: usize = 1 << 20;
/// What the last write before that may hold.
const SLACK: usize = 64 << 10;

/// Where the bytes of a data file go.
enum Sink {
    Local {
        file: Arc<File>,
        block: Vec<u8>,
        written: u64,
        started: u64,
    },
    /// None behind the end of the file.
    Remote(Option<Upload>),
}

impl Sink {
    fn give(&mut self) -> io::Result<()> {
        let Self::Local {
            file,
            block,
            written,
            ..
        } = self
        else {
            return Ok(());
        };
        file.as_ref().write_all(block)?;
        *written += block.len() as u64;
        block.clear();
        Ok(())
    }

    /// Asks the system to begin writing to the disk, so that the fsync later is short.
    fn start_writeback(&mut self) {
        let Self::Local {
            file,
            written,
            started,
            ..
        } = self
        else {
            return;
        };
        if let Some(length) = NonZeroU64::new(written.saturating_sub(*started))
            && length.get() >= BLOCK as u64
        {
            let advice = rustix::fs::Advice::DontNeed;
            // Only advice: a failure changes nothing.
            let _ = rustix::fs::fadvise(file, *started, Some(length), advice);
            *started = *written;
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Local { block, .. } => {
                if block.capacity() == 0 {
                    // In one go: a block that grows is copied, and touches twice the memory.
                    block.reserve_exact(BLOCK + SLACK);
                }
                block.extend_from_slice(bytes);
                if block.len() >= BLOCK {
                    self.give()?;
                }
            }
            Self::Remote(Some(upload)) => upload.write(bytes)?,
            Self::Remote(None) => return Err(io::Error::other("the file has ended")),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.give()?;
        if let Self::Local { block, .. } = self {
            *block = Vec::new();
        }
        Ok(())
    }
}

/// One field of the row group in progress.
enum Column {
    /// By leaf.
    Encoded(Vec<ArrowColumnWriter>),
    Dictionary(Box<DictionaryColumn>),
}

/// A finished column of one field.
enum Chunk {
    Encoded(Vec<ArrowColumnChunk>),
    Dictionary(Box<DictionaryChunk>),
}

impl Column {
    fn write(&mut self, field: &Field, rows: &ArrayRef) -> Result<(), ParquetError> {
        match self {
            Self::Encoded(writers) => encode_column(writers, field, rows),
            Self::Dictionary(column) => column.write(rows),
        }
    }

    fn memory(&self) -> usize {
        match self {
            Self::Encoded(writers) => writers.iter().map(ArrowColumnWriter::memory_size).sum(),
            Self::Dictionary(column) => column.memory(),
        }
    }

    fn estimated_bytes(&self) -> usize {
        match self {
            Self::Encoded(writers) => writers
                .iter()
                .map(ArrowColumnWriter::get_estimated_total_bytes)
                .sum(),
            Self::Dictionary(column) => column.estimated_bytes(),
        }
    }

    fn close(self) -> Result<Chunk, ParquetError> {
        Ok(match self {
            Self::Encoded(writers) => {
                let chunks = writers.into_iter().map(ArrowColumnWriter::close);
                Chunk::Encoded(chunks.collect::<Result<_, _>>()?)
            }
            Self::Dictionary(column) => Chunk::Dictionary(Box::new(column.close()?)),
        })
    }
}

impl Chunk {
    fn append<W: Write + Send>(
        self,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<(), ParquetError> {
        match self {
            Self::Encoded(chunks) => chunks
                .into_iter()
                .try_for_each(|chunk| chunk.append_to_row_group(group)),
            Self::Dictionary(chunk) => group.append_column(&chunk.bytes, chunk.closed),
        }
    }
}

/// A data file that takes rows.
pub(crate) struct OpenFile {
    pub(crate) path: String,
    full_path: PathBuf,
    /// None in an object store.
    file: Option<Arc<File>>,
    writer: SerializedFileWriter<Sink>,
    factory: ArrowRowGroupWriterFactory,
    /// By field; empty: no row group in progress.
    columns: Vec<Column>,
    /// By field: whether its next row group is a dictionary of ours.
    dictionaries: Vec<bool>,
    /// Rows in the row group in progress.
    pub(crate) group_rows: usize,
    /// Rows in all.
    pub(crate) rows: u64,
}

/// A file with its footer, not fsynced.
pub(crate) struct ClosedFile {
    pub(crate) file: Option<Arc<File>>,
    /// Its last parts may be on their way.
    pub(crate) upload: Option<Pending>,
    pub(crate) bytes: u64,
    pub(crate) metadata: Arc<ParquetMetaData>,
}

impl OpenFile {
    pub(crate) fn create(
        root: &Path,
        uploads: Option<&Uploads>,
        path: String,
        layout: &FileLayout,
        plan: Arc<FilePlan>,
    ) -> Result<Self> {
        let full_path = root.join(&path);
        if let Some(uploads) = uploads {
            let sink = Sink::Remote(Some(uploads.begin(&path)?));
            return Self::over(sink, None, path, full_path, layout, &plan);
        }
        let create = || {
            File::options()
                .write(true)
                .create_new(true)
                .open(&full_path)
        };
        let file = create().or_else(|error| match (error.kind(), full_path.parent()) {
            (io::ErrorKind::NotFound, Some(parent)) => {
                fs::create_dir_all(parent)?;
                create()
            }
            _ => Err(error),
        });
        let file = file.map_err(|error| {
            Error::io(
                format!("cannot create a data file: path={}", full_path.display()),
                error,
            )
        })?;
        let file = Arc::new(file);
        let sink = Sink::Local {
            file: file.clone(),
            block: Vec::new(),
            written: 0,
            started: 0,
        };
        Self::over(sink, Some(file), path, full_path, layout, &plan)
    }

    fn over(
        sink: Sink,
        file: Option<Arc<File>>,
        path: String,
        full_path: PathBuf,
        layout: &FileLayout,
        plan: &FilePlan,
    ) -> Result<Self> {
        let schema = layout.parquet.root_schema_ptr();
        let writer = SerializedFileWriter::new(sink, schema, plan.properties.clone())
            .map_err(|error| failed(&full_path, error))?;
        let factory = ArrowRowGroupWriterFactory::new(&writer, layout.schema.clone());
        Ok(Self {
            path,
            full_path,
            file,
            writer,
            factory,
            columns: Vec::new(),
            dictionaries: plan.dictionaries.clone(),
            group_rows: 0,
            rows: 0,
        })
    }

    /// Encodes rows; the columns side by side on the current thread pool when `parallel`.
    pub(crate) fn write(
        &mut self,
        pieces: &[Piece],
        layout: &FileLayout,
        parallel: bool,
    ) -> Result<()> {
        if self.columns.is_empty() {
            self.begin_group(layout)
                .map_err(|error| failed(&self.full_path, error))?;
        }
        let encode = |(index, writer): (usize, &mut Column)| {
            let field = layout.schema.field(index);
            pieces
                .iter()
                .try_for_each(|piece| writer.write(field, &piece.column(index)))
        };
        let encoded = if parallel {
            self.columns.par_iter_mut().enumerate().try_for_each(encode)
        } else {
            self.columns.iter_mut().enumerate().try_for_each(encode)
        };
        encoded.map_err(|error| failed(&self.full_path, error))?;
        let rows: usize = pieces.iter().map(|piece| piece.rows).sum();
        self.group_rows += rows;
        self.rows += rows as u64;
        Ok(())
    }

    fn begin_group(&mut self, layout: &FileLayout) -> Result<(), ParquetError> {
        let group = self.writer.flushed_row_groups().len();
        let mut flat = self.factory.create_column_writers(group)?.into_iter();
        let mut leaf = 0;
        for (leaves, dictionary) in layout.leaves.iter().zip(&self.dictionaries) {
            let writers = flat.by_ref().take(*leaves).collect();
            self.columns.push(if *dictionary {
                let codec = self
                    .writer
                    .properties()
                    .compression(layout.parquet.column(leaf).path());
                Column::Dictionary(Box::new(DictionaryColumn::new(
                    layout.parquet.column(leaf),
                    codec,
                )))
            } else {
                Column::Encoded(writers)
            });
            leaf += leaves;
        }
        Ok(())
    }

    /// Whether the row group should end because a dictionary does not pay; if so, the Parquet crate
    /// encodes the column from then on: it has other encodings to fall back to.
    pub(crate) fn dictionary_full(&mut self) -> bool {
        let mut any = false;
        for (column, dictionary) in self.columns.iter().zip(&mut self.dictionaries) {
            if matches!(column, Column::Dictionary(column) if column.full()) {
                *dictionary = false;
                any = true;
            }
        }
        any
    }

    /// Memory held by the row group in progress, and by the part of an upload that is not full.
    pub(crate) fn memory(&self) -> usize {
        let columns: usize = self.columns.iter().map(Column::memory).sum();
        columns + self.unsent()
    }

    /// Memory held by the part of an upload that is not full.
    pub(crate) fn unsent(&self) -> usize {
        match self.writer.inner() {
            Sink::Remote(Some(upload)) => upload.buffered(),
            Sink::Remote(None) | Sink::Local { .. } => 0,
        }
    }

    /// Bytes that the row group in progress will have on disk, about.
    pub(crate) fn group_bytes(&self) -> usize {
        self.columns.iter().map(Column::estimated_bytes).sum()
    }

    /// Bytes of complete row groups.
    pub(crate) fn written(&self) -> u64 {
        self.writer.bytes_written() as u64
    }

    /// Ends the row group in progress, if any, and hands its bytes to the system.
    pub(crate) fn end_group(&mut self, parallel: bool) -> Result<()> {
        let columns = std::mem::take(&mut self.columns);
        if self.group_rows == 0 {
            return Ok(());
        }
        self.group_rows = 0;
        self.append_group(columns, parallel)
            .map_err(|error| failed(&self.full_path, error))
    }

    fn append_group(&mut self, columns: Vec<Column>, parallel: bool) -> Result<(), ParquetError> {
        let chunks: Vec<Chunk> = if parallel {
            columns
                .into_par_iter()
                .map(Column::close)
                .collect::<Result<_, _>>()?
        } else {
            columns
                .into_iter()
                .map(Column::close)
                .collect::<Result<_, _>>()?
        };
        let mut group = self.writer.next_row_group()?;
        for chunk in chunks {
            chunk.append(&mut group)?;
        }
        group.close()?;
        let sink = self.writer.inner_mut();
        sink.flush()?;
        sink.start_writeback();
        Ok(())
    }

    /// Writes the footer.
    pub(crate) fn close(mut self, parallel: bool) -> Result<ClosedFile> {
        self.end_group(parallel)?;
        let metadata = self
            .writer
            .finish()
            .map_err(|error| failed(&self.full_path, error))?;
        let bytes = self.written();
        let upload = match self.writer.inner_mut() {
            Sink::Remote(upload) => upload.take().map(Upload::close).transpose(),
            Sink::Local { .. } => Ok(None),
        };
        let upload = upload.map_err(|error| {
            disk_failed(
                format!("cannot end an upload: path={}", self.full_path.display()),
                error,
            )
        })?;
        Ok(ClosedFile {
            file: self.file,
            upload,
            bytes,
            metadata: Arc::new(metadata),
        })
    }
}

fn encode_column(
    writers: &mut [ArrowColumnWriter],
    field: &Field,
    column: &ArrayRef,
) -> Result<(), ParquetError> {
    let leaves = compute_leaves(field, &gather::settled(column)?)?;
    writers
        .iter_mut()
        .zip(&leaves)
        .try_for_each(|(writer, leaf)| writer.write(leaf))
}

/// Tells a disk that refuses from rows that cannot be encoded.
fn failed(path: &Path, error: ParquetError) -> Error {
    let what = format!("cannot write a data file: path={}", path.display());
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(io) => disk_failed(what, *io),
            Err(other) => Error::internal(what).because(other),
        },
        other => Error::internal(what).because(other),
    }
}

/// An error of the disk, with a hint where it is full.
pub(crate) fn disk_failed(what: String, error: io::Error) -> Error {
    let full = matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    );
    let error = Error::io(what, error);
    if full {
        error.hint("free space on the disk of this path; nothing was lost")
    } else {
        error
    }
}
