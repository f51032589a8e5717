//! Column chunks in dictionary encoding, made by calve itself.
//!
//! The Parquet crate looks up each value by a hash of its bytes and compares each for the statistics
//! of the chunk; here short strings are numbers, and statistics are those of the dictionary, whose
//! values all occur. Pages, levels and metadata are as the crate writes them; a test compares both.

mod codec;
mod coded;
mod hybrid;
mod values;

use std::ops::Range;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanBufferBuilder, GenericByteArray, OffsetSizeTrait},
    buffer::NullBuffer,
    datatypes::{DataType, GenericStringType, TimeUnit},
};
use bytes::Bytes;
use parquet::{
    basic::{Compression, Encoding, EncodingMask, PageType, Type},
    column::{
        page::{CompressedPage, Page, PageWriter},
        writer::ColumnCloseResult,
    },
    errors::ParquetError,
    file::{
        metadata::{ColumnChunkMetaData, LevelHistogram, OffsetIndexBuilder, PageEncodingStats},
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::{ColumnDescPtr, ColumnDescriptor},
};

use self::{
    coded::Coded,
    values::{Numbers, Texts, Values},
};
use super::gather::selection;

/// Rows of a page, as the Parquet crate has them: readers skip pages by it.
const PAGE_ROWS: usize = 20_000;
/// Beyond this size a dictionary no longer pays, and the row group should end.
const MOST_BYTES: usize = 1 << 20;
/// A page's header, in bytes, at the most.
const HEADER: usize = 64;

/// One column of the row group in progress.
#[derive(Debug)]
pub(super) struct DictionaryColumn {
    column: ColumnDescPtr,
    codec: Compression,
    values: Values,
    coded: Coded,
    /// Of the values of the page in progress, without nulls.
    ids: Vec<u32>,
    /// Of the rows of the page in progress: whether there is a value. Empty where none can be missing.
    valid: BooleanBufferBuilder,
    page_rows: usize,
    /// Bytes of the strings of the page in progress.
    page_text: usize,
    pages: Vec<DataPage>,
}

/// A page as it lies in the file, behind the dictionary.
#[derive(Debug)]
struct DataPage {
    body: Vec<u8>,
    uncompressed: usize,
    rows: usize,
    nulls: usize,
    text: usize,
}

/// A finished column, ready to become part of a row group.
pub(super) struct DictionaryChunk {
    pub(super) bytes: Bytes,
    pub(super) closed: ColumnCloseResult,
}

/// Whether columns of this type can be written here, into a file of this codec.
pub(super) fn supported(
    data_type: &DataType,
    column: &ColumnDescriptor,
    codec: Compression,
) -> bool {
    let flat = column.max_rep_level() == 0 && column.max_def_level() <= 1;
    flat && codec::known(codec) && physical(data_type).is_some_and(|p| p == column.physical_type())
}

/// How values of a type are stored; none: not by this module. Left out are types that the Parquet
/// crate converts first, or that are ordered otherwise than the physical type.
fn physical(data_type: &DataType) -> Option<Type> {
    Some(match data_type {
        DataType::Utf8 | DataType::LargeUtf8 => Type::BYTE_ARRAY,
        DataType::Int32 | DataType::Date32 | DataType::Time32(TimeUnit::Millisecond) => Type::INT32,
        DataType::Float32 => Type::FLOAT,
        DataType::Float64 => Type::DOUBLE,
        DataType::Int64
        | DataType::Time64(_)
        | DataType::Timestamp(
            TimeUnit::Millisecond | TimeUnit::Microsecond | TimeUnit::Nanosecond,
            _,
        ) => Type::INT64,
        DataType::Dictionary(_, value) if is_text(value) => Type::BYTE_ARRAY,
        _ => return None,
    })
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8)
}

