//! Where rows and files of a plain Parquet table go: a [`Placement`] made from a layout template.
//!
//! Time fields become one integer key per time column (hours since 1970, say), computed for all rows
//! at once and written as text once per file. Fields of one column share the finest unit among them.

use std::{
    collections::HashMap,
    sync::{Arc, Once},
};

use arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, AsArray, Int64Array, PrimitiveArray, RecordBatch,
    },
    datatypes::{
        DataType, Date32Type, Date64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
        TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    },
};
use calve_engine::{
    error::{Error, Result},
    opaque::Opaque,
};
use calve_model::Epoch;
use chrono::Datelike;

use super::{
    STAGED, STAGED_ENDING,
    config::ParquetConfig,
    format,
    output::PublishedFile,
    template::{self, Granularity, Part},
};
use crate::write::{DescribedFile, FinishedFile, KeyValue, Placed, Placement, TablePartition};

/// The layout of one table.
#[derive(Debug)]
pub struct ParquetLayout {
    schema: SchemaRef,
    file_schema: SchemaRef,
    /// Columns that are written; none: all.
    written: Option<Vec<usize>>,
    parts: Vec<Part>,
    keys: Vec<Key>,
    shard: String,
    /// Files have their name from the beginning, and are not staged.
    at_once: bool,
    /// Tells files of different starts apart, also after the checkpoints were reset.
    nonce: String,
}

#[derive(Clone, Debug)]
struct Key {
    column: usize,
    data_type: DataType,
    /// None: the value itself.
    unit: Option<Granularity>,
}

impl ParquetLayout {
    /// The layout of a configuration for rows of this schema.
    ///
    /// # Errors
    /// `Config` when the template does not parse, or names a column that is missing or of a type
    /// that does not fit.
    pub fn new(config: &ParquetConfig, schema: SchemaRef, shard: &str) -> Result<Self> {
        let parts = template::parse(config)?;
        let mut keys: Vec<Key> = Vec::new();
        for part in &parts {
            let (name, unit) = match part {
                Part::Column(name) => (name, None),
                Part::Time { column, unit, .. } => (column, Some(*unit)),
                Part::Text(_) | Part::Seq | Part::Epoch | Part::Shard => continue,
            };
            let Ok(column) = schema.index_of(name) else {
                let names: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
                return Err(Error::config(format!(
                    "layout names an unknown column: column={name}"
                ))
                .hint(format!("the columns are {}", names.join(", "))));
            };
            let data_type = schema.field(column).data_type().clone();
            if unit.is_some() && !is_time(&data_type) {
                return Err(Error::config(format!(
                    "a time format needs a timestamp or a date: column={name} type={data_type}"
                )));
            }
            if data_type.is_nested() {
                return Err(Error::config(format!(
                    "a column of this type cannot partition a table: column={name} type={data_type}"
                )));
            }
            let same =
                |key: &&mut Key| key.column == column && key.unit.is_some() == unit.is_some();
            match keys.iter_mut().find(same) {
                Some(key) => key.unit = key.unit.min(unit),
                None => keys.push(Key {
                    column,
                    data_type,
                    unit,
                }),
            }
        }
        let dropped = if config.keep_columns {
            Vec::new()
        } else {
            hive_columns(&parts)
        };
        let kept: Vec<usize> = (0..schema.fields().len())
            .filter(|index| !dropped.contains(&schema.field(*index).name().as_str()))
            .collect();
        let all = kept.is_empty() || kept.len() == schema.fields().len();
        let file_schema = if all {
            schema.clone()
        } else {
            Arc::new(
                schema
                    .project(&kept)
                    .map_err(|error| Error::internal("cannot leave columns out").because(error))?,
            )
        };
        let nonce = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let written = (!all).then_some(kept);
        let shard = shard.to_owned();
        Ok(Self {
            schema,
            file_schema,
            written,
            parts,
            keys,
            shard,
            at_once: false,
            nonce,
        })
    }

    /// The same for an object store, where a file has its name from the beginning: the upload that
    /// becomes the file begins with it.
    ///
    /// # Errors
    /// `Config` when the name holds the epoch, which is not known then.
    pub fn named_at_once(self) -> Result<Self> {
        if self.parts.contains(&Part::Epoch) {
            return Err(Error::config(
                "a layout in an object store cannot hold {epoch}: files have their name before it is known",
            )
            .hint("leave {epoch} out; `_calve/commits` says which files belong to which epoch"));
        }
        Ok(Self {
            at_once: true,
            ..self
        })
    }

