//! Deletion vectors: bitmaps of deleted rows in a Puffin file, one for each data file. The form is
//! that of Iceberg's specification: `deletion-vector-v1` blobs, as the Puffin specification says.

use std::collections::HashMap;

use calve_engine::error::{Error, Result};
use iceberg::{
    io::FileIO,
    metadata_columns::RESERVED_FIELD_ID_POS,
    puffin::DELETION_VECTOR_V1,
    spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat},
};
use roaring::RoaringTreemap;
use serde_json::json;

use super::{
    super::live::{DeleteFile, DeleteKind, LiveFile},
    unreadable,
};

const FILE_MAGIC: &[u8; 4] = b"PFA1";
const VECTOR_MAGIC: [u8; 4] = [0xd1, 0xd3, 0x39, 0x64];

/// The bytes of a Puffin file at `location` with the vectors of some data files, and the description
/// of each vector, in the same order. Each must have a row.
///
/// # Errors
/// `Internal` when it cannot be encoded.
pub(crate) fn write(
    location: &str,
    vectors: &[(&LiveFile, &RoaringTreemap)],
) -> Result<(Vec<u8>, Vec<DataFile>)> {
    let mut bytes = FILE_MAGIC.to_vec();
    let mut blobs = Vec::new();
    let mut places = Vec::new();
    for (of, rows) in vectors {
        let offset = bytes.len();
        blob(rows, &mut bytes)?;
        let length = bytes.len() - offset;
        blobs.push(json!({
            "type": DELETION_VECTOR_V1,
            "fields": [RESERVED_FIELD_ID_POS],
            // Both are inherited from the manifest.
            "snapshot-id": -1,
            "sequence-number": -1,
            "offset": offset,
            "length": length,
            "properties": {
                "referenced-data-file": &*of.path,
                "cardinality": rows.len().to_string(),
            },
        }));
        places.push((offset, length));
    }
    let created_by = concat!("calve ", env!("CARGO_PKG_VERSION"));
    let footer = json!({ "blobs": blobs, "properties": { "created-by": created_by } });
    let footer = serde_json::to_vec(&footer)
        .map_err(|e| Error::internal("cannot encode a deletion vector").because(e))?;
    let length = u32::try_from(footer.len())
        .map_err(|e| Error::internal("too many deletion vectors for a file").because(e))?;
    bytes.extend(FILE_MAGIC);
    bytes.extend(footer);
    bytes.extend(length.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(FILE_MAGIC);
    let files = vectors
        .iter()
        .zip(places)
        .map(|((of, rows), (offset, length))| {
            DataFileBuilder::default()
                .content(DataContentType::PositionDeletes)
                .file_path(location.to_owned())
                .file_format(DataFileFormat::Puffin)
                .partition(of.partition.as_ref().clone())
                .partition_spec_id(of.spec)
                .record_count(rows.len())
                .file_size_in_bytes(bytes.len() as u64)
                .value_counts(HashMap::new())
                .referenced_data_file(Some(of.path.to_string()))
                .content_offset(Some(offset as i64))
                .content_size_in_bytes(Some(length as i64))
                .build()
                .map_err(|e| {
                    Error::internal("a deletion vector's description is not whole").because(e)
                })
        })
        .collect::<Result<_>>()?;
    Ok((bytes, files))
}

/// Length of magic and bitmap, both, and their checksum; length and checksum have the highest byte
/// first, the bitmap is in Roaring's portable form for 64 bits.
fn blob(rows: &RoaringTreemap, to: &mut Vec<u8>) -> Result<()> {
    if rows.is_empty() {
        return Err(Error::internal("a deletion vector without rows"));
    }
    let mut body = VECTOR_MAGIC.to_vec();
    rows.serialize_into(&mut body)
        .map_err(|e| Error::internal("cannot encode a deletion vector").because(e))?;
    let length = u32::try_from(body.len())
        .map_err(|e| Error::internal("a deletion vector is too large").because(e))?;
    to.extend(length.to_be_bytes());
    to.extend(&body);
    to.extend(crc32fast::hash(&body).to_be_bytes());
    Ok(())
}

/// The rows in a vector.
///
/// # Errors
/// `Corrupt` when the file is missing, or is not what the manifest says.
pub(crate) async fn read(file_io: &FileIO, vector: &DeleteFile) -> Result<RoaringTreemap> {
    let location = &*vector.path;
    let DeleteKind::Vector { offset, bytes } = vector.kind else {
        return Err(Error::internal(format!("not a vector: file={location}")));
    };
    let input = file_io.new_input(location).map_err(unreadable(location))?;
    let reader = input.reader().await.map_err(unreadable(location))?;
    let blob = reader
        .read(offset..offset + bytes)
        .await
        .map_err(unreadable(location))?;
    let rows = parse(&blob).ok_or_else(|| {
        Error::corrupt(format!(
            "a deletion vector is damaged: file={location} offset={offset}"
        ))
    })?;
    if rows.len() != vector.rows {
        return Err(Error::corrupt(format!(
            "a deletion vector has another number of rows than the manifest says: file={location} \
             offset={offset} rows={} manifest={}",
            rows.len(),
            vector.rows
        )));
    }
    Ok(rows)
}

fn parse(blob: &[u8]) -> Option<RoaringTreemap> {
    let (length, rest) = blob.split_first_chunk::<4>()?;
    let (body, checksum) = rest.split_last_chunk::<4>()?;
    let same = u32::from_be_bytes(*length) as usize == body.len()
        && u32::from_be_bytes(*checksum) == crc32fast::hash(body);
    let bitmap = body.strip_prefix(&VECTOR_MAGIC).filter(|_| same)?;
    RoaringTreemap::deserialize_from(bitmap).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_blob_comes_back_and_a_damaged_one_does_not(
            rows in proptest::collection::btree_set(0_u64..1 << 34, 1..200),
            at: prop::sample::Index,
        ) {
            let rows: RoaringTreemap = rows.into_iter().collect();
            let mut bytes = Vec::new();
            blob(&rows, &mut bytes).expect("encoded");
            prop_assert_eq!(parse(&bytes), Some(rows));
            let at = at.index(bytes.len());
            bytes[at] ^= 1;
            prop_assert_eq!(parse(&bytes), None);
        }
    }
}
