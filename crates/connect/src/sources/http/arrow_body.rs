//! Arrow IPC streams as bodies. Every length is checked against the body before anything is allocated,
//! and compressed buffers are refused: they would get around the limits of size.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::{
    array::RecordBatch,
    compute::concat_batches,
    datatypes::{DataType, Schema, SchemaRef},
    error::ArrowError,
    ipc::{self, MessageHeader, reader::StreamReader, writer::StreamWriter},
};

/// The rows of a body, in one batch.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn read(body: &[u8]) -> Result<RecordBatch, String> {
    check_lengths(body)?;
    // Arrow panics at types that do not exist, and at buffers beyond the body.
    catch_unwind(AssertUnwindSafe(|| parse(body)))
        .unwrap_or_else(|_| Err("a message of Arrow IPC is malformed".to_owned()))
}

fn parse(body: &[u8]) -> Result<RecordBatch, String> {
    let wrong = |error: ArrowError| format!("the body is no stream of Arrow IPC: {error}");
    let reader = StreamReader::try_new(body, None).map_err(wrong)?;
    let schema: SchemaRef = reader.schema();
    let mut batches = Vec::new();
    let mut rows = 0_usize;
    for batch in reader {
        let batch = batch.map_err(wrong)?;
        rows = rows.saturating_add(batch.num_rows());
        // More than there can be: rows without a single bit are no events.
        if rows > body.len().saturating_mul(8) {
            return Err("the body has more rows than data".to_owned());
        }
        batches.push(batch);
    }
    if batches.len() == 1 {
        return Ok(batches.remove(0));
    }
    concat_batches(&schema, &batches).map_err(wrong)
}

/// A body of these rows.
///
/// # Errors
/// When Arrow cannot write them.
pub(super) fn write(rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut out = Vec::new();
    let mut writer = StreamWriter::try_new(&mut out, &rows.schema())?;
    writer.write(rows)?;
    writer.finish()?;
    drop(writer);
    Ok(out)
}

/// Batches of equal schemas that follow each other, as one; those that cannot be put together, each for
/// itself.
pub(super) fn combine(batches: Vec<RecordBatch>) -> Vec<RecordBatch> {
    let mut groups: Vec<Vec<RecordBatch>> = Vec::new();
    for batch in batches {
        match groups.last_mut() {
            Some(group)
                if group[0].schema() == batch.schema() && !has_dictionary(&batch.schema()) =>
            {
                group.push(batch);
            }
            _ => groups.push(vec![batch]),
        }
    }
    groups.into_iter().flat_map(together).collect()
}

fn together(mut group: Vec<RecordBatch>) -> Vec<RecordBatch> {
    if group.len() > 1 {
        let schema = group[0].schema();
        // Each fits its type's offsets and run ends; all together may not, for which Arrow has errors and
        // panics.
        let concat = || concat_batches(&schema, &group);
        if let Ok(Ok(one)) = catch_unwind(AssertUnwindSafe(concat)) {
            group = vec![one];
        }
    }
    group
}

/// Whether keys of one batch and of another may be too many for their type when they come together.
fn has_dictionary(schema: &Schema) -> bool {
    fn is_one(of: &DataType) -> bool {
        match of {
            DataType::Dictionary(..) => true,
            DataType::List(field)
            | DataType::LargeList(field)
            | DataType::ListView(field)
            | DataType::LargeListView(field)
            | DataType::FixedSizeList(field, _)
            | DataType::Map(field, _) => is_one(field.data_type()),
            DataType::RunEndEncoded(_, values) => is_one(values.data_type()),
            DataType::Struct(fields) => fields.iter().any(|field| is_one(field.data_type())),
            DataType::Union(fields, _) => fields.iter().any(|(_, field)| is_one(field.data_type())),
            _ => false,
        }
    }
    schema
        .fields()
        .iter()
        .any(|field| is_one(field.data_type()))
}

fn check_lengths(body: &[u8]) -> Result<(), String> {
    let short = || "the body ends in the middle of a message of Arrow IPC".to_owned();
    let mut rest = body;
    while !rest.is_empty() {
        let mut word = || -> Result<u32, String> {
            let (word, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
            rest = after;
            Ok(u32::from_le_bytes(*word))
        };
        let mut length = word()?;
        if length == u32::MAX {
            length = word()?;
        }
        if length == 0 {
            return Ok(());
        }
        let metadata = rest.get(..length as usize).ok_or_else(short)?;
        rest = &rest[length as usize..];
        let message = ipc::root_as_message(metadata)
            .map_err(|_| "a message of Arrow IPC is malformed".to_owned())?;
        let batch = match message.header_type() {
            MessageHeader::RecordBatch => message.header_as_record_batch(),
            MessageHeader::DictionaryBatch => message
                .header_as_dictionary_batch()
                .and_then(|dictionary| dictionary.data()),
            _ => None,
        };
        if batch.is_some_and(|batch| batch.compression().is_some()) {
            return Err(
                "buffers are compressed; compress the body instead (Content-Encoding)".to_owned(),
            );
        }
        let bytes = usize::try_from(message.bodyLength()).map_err(|_| short())?;
        rest = rest.get(bytes..).ok_or_else(short)?;
    }
    Ok(())
}
