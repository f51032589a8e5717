//! A Parquet file again, with other field ids. Only the footer names them, so the data is copied as it
//! is: columns, dictionaries, page indexes and bloom filters stay at their places.

use std::{collections::HashMap, sync::Arc};

use calve_engine::error::{Error, Result};
use parquet::{
    file::{
        FOOTER_SIZE,
        metadata::{
            ColumnChunkMetaData, FileMetaData, FooterTail, ParquetMetaData, ParquetMetaDataReader,
            ParquetMetaDataWriter, RowGroupMetaData,
        },
    },
    schema::types::{ColumnDescPtr, SchemaDescriptor, Type, TypePtr},
};

/// The Arrow schema that writers put beside that of Parquet; it has field ids of its own.
const ARROW_SCHEMA: &str = "ARROW:schema";

/// The file with field ids replaced as `moved` says, old to new; others stay.
///
/// # Errors
/// `Corrupt` when the bytes are no Parquet file.
pub(super) fn readdressed(file: &[u8], moved: &HashMap<i32, i32>) -> Result<Vec<u8>> {
    let broken = |e| Error::corrupt("a prepared file cannot be read").because(e);
    let footer: [u8; FOOTER_SIZE] = file
        .last_chunk()
        .copied()
        .ok_or_else(|| Error::corrupt("a prepared file is too short"))?;
    let tail = FooterTail::try_from(footer).map_err(broken)?;
    let end = file
        .len()
        .checked_sub(FOOTER_SIZE + tail.metadata_length())
        .ok_or_else(|| Error::corrupt("a prepared file is too short"))?;
    let metadata = ParquetMetaDataReader::decode_metadata(&file[end..file.len() - FOOTER_SIZE])
        .map_err(broken)?;
    let of = metadata.file_metadata();
    let schema = Arc::new(SchemaDescriptor::new(
        with_ids(of.schema_descr().root_schema_ptr(), moved).map_err(broken)?,
    ));
    let groups = metadata.row_groups().iter().map(|group| {
        let columns = group
            .columns()
            .iter()
            .enumerate()
            .map(|(n, column)| with_descriptor(column, schema.column(n)));
        let builder = RowGroupMetaData::builder(schema.clone())
            .set_num_rows(group.num_rows())
            .set_total_byte_size(group.total_byte_size())
            .set_sorting_columns(group.sorting_columns().cloned())
            .set_column_metadata(columns.collect::<std::result::Result<_, _>>()?);
        let builder = match group.ordinal() {
            Some(ordinal) => builder.set_ordinal(ordinal),
            None => builder,
        };
        match group.file_offset() {
            Some(offset) => builder.set_file_offset(offset).build(),
            None => builder.build(),
        }
    });
    let groups = groups
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(broken)?;
    let pairs = of.key_value_metadata().map(|pairs| {
        let kept = pairs.iter().filter(|pair| pair.key != ARROW_SCHEMA);
        kept.cloned().collect()
    });
    let of = FileMetaData::new(
        of.version(),
        of.num_rows(),
        of.created_by().map(str::to_owned),
        pairs,
        schema,
        of.column_orders().cloned(),
    );
    let metadata = ParquetMetaData::new(of, groups);
    let mut written = file[..end].to_vec();
    ParquetMetaDataWriter::new(&mut written, &metadata)
        .finish()
        .map_err(broken)?;
    Ok(written)
}

fn with_ids(of: TypePtr, moved: &HashMap<i32, i32>) -> parquet::errors::Result<TypePtr> {
    let info = of.get_basic_info();
    let id = info
        .has_id()
        .then(|| moved.get(&info.id()).copied().unwrap_or(info.id()));
    let made = match &*of {
        Type::PrimitiveType {
            physical_type,
            type_length,
            scale,
            precision,
            ..
        } => Type::primitive_type_builder(info.name(), *physical_type)
            .with_repetition(info.repetition())
            .with_converted_type(info.converted_type())
            .with_logical_type(info.logical_type_ref().cloned())
            .with_length(*type_length)
            .with_precision(*precision)
            .with_scale(*scale)
            .with_id(id)
            .build()?,
        Type::GroupType { fields, .. } => {
            let fields = fields.iter().map(|field| with_ids(field.clone(), moved));
            let builder = Type::group_type_builder(info.name())
                .with_converted_type(info.converted_type())
                .with_logical_type(info.logical_type_ref().cloned())
                .with_fields(fields.collect::<parquet::errors::Result<_>>()?)
                .with_id(id);
            if info.has_repetition() {
                builder.with_repetition(info.repetition()).build()?
            } else {
                builder.build()?
            }
        }
    };
    Ok(Arc::new(made))
}