impl DictionaryColumn {
    /// An empty column of a type that is [`supported`].
    pub(super) fn new(column: ColumnDescPtr, codec: Compression) -> Self {
        let values = match column.physical_type() {
            Type::BYTE_ARRAY => Values::Texts(Texts::new()),
            physical => Values::Numbers(Numbers::new(physical)),
        };
        Self {
            column,
            codec,
            values,
            coded: Coded::default(),
            ids: Vec::new(),
            valid: BooleanBufferBuilder::new(0),
            page_rows: 0,
            page_text: 0,
            pages: Vec::new(),
        }
    }

    /// Appends rows.
    ///
    /// # Errors
    /// A column of another type than the file's, nulls where the file has none, and what the codec says.
    pub(super) fn write(&mut self, rows: &ArrayRef) -> Result<(), ParquetError> {
        if physical(rows.data_type()) != Some(self.column.physical_type()) {
            return Err(ParquetError::ArrowError(format!(
                "a column of {} cannot be written as {}",
                rows.data_type(),
                self.column.physical_type()
            )));
        }
        let mut at = 0;
        while at < rows.len() {
            let count = (PAGE_ROWS - self.page_rows).min(rows.len() - at);
            self.append(rows.slice(at, count).as_ref())?;
            at += count;
            if self.page_rows == PAGE_ROWS {
                self.end_page()?;
            }
        }
        Ok(())
    }

    fn append(&mut self, rows: &dyn Array) -> Result<(), ParquetError> {
        let nulls = rows.logical_nulls().filter(|nulls| nulls.null_count() > 0);
        let nulls = nulls.as_ref();
        match (self.column.max_def_level(), nulls) {
            (0, None) => {}
            (0, Some(_)) => {
                return Err(ParquetError::ArrowError(format!(
                    "a null in a column that has none: column={}",
                    self.column.path()
                )));
            }
            (_, None) => self.valid.append_n(rows.len(), true),
            (_, Some(nulls)) => self.valid.append_buffer(nulls.inner()),
        }
        self.page_rows += rows.len();
        self.ids.reserve(rows.len());
        if let (Values::Texts(texts), Some((strings, order))) = (&mut self.values, selection(rows))
        {
            self.page_text += match strings.data_type() {
                DataType::LargeUtf8 => selected(
                    texts,
                    &mut self.ids,
                    strings.as_string::<i64>(),
                    order,
                    nulls,
                ),
                _ => selected(
                    texts,
                    &mut self.ids,
                    strings.as_string::<i32>(),
                    order,
                    nulls,
                ),
            };
            return Ok(());
        }
        match (&mut self.values, rows.data_type()) {
            (Values::Texts(texts), DataType::Utf8) => {
                self.page_text += strings(texts, &mut self.ids, rows.as_string::<i32>(), nulls);
            }
            (Values::Texts(texts), DataType::LargeUtf8) => {
                self.page_text += strings(texts, &mut self.ids, rows.as_string::<i64>(), nulls);
            }
            (Values::Texts(texts), _) => {
                self.page_text += self.coded.append(texts, &mut self.ids, rows, nulls)?;
            }
            (Values::Numbers(numbers), _) => {
                let data = rows.to_data();
                let (from, to) = (data.offset(), data.offset() + data.len());
                let buffer = &data.buffers()[0];
                if matches!(self.column.physical_type(), Type::INT32 | Type::FLOAT) {
                    let bits = &buffer.typed_data::<u32>()[from..to];
                    each(bits.len(), nulls, |row| {
                        self.ids.push(numbers.id(bits[row].into()));
                    });
                } else {
                    let bits = &buffer.typed_data::<u64>()[from..to];
                    each(bits.len(), nulls, |row| {
                        self.ids.push(numbers.id(bits[row]));
                    });
                }
            }
        }
        Ok(())
    }