    /// The path of a file, without `{seq}`, which is put between the two halves.
    fn halves(&self, partition: &TablePartition, epoch: Epoch) -> (String, String) {
        let (mut before, mut path) = (None, String::new());
        for part in &self.parts {
            let first = path.is_empty() && before.is_none() || path.ends_with('/');
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Column(name) => {
                    let value = self.value(partition, name, false);
                    let text = value.and_then(|(value, key)| format::text(value, &key.data_type));
                    match text {
                        Some(text) => {
                            if self.written.is_some() && !format::is_whole(&text) {
                                tell_lost_value(name);
                            }
                            path.push_str(&format::escape(&text, first));
                        }
                        None => path.push_str(format::NULL),
                    }
                }
                Part::Time { column, format, .. } => match self.value(partition, column, true) {
                    Some((
                        KeyValue::Int(count),
                        Key {
                            unit: Some(unit), ..
                        },
                    )) => {
                        let text = format::time(*count, *unit, format);
                        // A format may make folders: `%Y/%m`.
                        let names: Vec<_> = text
                            .split('/')
                            .enumerate()
                            .map(|(at, name)| format::escape(name, first || at > 0))
                            .collect();
                        path.push_str(&names.join("/"));
                    }
                    _ => path.push_str(format::NULL),
                },
                Part::Seq => before = Some(std::mem::take(&mut path)),
                Part::Epoch => path.push_str(&format!("{:05}", epoch.0)),
                Part::Shard => path.push_str(&format::escape(&self.shard, first)),
            }
        }
        (before.unwrap_or_default(), path)
    }

    fn value<'a>(
        &'a self,
        partition: &'a TablePartition,
        name: &str,
        time: bool,
    ) -> Option<(&'a KeyValue, &'a Key)> {
        let is =
            |key: &Key| self.schema.field(key.column).name() == name && key.unit.is_some() == time;
        let at = self.keys.iter().position(is)?;
        Some((partition.0.get(at)?, &self.keys[at]))
    }
}

/// Says once that readers cannot tell a value from the names of folders.
fn tell_lost_value(column: &str) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        tracing::warn!(
            column,
            "a text that is empty or very long cannot be read back from the names of folders; with \
             `keep_columns: true` it is in the files, too"
        );
    });
}

impl Placement for ParquetLayout {
    fn file_schema(&self) -> SchemaRef {
        self.file_schema.clone()
    }

    fn check(&self, rows: &RecordBatch) -> Result<()> {
        // Every value has a place in a folder: only columns can be wrong.
        same_columns(&rows.schema(), &self.schema)
    }

    fn place(&self, rows: RecordBatch) -> Result<Placed> {
        same_columns(&rows.schema(), &self.schema)?;
        let keys = self
            .keys
            .iter()
            .map(|key| {
                let column = rows.column(key.column);
                key.unit
                    .map_or_else(|| Ok(column.clone()), |unit| counts(column, unit))
            })
            .collect::<Result<Vec<_>>>()?;
        let rows = match &self.written {
            None => rows,
            Some(kept) => rows
                .project(kept)
                .map_err(|error| Error::internal("cannot leave columns out").because(error))?,
        };
        Ok(Placed { keys, rows })
    }

    fn path(&self, partition: &TablePartition, unique: &str) -> String {
        if self.at_once {
            let (before, after) = self.halves(partition, Epoch::NONE);
            return format!("{before}{unique}{after}");
        }
        format!("{STAGED}/{unique}.{STAGED_ENDING}")
    }

    fn describe(&self, _: &FinishedFile<'_>) -> Result<Opaque> {
        Ok(Opaque::default())
    }

    fn content(&self, epoch: Epoch, files: Vec<DescribedFile>) -> Result<Opaque> {
        // Different table partitions may have one path: `{hour:%H}` of two days.
        let mut numbers: HashMap<(String, String), u32> = HashMap::new();
        let has_epoch = self.parts.contains(&Part::Epoch);
        let published: Vec<PublishedFile> = files
            .into_iter()
            .map(|file| {
                if let Some(upload) = file.upload {
                    return PublishedFile {
                        staged: String::new(),
                        upload: Some(upload),
                        path: file.path,
                        rows: file.rows,
                        bytes: file.bytes,
                    };
                }
                let halves = self.halves(&file.partition, epoch);
                let number = numbers.entry(halves.clone()).or_default();
                let shown = if has_epoch {
                    String::new()
                } else {
                    format!("{:05}-", epoch.0)
                };
                let seq = format!("{shown}{number:03}-{}", self.nonce);
                *number += 1;
                let path = format!("{}{seq}{}", halves.0, halves.1);
                PublishedFile {
                    staged: file.path,
                    upload: None,
                    path,
                    rows: file.rows,
                    bytes: file.bytes,
                }
            })
            .collect();
        Opaque::of(&published)
    }
}

