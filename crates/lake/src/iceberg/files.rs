//! A data file as the checkpoint holds it, and as the manifest takes it.
//!
//! The form in the checkpoint is our own and lossless: partition values as plain JSON, bounds as the
//! hexadecimal of Iceberg's single-value serialization, cut as Iceberg's `truncate(16)` metrics do.
//! It names schema and spec, since the table may have moved on when the files are committed.

use std::collections::HashMap;

use calve_engine::{
    error::{Error, Result},
    opaque::Opaque,
};
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, Literal, PrimitiveLiteral,
    PrimitiveType, Schema, Struct, TableMetadata,
};
use parquet::file::statistics::Statistics;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{
    access::{FileAccess, unreadable},
    bounds::Bounds,
    evolve::Evolved,
    readdress::readdressed,
    unite::with_ids,
};
use crate::write::{DescribedFile, FinishedFile, KeyValue};

/// What a checkpoint holds for an Iceberg table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// The table's location, without a slash at the end.
    pub(crate) location: String,
    /// Partition spec of the files.
    pub(crate) spec: i32,
    /// Schema of the files.
    pub(crate) schema: i32,
    pub(crate) files: Vec<FileEntry>,
    /// The schema itself, where the table did not have it when the files were written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) evolved: Option<Evolved>,
}

/// One data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Relative to the location.
    path: String,
    rows: u64,
    bytes: u64,
    /// One value for each field of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    partition: Vec<Value>,
    described: Described,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Described {
    /// Where the row groups begin.
    splits: Vec<i64>,
    columns: Vec<ColumnEntry>,
}

/// Field id, bytes, values, nulls, lower bound, upper bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ColumnEntry(i32, u64, u64, Option<u64>, Option<String>, Option<String>);

/// What the checkpoint needs of a complete file beyond its path, size and partition.
pub(crate) fn describe(file: &FinishedFile<'_>, schema: &Schema) -> Result<Opaque> {
    let mut columns: Vec<(ColumnEntry, Bounds)> = Vec::new();
    let groups = file.metadata.row_groups();
    for group in groups {
        for (at, chunk) in group.columns().iter().enumerate() {
            let descriptor = chunk.column_descr();
            let info = descriptor.self_type().get_basic_info();
            if !info.has_id() {
                return Err(Error::internal(format!(
                    "a column has no field id: column={}",
                    info.name()
                )));
            }
            if at == columns.len() {
                let field = schema.field_by_id(info.id());
                let primitive = field.and_then(|f| f.field_type.as_primitive_type());
                let bounds = match primitive {
                    // The bounds of repeated values are of no use to a reader.
                    Some(primitive) if descriptor.max_rep_level() == 0 => Bounds::of(primitive),
                    _ => Bounds::of_nothing(),
                };
                columns.push((ColumnEntry(info.id(), 0, 0, Some(0), None, None), bounds));
            }
            let (entry, bounds) = columns
                .get_mut(at)
                .ok_or_else(|| Error::internal("the row groups of a file differ in columns"))?;
            entry.1 += chunk.compressed_size().unsigned_abs();
            entry.2 += chunk.num_values().unsigned_abs();
            let statistics = chunk.statistics();
            entry.3 = entry
                .3
                .zip(statistics.and_then(Statistics::null_count_opt))
                .map(|(a, b)| a + b);
            bounds.add(statistics, chunk.num_values().unsigned_abs());
        }
    }
    let described = Described {
        splits: groups.iter().map(first_byte).collect(),
        columns: columns
            .into_iter()
            .map(|(mut entry, bounds)| {
                (entry.4, entry.5) = bounds.finish();
                entry
            })
            .collect(),
    };
    Opaque::of(&described)
}

fn first_byte(group: &parquet::file::metadata::RowGroupMetaData) -> i64 {
    group
        .columns()
        .iter()
        .map(|c| {
            c.dictionary_page_offset()
                .filter(|at| *at > 0)
                .unwrap_or(c.data_page_offset())
        })
        .min()
        .unwrap_or(4)
}