    /// Bytes that the column will have on disk, about.
    pub(super) fn estimated_bytes(&self) -> usize {
        let pages: usize = self.pages.iter().map(|page| page.body.len()).sum();
        pages + self.values.bytes() + self.ids.len() * self.width() as usize / 8
    }

    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        let pages: usize = self.pages.iter().map(|page| page.body.capacity()).sum();
        let values = self.values.memory() + self.coded.memory();
        pages + values + self.ids.capacity() * 4 + self.valid.capacity() / 8
    }

    /// Whether the dictionary has become so large that it no longer pays.
    pub(super) fn full(&self) -> bool {
        self.values.bytes() > MOST_BYTES
    }

    /// Bits of a number of the values so far.
    fn width(&self) -> u32 {
        let highest = self.values.len().saturating_sub(1);
        usize::BITS - highest.leading_zeros()
    }

    fn end_page(&mut self) -> Result<(), ParquetError> {
        let mut body = Vec::new();
        let nulls = self.page_rows - self.ids.len();
        if self.column.max_def_level() > 0 {
            body.extend_from_slice(&[0; 4]);
            if nulls == 0 {
                hybrid::encode_run(1, 1, self.page_rows, &mut body);
            } else {
                let levels: Vec<u32> = (0..self.page_rows)
                    .map(|row| self.valid.get_bit(row).into())
                    .collect();
                hybrid::encode(&levels, 1, &mut body);
            }
            let length = (body.len() - 4) as u32;
            body[..4].copy_from_slice(&length.to_le_bytes());
        }
        let width = self.width();
        body.reserve(self.ids.len() * width as usize / 8 + 64);
        body.push(width as u8);
        hybrid::encode(&self.ids, width, &mut body);
        let uncompressed = body.len();
        self.pages.push(DataPage {
            body: codec::compress(body, self.codec)?,
            uncompressed,
            rows: self.page_rows,
            nulls,
            text: self.page_text,
        });
        self.ids.clear();
        self.valid.truncate(0);
        (self.page_rows, self.page_text) = (0, 0);
        Ok(())
    }

    /// Ends the column: dictionary, pages, metadata.
    ///
    /// # Errors
    /// What the codec says.
    pub(super) fn close(mut self) -> Result<DictionaryChunk, ParquetError> {
        if self.page_rows > 0 {
            self.end_page()?;
        }
        let Self {
            column,
            codec,
            values,
            pages,
            ..
        } = self;
        let rows: usize = pages.iter().map(|page| page.rows).sum();
        let nulls: usize = pages.iter().map(|page| page.nulls).sum();
        let text = |bytes: usize| matches!(values, Values::Texts(_)).then_some(bytes as i64);
        let all_text = text(pages.iter().map(|page| page.text).sum());
        let statistics = values.statistics(nulls as u64);
        let texts: Vec<_> = pages.iter().map(|page| text(page.text)).collect();
        let (distinct, length) = (values.len() as u32, values.bytes());
        let dictionary = codec::compress(values.into_page(), codec)?;
        let bodies: usize = pages.iter().map(|page| page.body.len() + HEADER).sum();
        let room = dictionary.len() + HEADER + bodies;
        let mut sink = TrackedWrite::new(Vec::with_capacity(room));
        let mut out = SerializedPageWriter::new(&mut sink);
        let mut index = OffsetIndexBuilder::new();
        let count = pages.len();
        let page = Page::DictionaryPage {
            num_values: distinct,
            encoding: Encoding::PLAIN,
            is_sorted: false,
            buf: dictionary.into(),
        };
        let spec = out.write_page(CompressedPage::new(page, length))?;
        let mut uncompressed = spec.uncompressed_size;
        let mut first = None;
        for (page, text) in pages.into_iter().zip(texts) {
            let body = Page::DataPage {
                buf: page.body.into(),
                num_values: page.rows as u32,
                encoding: Encoding::RLE_DICTIONARY,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            };
            let spec = out.write_page(CompressedPage::new(body, page.uncompressed))?;
            uncompressed += spec.uncompressed_size;
            first.get_or_insert(spec.offset as i64);
            index.append_row_count(page.rows as i64);
            index.append_offset_and_size(spec.offset as i64, spec.compressed_size as i32);
            index.append_unencoded_byte_array_data_bytes(text);
        }
        out.close()?;
        let bytes = Bytes::from(sink.into_inner()?);
        let stats = |page_type, encoding, count: usize| PageEncodingStats {
            page_type,
            encoding,
            count: count as i32,
        };
        let used = [Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY];
        let mut levels = LevelHistogram::try_new(column.max_def_level());
        if let Some(levels) = &mut levels {
            levels.increment_by(0, nulls as i64);
            levels.increment_by(1, (rows - nulls) as i64);
        }
        let metadata = ColumnChunkMetaData::builder(column)
            .set_compression(codec)
            .set_encodings_mask(EncodingMask::new_from_encodings(used.iter()))
            .set_page_encoding_stats(vec![
                stats(PageType::DICTIONARY_PAGE, Encoding::PLAIN, 1),
                stats(PageType::DATA_PAGE, Encoding::RLE_DICTIONARY, count),
            ])
            .set_total_compressed_size(bytes.len() as i64)
            .set_total_uncompressed_size(uncompressed as i64)
            .set_num_values(rows as i64)
            .set_dictionary_page_offset(Some(0))
            .set_data_page_offset(first.unwrap_or(0))
            .set_statistics(statistics)
            .set_unencoded_byte_array_data_bytes(all_text)
            .set_definition_level_histogram(levels)
            .build()?;
        let closed = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(index.build()),
        };
        Ok(DictionaryChunk { bytes, closed })
    }
}