fn with_descriptor(
    column: &ColumnChunkMetaData,
    descriptor: ColumnDescPtr,
) -> parquet::errors::Result<ColumnChunkMetaData> {
    let mut builder = ColumnChunkMetaData::builder(descriptor)
        .set_encodings_mask(*column.encodings_mask())
        .set_num_values(column.num_values())
        .set_compression(column.compression())
        .set_total_compressed_size(column.compressed_size())
        .set_total_uncompressed_size(column.uncompressed_size())
        .set_data_page_offset(column.data_page_offset())
        .set_dictionary_page_offset(column.dictionary_page_offset())
        .set_index_page_offset(column.index_page_offset())
        .set_bloom_filter_offset(column.bloom_filter_offset())
        .set_bloom_filter_length(column.bloom_filter_length())
        .set_offset_index_offset(column.offset_index_offset())
        .set_offset_index_length(column.offset_index_length())
        .set_column_index_offset(column.column_index_offset())
        .set_column_index_length(column.column_index_length())
        .set_unencoded_byte_array_data_bytes(column.unencoded_byte_array_data_bytes())
        .set_repetition_level_histogram(column.repetition_level_histogram().cloned())
        .set_definition_level_histogram(column.definition_level_histogram().cloned());
    if let Some(statistics) = column.statistics() {
        builder = builder.set_statistics(statistics.clone());
    }
    if let Some(stats) = column.page_encoding_stats() {
        builder = builder.set_page_encoding_stats(stats.clone());
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Int64Array, RecordBatch, StringArray, StructArray},
        datatypes::{DataType, Field, Schema},
    };
    use bytes::Bytes;
    use parquet::arrow::{
        ArrowWriter, PARQUET_FIELD_ID_META_KEY, arrow_reader::ParquetRecordBatchReaderBuilder,
    };

    use super::*;

    fn field(name: &str, id: i32, of: DataType) -> Field {
        let id = (PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string());
        Field::new(name, of, true).with_metadata([id].into())
    }

    #[test]
    fn only_the_ids_change() {
        let inner = field("n", 5, DataType::Int64);
        let fields = vec![inner.clone()].into();
        let schema = Arc::new(Schema::new(vec![
            field("s", 1, DataType::Utf8),
            field("at", 4, DataType::Struct(fields)),
        ]));
        let numbers: ArrayRef = Arc::new((0..5000).map(|n| Some(n % 7)).collect::<Int64Array>());
        let rows = RecordBatch::try_new(
            schema.clone(),
            vec![
                Arc::new(StringArray::from_iter_values(
                    (0..5000).map(|n| format!("v{}", n % 50)),
                )),
                Arc::new(StructArray::from(vec![(Arc::new(inner), numbers)])),
            ],
        )
        .expect("rows");
        let mut file = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut file, schema, None).expect("a writer");
        writer.write(&rows).expect("written");
        writer.close().expect("closed");

        let again = readdressed(&file, &HashMap::from([(4, 40), (5, 41)])).expect("it is a file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(again)).expect("a file");
        let ids: Vec<i32> = {
            let descr = reader.parquet_schema();
            let root = descr.root_schema().get_fields();
            let at = &root[1];
            let of = |t: &Type| t.get_basic_info().id();
            vec![of(&root[0]), of(at), of(&at.get_fields()[0])]
        };
        assert_eq!(ids, [1, 40, 41]);
        let group = reader.metadata().row_group(0);
        assert!(
            group.column(1).statistics().is_some(),
            "and all else is kept"
        );
        let mut found = reader.with_batch_size(10_000).build().expect("a reader");
        let found = found.next().expect("a batch").expect("rows");
        assert_eq!(found.column(0), rows.column(0));
        let column = found
            .column(1)
            .as_any()
            .downcast_ref::<StructArray>()
            .expect("a struct");
        let numbers = rows
            .column(1)
            .as_any()
            .downcast_ref::<StructArray>()
            .expect("a struct");
        assert_eq!(column.column(0), numbers.column(0));
    }
}