/// Columns that the path holds as `column=value`, as a folder of their own.
fn hive_columns(parts: &[Part]) -> Vec<&str> {
    let mut columns = Vec::new();
    for at in 1..parts.len().saturating_sub(1) {
        if let (Part::Text(before), Part::Column(name), Part::Text(after)) =
            (&parts[at - 1], &parts[at], &parts[at + 1])
        {
            let folder = before.rsplit('/').next().unwrap_or(before);
            // The folder must begin in this very text.
            let whole = before.contains('/') || at == 1;
            if whole && folder.strip_suffix('=') == Some(name) && after.starts_with('/') {
                columns.push(name.as_str());
            }
        }
    }
    columns
}

fn same_columns(rows: &Schema, table: &Schema) -> Result<()> {
    let same = rows.fields().len() == table.fields().len()
        && rows
            .fields()
            .iter()
            .zip(table.fields())
            .all(|(a, b)| a.name() == b.name() && a.data_type().equals_datatype(b.data_type()));
    if same {
        return Ok(());
    }
    Err(Error::schema(format!(
        "rows do not have the table's columns: rows={rows} table={table}"
    )))
}

fn is_time(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64
    )
}

/// Units since 1970 of each row.
fn counts(column: &ArrayRef, unit: Granularity) -> Result<ArrayRef> {
    Ok(match column.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => scaled::<TimestampSecondType, 1>(column, unit),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            scaled::<TimestampMillisecondType, 1_000>(column, unit)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            scaled::<TimestampMicrosecondType, 1_000_000>(column, unit)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            scaled::<TimestampNanosecondType, 1_000_000_000>(column, unit)
        }
        DataType::Date64 => scaled::<Date64Type, 1_000>(column, unit),
        DataType::Date32 => {
            let days = column.as_primitive::<Date32Type>();
            match unit {
                Granularity::Second => map(days, |day| i64::from(day) * 86_400),
                Granularity::Minute => map(days, |day| i64::from(day) * 1_440),
                Granularity::Hour => map(days, |day| i64::from(day) * 24),
                Granularity::Day => map(days, i64::from),
                Granularity::Month | Granularity::Year => by_day(days, i64::from, unit),
            }
        }
        other => {
            return Err(Error::schema(format!(
                "a time column has another type: type={other}"
            )));
        }
    })
}

/// `PER` is how many of the column's units make a second; constant, so that no division is left.
fn scaled<T: ArrowPrimitiveType<Native = i64>, const PER: i64>(
    column: &ArrayRef,
    unit: Granularity,
) -> ArrayRef {
    let values = column.as_primitive::<T>();
    match unit {
        Granularity::Second => map(values, |value| value.div_euclid(PER)),
        Granularity::Minute => map(values, |value| value.div_euclid(PER * 60)),
        Granularity::Hour => map(values, |value| value.div_euclid(PER * 3_600)),
        Granularity::Day => map(values, |value| value.div_euclid(PER * 86_400)),
        Granularity::Month | Granularity::Year => {
            by_day(values, |value| value.div_euclid(PER * 86_400), unit)
        }
    }
}

fn map<T: ArrowPrimitiveType>(
    values: &PrimitiveArray<T>,
    count: impl Fn(T::Native) -> i64,
) -> ArrayRef {
    let counts: Vec<i64> = values.values().iter().map(|value| count(*value)).collect();
    Arc::new(Int64Array::new(counts.into(), values.nulls().cloned()))
}

/// Months or years since 1970, looked up in the calendar once for each run of a day.
fn by_day<T: ArrowPrimitiveType>(
    values: &PrimitiveArray<T>,
    day: impl Fn(T::Native) -> i64,
    unit: Granularity,
) -> ArrayRef {
    let mut last = (0, 0);
    let counts: Vec<i64> = values
        .values()
        .iter()
        .map(|value| {
            let day = day(*value);
            if day != last.0 {
                let at = chrono::DateTime::from_timestamp(day.saturating_mul(86_400), 0);
                // Beyond the calendar each day is its own, and shown as out of range.
                last = (
                    day,
                    at.map_or(i64::MAX, |at| {
                        let year = i64::from(at.year()) - 1970;
                        match unit {
                            Granularity::Year => year,
                            _ => year * 12 + i64::from(at.month0()),
                        }
                    }),
                );
            }
            last.1
        })
        .collect();
    Arc::new(Int64Array::new(counts.into(), values.nulls().cloned()))
}