/// Calls `take` for each row that has a value.
#[inline]
fn each(rows: usize, nulls: Option<&NullBuffer>, mut take: impl FnMut(usize)) {
    match nulls {
        None => (0..rows).for_each(take),
        Some(nulls) => nulls.valid_indices().for_each(&mut take),
    }
}

/// Where the first string is, when all are the same: those of a table partition are of its key.
fn one_string<O: OffsetSizeTrait>(values: &[u8], offsets: &[O]) -> Option<Range<usize>> {
    let (first, rest) = offsets.split_first()?;
    let (second, last) = (rest.first()?.as_usize(), rest.last()?.as_usize());
    let first = first.as_usize();
    let length = second - first;
    // Bytes that repeat themselves after one string are that string again and again; asked of few at
    // first, since most columns differ soon.
    let repeats = |end: usize| values[first..end - length] == values[second..end];
    let regular = |offsets: &[O]| {
        offsets
            .windows(2)
            .all(|w| (w[1] - w[0]).as_usize() == length)
    };
    let few = offsets.len().min(8);
    let same = regular(&offsets[..few])
        && repeats(offsets[few - 1].as_usize())
        && last - first == length * rest.len()
        && regular(offsets)
        && repeats(last);
    same.then_some(first..second)
}

/// Appends the numbers of strings; returns their bytes.
fn strings<O: OffsetSizeTrait>(
    texts: &mut Texts,
    ids: &mut Vec<u32>,
    rows: &GenericByteArray<GenericStringType<O>>,
    nulls: Option<&NullBuffer>,
) -> usize {
    let (values, offsets) = (rows.value_data(), rows.value_offsets());
    if nulls.is_none()
        && let Some(range) = one_string(values, offsets)
    {
        let id = texts.id(values, range.clone());
        ids.resize(ids.len() + rows.len(), id);
        return range.len() * rows.len();
    }
    let mut bytes = 0;
    each(rows.len(), nulls, |row| {
        let range = offsets[row].as_usize()..offsets[row + 1].as_usize();
        bytes += range.len();
        ids.push(texts.id(values, range));
    });
    bytes
}

/// The same for strings of which `order` says which one each row has.
fn selected<O: OffsetSizeTrait>(
    texts: &mut Texts,
    ids: &mut Vec<u32>,
    strings: &GenericByteArray<GenericStringType<O>>,
    order: &[u32],
    nulls: Option<&NullBuffer>,
) -> usize {
    let (values, offsets) = (strings.value_data(), strings.value_offsets());
    let (starts, ends) = (&offsets[..strings.len()], &offsets[1..]);
    let mut bytes = 0;
    each(order.len(), nulls, |row| {
        let at = order[row] as usize;
        let range = starts[at].as_usize()..ends[at].as_usize();
        bytes += range.len();
        ids.push(texts.id(values, range));
    });
    bytes
}

#[cfg(test)]
mod tests;
