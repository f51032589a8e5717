//! Settings of the data-file writer, made by the binary from the `commit:` and `limits:` sections.

use super::compression::Compression;

/// How data files are written.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// A file is closed when it has about this many bytes.
    pub target_file_size: u64,
    /// Codec of the pages.
    pub compression: Compression,
    /// Rows not yet encoded and pages not yet on disk stay within this many bytes, over all table
    /// partitions and epochs in flight. The process needs two to three times as much: what the
    /// allocator keeps, and the compressors' own buffers, are not counted.
    pub memory_bytes: usize,
    /// At most so many data files are open at once.
    pub open_files: usize,
    /// A row group ends after this many rows …
    pub row_group_rows: usize,
    /// … or this many encoded bytes.
    pub row_group_bytes: usize,
    /// Columns (dotted paths) that get a bloom filter.
    pub bloom_filters: Vec<String>,
    /// Text may be written in delta encodings. Not in Iceberg tables: readers of its Java library that go
    /// batch by batch, Spark's among them, know them only since 2026 (apache/iceberg #15362).
    pub text_deltas: bool,
    /// Stored in each file as `calve.schema_version`.
    pub schema_version: u32,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            target_file_size: 128 << 20,
            compression: Compression::default(),
            memory_bytes: 64 << 20,
            open_files: 512,
            row_group_rows: 1 << 20,
            row_group_bytes: 32 << 20,
            bloom_filters: Vec::new(),
            text_deltas: true,
            schema_version: 1,
        }
    }
}