impl Content {
    pub(crate) fn new(
        location: &str,
        spec: i32,
        schema: i32,
        files: Vec<DescribedFile>,
    ) -> Result<Self> {
        let files = files
            .into_iter()
            .map(|file| {
                Ok(FileEntry {
                    path: file.path,
                    rows: file.rows,
                    bytes: file.bytes,
                    partition: file
                        .partition
                        .0
                        .iter()
                        .map(to_json)
                        .collect::<Result<_>>()?,
                    described: file
                        .described
                        .parse()
                        .map_err(|e| Error::internal("a file's description").because(e))?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            location: location.to_owned(),
            spec,
            schema,
            files,
            evolved: None,
        })
    }

    /// # Errors
    /// `Corrupt`: not what was written.
    pub(crate) fn from_json(content: &Opaque) -> Result<Self> {
        content.parse().map_err(|e| {
            Error::corrupt("the checkpoint holds no files of an Iceberg table").because(e)
        })
    }

    /// Locations of the files.
    pub(crate) fn locations(&self) -> impl Iterator<Item = String> {
        self.files
            .iter()
            .map(|file| format!("{}/{}", self.location, file.path))
    }

    /// The same files under other field ids, and under other paths.
    ///
    /// # Errors
    /// `Corrupt` when a file cannot be read.
    pub(super) async fn readdressed(
        &self,
        access: &FileAccess,
        moved: &HashMap<i32, i32>,
    ) -> Result<Self> {
        let mut content = self.clone();
        if let Some(evolved) = &mut content.evolved {
            evolved.schema = with_ids(&evolved.schema, moved)?;
        }
        for file in &mut content.files {
            let location = format!("{}/{}", self.location, file.path);
            let unread = |e| {
                let wrong =
                    Error::corrupt(format!("a prepared file is unreadable: file={location}"));
                unreadable(wrong, e)
            };
            let input = access.io().new_input(&location).map_err(unread)?;
            let read = input.read().await.map_err(unread)?;
            let moved_here = moved.clone();
            let bytes = tokio::task::spawn_blocking(move || readdressed(&read, &moved_here))
                .await
                .map_err(|e| Error::internal("a task that rewrites has died").because(e))??;
            let stem = file.path.strip_suffix(".parquet").unwrap_or(&file.path);
            file.path = format!("{stem}-{}.parquet", Uuid::new_v4().simple());
            file.bytes = bytes.len() as u64;
            for column in &mut file.described.columns {
                column.0 = moved.get(&column.0).copied().unwrap_or(column.0);
            }
            let location = format!("{}/{}", self.location, file.path);
            let folder = location.rsplit_once('/').map_or("", |(folder, _)| folder);
            access
                .write_all(vec![(location.clone(), bytes)], folder)
                .await?;
        }
        Ok(content)
    }

    /// Size of the files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The files as a manifest takes them.
    ///
    /// # Errors
    /// `Corrupt` when they do not fit the schema and spec that they name.
    pub(crate) fn data_files(&self, metadata: &TableMetadata) -> Result<Vec<DataFile>> {
        let missing = |what: &str, id: i32| {
            Error::corrupt(format!(
                "the table has lost what prepared files refer to: {what}={id}"
            ))
            .hint("restore the table, or start over with `calve checkpoint reset`")
        };
        let schema = match &self.evolved {
            Some(evolved) => &evolved.schema,
            None => metadata
                .schema_by_id(self.schema)
                .ok_or_else(|| missing("schema", self.schema))?,
        };
        let spec = metadata
            .partition_spec_by_id(self.spec)
            .ok_or_else(|| missing("spec", self.spec))?;
        let partition_type = spec
            .partition_type(schema)
            .map_err(|e| Error::corrupt("the partition spec does not fit the schema").because(e))?;
        let types: Vec<&PrimitiveType> = partition_type
            .fields()
            .iter()
            .filter_map(|f| f.field_type.as_primitive_type())
            .collect();
        self.files
            .iter()
            .map(|file| self.data_file(file, schema, &types))
            .collect()
    }

    fn data_file(
        &self,
        file: &FileEntry,
        schema: &Schema,
        types: &[&PrimitiveType],
    ) -> Result<DataFile> {
        let wrong =
            |what: &str| Error::corrupt(format!("a prepared file's {what}: file={}", file.path));
        if types.len() != file.partition.len() {
            return Err(wrong("partition values do not fit the spec"));
        }
        let partition = types
            .iter()
            .zip(&file.partition)
            .map(|(of, value)| match value {
                Value::Null => Ok(None),
                value => {
                    let known = literal(of, value).map(Some);
                    known.ok_or_else(|| wrong("partition value is wrong"))
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let mut sizes = HashMap::new();
        let mut values = HashMap::new();
        let mut nulls = HashMap::new();
        let mut lower = HashMap::new();
        let mut upper = HashMap::new();
        for ColumnEntry(id, bytes, count, null_count, low, high) in &file.described.columns {
            sizes.insert(*id, *bytes);
            values.insert(*id, *count);
            nulls.extend(null_count.map(|n| (*id, n)));
            let primitive = schema
                .field_by_id(*id)
                .and_then(|f| f.field_type.as_primitive_type());
            for (bound, to) in [(low, &mut lower), (high, &mut upper)] {
                if let (Some(bound), Some(primitive)) = (bound, primitive) {
                    let datum = from_hex(bound)
                        .and_then(|b| Datum::try_from_bytes(&b, primitive.clone()).ok())
                        .ok_or_else(|| wrong("bounds are wrong"))?;
                    to.insert(*id, datum);
                }
            }
        }
        DataFileBuilder::default()
            .content(DataContentType::Data)
            .file_path(format!("{}/{}", self.location, file.path))
            .file_format(DataFileFormat::Parquet)
            .partition(partition.into_iter().collect::<Struct>())
            .partition_spec_id(self.spec)
            .record_count(file.rows)
            .file_size_in_bytes(file.bytes)
            .column_sizes(sizes)
            .value_counts(values)
            .null_value_counts(nulls)
            .lower_bounds(lower)
            .upper_bounds(upper)
            .split_offsets(Some(file.described.splits.clone()))
            .build()
            .map_err(|e| wrong("description is not whole").because(e))
    }
}

fn to_json(value: &KeyValue) -> Result<Value> {
    Ok(match value {
        KeyValue::Null => Value::Null,
        KeyValue::Bool(v) => Value::from(*v),
        KeyValue::Int(v) => Value::from(*v),
        KeyValue::UInt(v) => Value::from(*v),
        KeyValue::Decimal(v) => Value::from(v.to_string()),
        KeyValue::Text(v) => Value::from(&**v),
        KeyValue::Bytes(v) => Value::from(to_hex(v)),
        KeyValue::Float(_) => return Err(Error::internal("a float as partition value")),
    })
}

/// None: the value does not fit the type.
fn literal(of: &PrimitiveType, value: &Value) -> Option<Literal> {
    use PrimitiveType as P;
    let primitive = match of {
        P::Boolean => PrimitiveLiteral::Boolean(value.as_bool()?),
        P::Int | P::Date => PrimitiveLiteral::Int(value.as_i64()?.try_into().ok()?),
        P::Long | P::Time | P::Timestamp | P::Timestamptz | P::TimestampNs | P::TimestamptzNs => {
            PrimitiveLiteral::Long(value.as_i64()?)
        }
        P::Decimal { .. } => PrimitiveLiteral::Int128(value.as_str()?.parse().ok()?),
        P::String => PrimitiveLiteral::String(value.as_str()?.to_owned()),
        P::Fixed(_) | P::Binary => PrimitiveLiteral::Binary(from_hex(value.as_str()?)?),
        P::Float | P::Double | P::Uuid => return None,
    };
    Some(Literal::Primitive(primitive))
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
        hex.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    hex
}

pub(crate) fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hex_comes_back(bytes: Vec<u8>) {
            prop_assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        }
    }
}
