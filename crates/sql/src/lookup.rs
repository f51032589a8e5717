//! Lookup tables: small files that the SQL may join with, read into memory at the start.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufReader, Seek},
    path::Path,
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    csv,
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
    ipc::reader::FileReader,
};
use calve_engine::{Error, Result};
use datafusion::{
    catalog::TableProvider,
    datasource::MemTable,
    parquet::{arrow::arrow_reader::ParquetRecordBatchReaderBuilder, errors::ParquetError},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bytes that a lookup table may have, in its file and in memory.
pub const MAX_BYTES: u64 = 256 << 20;

/// `tables:` of a pipeline file: lookup tables by name.
pub type LookupConfigs = BTreeMap<String, LookupConfig>;

/// One lookup table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LookupConfig {
    /// Path of the file. It is read once, at the start, and may have up to 256 MiB.
    pub file: String,
    /// Format of the file; by default what its name ends in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<LookupFormat>,
}

/// Format of a lookup table's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LookupFormat {
    /// Comma-separated, with a line of column names; types are inferred from all lines.
    Csv,
    /// One JSON object a line; types are inferred from all lines.
    #[serde(alias = "ndjson")]
    Json,
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC file.
    Arrow,
}

impl LookupFormat {
    /// What a file's name says.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "json" | "ndjson" | "jsonl" => Some(Self::Json),
            "parquet" => Some(Self::Parquet),
            "arrow" | "ipc" | "feather" => Some(Self::Arrow),
            _ => None,
        }
    }
}

/// A lookup table in memory; a cheap handle.
#[derive(Clone, Debug)]
pub struct Lookup {
    name: String,
    table: Arc<MemTable>,
    rows: usize,
}

impl Lookup {
    /// Reads the table's file.
    ///
    /// # Errors
    /// `Config` when the file is missing, too big, or not of its format.
    pub fn read(name: &str, config: &LookupConfig, most: u64) -> Result<Self> {
        let most = most.min(MAX_BYTES);
        let path = Path::new(&config.file);
        let context = |what: &str| format!("{what}: table={name} file={}", path.display());
        let format = config
            .format
            .or_else(|| LookupFormat::of(path))
            .ok_or_else(|| {
                Error::config(context("the format of a lookup table is not known"))
                    .hint("say it: format: csv, json, parquet or arrow")
            })?;
        let length = fs::metadata(path)
            .map_err(|error| Error::io(context("a lookup table cannot be read"), error))?
            .len();
        if length > most {
            let what = context("a lookup table's file is too big");
            return Err(too_big(what, length, most));
        }
        let file = File::open(path)
            .map_err(|error| Error::io(context("a lookup table cannot be read"), error))?;
        let (schema, batches) = read(file, format, most).map_err(|failure| match failure {
            Failure::Arrow(error) => {
                Error::config(context("a lookup table cannot be read")).because(error)
            }
            Failure::TooBig(bytes) => too_big(context("a lookup table is too big"), bytes, most),
        })?;
        Self::from_batches(name, schema, batches)
    }

    /// A table of rows that are there already.
    ///
    /// # Errors
    /// `Config` when the rows do not have the schema.
    pub fn from_batches(name: &str, schema: SchemaRef, batches: Vec<RecordBatch>) -> Result<Self> {
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        let table = MemTable::try_new(schema, vec![batches]).map_err(|error| {
            Error::config(format!(
                "a lookup table's rows differ in schema: table={name}"
            ))
            .because(error)
        })?;
        let table = Arc::new(table);
        Ok(Self {
            name: name.to_owned(),
            table,
            rows,
        })
    }

    /// The name by which SQL calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its columns.
    pub fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    /// Its number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn table(&self) -> Arc<dyn TableProvider> {
        Arc::clone(&self.table) as _
    }
}

fn too_big(message: String, bytes: u64, limit: u64) -> Error {
    Error::config(format!("{message} bytes={bytes} limit={limit}")).hint(
        "a lookup table is held in memory: keep only the columns and rows that the SQL needs, or raise \
         `limits.memory`, of which a table may take an eighth (256MiB at the most)",
    )
}

enum Failure {
    Arrow(ArrowError),
    TooBig(u64),
}

impl From<ArrowError> for Failure {
    fn from(error: ArrowError) -> Self {
        Self::Arrow(error)
    }
}

impl From<ParquetError> for Failure {
    fn from(error: ParquetError) -> Self {
        Self::Arrow(error.into())
    }
}

fn read(
    file: File,
    format: LookupFormat,
    most: u64,
) -> Result<(SchemaRef, Vec<RecordBatch>), Failure> {
    match format {
        LookupFormat::Csv => {
            let mut input = BufReader::new(file);
            let format = csv::reader::Format::default().with_header(true);
            let (schema, _) = format.infer_schema(&mut input, None)?;
            input.rewind().map_err(ArrowError::from)?;
            let schema = Arc::new(schema);
            let reader = csv::ReaderBuilder::new(Arc::clone(&schema))
                .with_format(format)
                .build(input)?;
            Ok((schema, gather(reader, most)?))
        }
        LookupFormat::Json => {
            let mut input = BufReader::new(file);
            let (schema, _) = arrow_json::reader::infer_json_schema(&mut input, None)?;
            input.rewind().map_err(ArrowError::from)?;
            let schema = Arc::new(schema);
            let reader = arrow_json::ReaderBuilder::new(Arc::clone(&schema)).build(input)?;
            Ok((schema, gather(reader, most)?))
        }
        LookupFormat::Parquet => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
            let schema = without_metadata(builder.schema());
            Ok((schema, gather(builder.build()?, most)?))
        }
        LookupFormat::Arrow => {
            let reader = FileReader::try_new_buffered(file, None)?;
            let schema = without_metadata(&reader.schema());
            Ok((schema, gather(reader, most)?))
        }
    }
}

fn without_metadata(schema: &SchemaRef) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().clone()))
}

fn gather(
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    most: u64,
) -> Result<Vec<RecordBatch>, Failure> {
    let mut all = Vec::new();
    let mut bytes = 0;
    for batch in batches {
        let batch = batch?;
        bytes += batch.get_array_memory_size() as u64;
        if bytes > most {
            return Err(Failure::TooBig(bytes));
        }
        let schema = without_metadata(batch.schema_ref());
        all.push(batch.with_schema(schema)?);
    }
    Ok(all)
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
