//! Chooses how each column is encoded by what its data is, from a sample of a file's first rows.
//!
//! - dictionary, where values repeat so much that it stays small (written by `dictionary`, where it can be);
//! - `DELTA_BINARY_PACKED` for integers and times whose steps are narrower than the type;
//! - `DELTA_BYTE_ARRAY` for strings that share prefixes with the one before, `DELTA_LENGTH_BYTE_ARRAY`
//!   for other short ones, but not in Iceberg tables (see [`WriteOptions::text_deltas`]);
//! - plain for the rest. `BYTE_STREAM_SPLIT` is left out: several readers lack it.
//!
//! Chunk statistics always; page statistics, which cost a tenth of the time, only for columns that
//! rise, since only there can a reader skip pages. The choice depends on the sample alone.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::{cast, concat},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};
use calve_engine::error::{Error, Result};
use parking_lot::Mutex;
use parquet::{
    arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata},
    basic::Encoding,
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr},
    },
    schema::types::{ColumnPath, SchemaDescriptor},
};

use super::{dictionary, group::Groups, options::WriteOptions};

/// Rows of a sample that are looked at.
pub(super) const SAMPLE: usize = 8192;
/// Fewer rows say nothing; the Parquet defaults do.
const ENOUGH: usize = 64;
/// A dictionary pays up to this size in bytes.
const DICTIONARY_BYTES: f64 = (256 << 10) as f64;
/// Choices that are kept to be shared.
const MOST_CHOICES: usize = 64;
/// Expected rows of a row group, for the size that a dictionary will reach.
const GROUP_ROWS: f64 = (1 << 18) as f64;

/// The choice for one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnPlan {
    /// Try a dictionary first; the encoding is the fallback when it grows too large.
    pub dictionary: bool,
    /// Encoding of values; none: the Parquet default.
    pub encoding: Option<Encoding>,
    /// Statistics of pages too.
    pub page_statistics: bool,
}

impl ColumnPlan {
    const DEFAULT: Self = Self {
        dictionary: true,
        encoding: None,
        page_statistics: false,
    };
}

/// How a file is written.
#[derive(Debug)]
pub(crate) struct FilePlan {
    pub(crate) properties: WriterPropertiesPtr,
    /// By field: written as a [`DictionaryColumn`](super::dictionary::DictionaryColumn).
    pub(crate) dictionaries: Vec<bool>,
}

/// What is the same for all files of a writer.
#[derive(Debug)]
pub(crate) struct FileLayout {
    pub(crate) schema: SchemaRef,
    pub(crate) parquet: SchemaDescriptor,
    /// Number of leaf columns of each field.
    pub(crate) leaves: Vec<usize>,
    options: WriteOptions,
    /// One for each choice that was made; the table partitions that made it share them.
    chosen: Mutex<Vec<(Vec<ColumnPlan>, Arc<FilePlan>)>>,
}

impl FileLayout {
    pub(crate) fn new(schema: SchemaRef, options: &WriteOptions) -> Result<Self> {
        let parquet = ArrowSchemaConverter::new()
            .convert(&schema)
            .map_err(|e| Error::schema("the table's columns do not fit parquet").because(e))?;
        let mut leaves = vec![0; schema.fields().len()];
        for leaf in 0..parquet.num_columns() {
            leaves[parquet.get_column_root_idx(leaf)] += 1;
        }
        for column in &options.bloom_filters {
            if !parquet
                .columns()
                .iter()
                .any(|leaf| leaf.path().string() == *column)
            {
                return Err(Error::config(format!(
                    "bloom filter on a column that is not there: column={column}"
                )));
            }
        }
        Ok(Self {
            schema,
            parquet,
            leaves,
            options: options.clone(),
            chosen: Mutex::default(),
        })
    }

    /// The plan of a file that begins with the rows of `sample`.
    pub(crate) fn plan(&self, sample: &[RecordBatch]) -> Arc<FilePlan> {
        let plans = self.plans(sample);
        let dictionaries = self.dictionaries(&plans, sample);
        let mut chosen = self.chosen.lock();
        let same = |(made, plan): &&(Vec<ColumnPlan>, Arc<FilePlan>)| {
            *made == plans && plan.dictionaries == dictionaries
        };
        if let Some((_, plan)) = chosen.iter().find(same) {
            return plan.clone();
        }
        let plan = Arc::new(FilePlan {
            properties: Arc::new(self.planned(&plans)),
            dictionaries,
        });
        if chosen.len() < MOST_CHOICES {
            chosen.push((plans, plan.clone()));
        }
        plan
    }

    /// Which columns are written as dictionaries by our own code.
    fn dictionaries(&self, plans: &[ColumnPlan], sample: &[RecordBatch]) -> Vec<bool> {
        let codec = self.options.compression.codec();
        let rows: usize = sample.iter().map(RecordBatch::num_rows).sum();
        let mut leaf = 0;
        let fields = plans.iter().zip(self.schema.fields()).zip(&self.leaves);
        fields
            .map(|((plan, field), leaves)| {
                let column = self.parquet.column(leaf);
                leaf += leaves;
                // Chosen without knowing the data, a dictionary may come to nothing.
                plan.dictionary
                    && rows >= ENOUGH
                    && !plan.page_statistics
                    && !self.options.bloom_filters.contains(&column.path().string())
                    && dictionary::supported(field.data_type(), &column, codec)
            })
            .collect()
    }

    /// What is chosen for each field; nested ones are left alone.
    fn plans(&self, sample: &[RecordBatch]) -> Vec<ColumnPlan> {
        let fields = self.schema.fields().iter().enumerate();
        fields
            .map(|(index, field)| {
                if field.data_type().is_nested() {
                    return ColumnPlan::DEFAULT;
                }
                let columns: Vec<ArrayRef> =
                    sample.iter().map(|b| b.column(index).clone()).collect();
                let mut plan = plan(&columns);
                if !self.options.text_deltas {
                    plan.encoding = plan.encoding.filter(|encoding| !is_text_delta(*encoding));
                }
                plan
            })
            .collect()
    }

    fn planned(&self, plans: &[ColumnPlan]) -> WriterProperties {
        let version = self.options.schema_version.to_string();
        let mut builder = WriterProperties::builder()
            .set_created_by(concat!("calve version ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(self.options.compression.codec())
            .set_max_row_group_row_count(None)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_key_value_metadata(Some(vec![KeyValue::new(
                "calve.schema_version".to_owned(),
                version,
            )]));
        for (plan, field) in plans.iter().zip(self.schema.fields()) {
            if field.data_type().is_nested() {
                continue;
            }
            let path = ColumnPath::new(vec![field.name().clone()]);
            builder = builder.set_column_dictionary_enabled(path.clone(), plan.dictionary);
            if let Some(encoding) = plan.encoding {
                builder = builder.set_column_encoding(path.clone(), encoding);
            }
            if plan.page_statistics {
                builder = builder.set_column_statistics_enabled(path, EnabledStatistics::Page);
            }
        }
        for leaf in self.parquet.columns() {
            if self.options.bloom_filters.contains(&leaf.path().string()) {
                builder = builder.set_column_bloom_filter_enabled(leaf.path().clone(), true);
            }
        }
        let mut properties = builder.build();
        add_encoded_arrow_schema_to_metadata(&plain(&self.schema), &mut properties);
        properties
    }
}

fn is_text_delta(encoding: Encoding) -> bool {
    matches!(
        encoding,
        Encoding::DELTA_BYTE_ARRAY | Encoding::DELTA_LENGTH_BYTE_ARRAY
    )
}

/// The schema for readers: how batches were encoded in memory is no concern of theirs.
fn plain(schema: &Schema) -> Schema {
    let field = |field: &Arc<Field>| match field.data_type() {
        DataType::Dictionary(_, value) => Arc::new(
            field
                .as_ref()
                .clone()
                .with_data_type(value.as_ref().clone()),
        ),
        _ => field.clone(),
    };
    let fields: Vec<_> = schema.fields().iter().map(field).collect();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}

/// Chooses for a column from slices of its first rows.
pub fn plan(sample: &[ArrayRef]) -> ColumnPlan {
    let mut left = SAMPLE;
    let mut slices: Vec<ArrayRef> = Vec::new();
    for slice in sample {
        let rows = slice.len().min(left);
        slices.push(slice.slice(0, rows));
        left -= rows;
        if left == 0 {
            break;
        }
    }
    let slices: Vec<&dyn Array> = slices.iter().map(AsRef::as_ref).collect();
    let Some(rows) = concat(&slices).ok().filter(|rows| rows.len() >= ENOUGH) else {
        return ColumnPlan::DEFAULT;
    };
    let value_type = match rows.data_type() {
        DataType::Dictionary(_, value) => value.as_ref().clone(),
        other => other.clone(),
    };
    let distinct = Groups::of(std::slice::from_ref(&rows), rows.len())
        .map_or(rows.len(), |groups| groups.firsts.len());
    let distinct = population(distinct as f64, rows.len() as f64);
    let Ok(values) = cast(&rows, &value_type) else {
        return ColumnPlan::DEFAULT;
    };
    match value_type {
        DataType::Boolean | DataType::Null => ColumnPlan {
            dictionary: false,
            ..ColumnPlan::DEFAULT
        },
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => strings(&values, distinct),
        ref other if is_integer(other) => integers(&values, distinct),
        ref other => {
            let width = other.primitive_width().unwrap_or(16) as f64;
            ColumnPlan {
                dictionary: pays(distinct, width),
                ..ColumnPlan::DEFAULT
            }
        }
    }
}

/// Distinct values of the whole when `distinct` are seen in `rows` rows drawn at random: solves
/// `distinct = whole (1 - exp(-rows / whole))`.
fn population(distinct: f64, rows: f64) -> f64 {
    if distinct >= rows * 0.99 {
        return f64::INFINITY;
    }
    let (mut low, mut high) = (distinct, distinct * 1e4);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if middle * (1.0 - (-rows / middle).exp()) < distinct {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

fn pays(distinct: f64, width: f64) -> bool {
    distinct * width <= DICTIONARY_BYTES && distinct * 8.0 <= GROUP_ROWS
}

fn is_integer(data_type: &DataType) -> bool {
    data_type.is_integer() || data_type.is_temporal()
}

fn integers(values: &ArrayRef, distinct: f64) -> ColumnPlan {
    let width = values.data_type().primitive_width().unwrap_or(8);
    let Ok(wide) = cast(values, &DataType::Int64) else {
        return ColumnPlan {
            dictionary: pays(distinct, width as f64),
            ..ColumnPlan::DEFAULT
        };
    };
    let wide: Vec<i64> = wide.as_primitive::<Int64Type>().iter().flatten().collect();
    let steps = wide.len().saturating_sub(1);
    let rising = wide.is_sorted_by_key(|v| *v)
        || wide.windows(2).filter(|w| w[1] >= w[0]).count() * 20 >= steps * 19;
    let rising = rising && steps > 0 && wide.first() < wide.last();
    // Bits per value as DELTA_BINARY_PACKED stores them: the spread of the steps, by 32 values.
    let mut bits = 0;
    for block in wide.windows(2).collect::<Vec<_>>().chunks(32) {
        let step = |w: &&[i64]| w[1].wrapping_sub(w[0]);
        let low = block.iter().map(step).min().unwrap_or(0);
        let high = block.iter().map(step).max().unwrap_or(0);
        let spread = high.wrapping_sub(low) as u64;
        bits += (64 - spread.leading_zeros()) as usize * block.len();
    }
    let packed = bits / steps.max(1);
    // Parquet has 32 and 64-bit integers only.
    let plain = if width > 4 { 64 } else { 32 };
    let delta = packed * 4 <= plain * 3;
    let indices = distinct.max(2.0).log2().ceil() as usize;
    ColumnPlan {
        dictionary: !rising && pays(distinct, width as f64) && (!delta || indices * 2 <= packed),
        encoding: delta.then_some(Encoding::DELTA_BINARY_PACKED),
        page_statistics: rising,
    }
}

fn strings(values: &ArrayRef, distinct: f64) -> ColumnPlan {
    let Ok(text) = cast(values, &DataType::LargeUtf8) else {
        return ColumnPlan::DEFAULT;
    };
    let text: Vec<&[u8]> = text
        .as_string::<i64>()
        .iter()
        .flatten()
        .map(str::as_bytes)
        .collect();
    let bytes: usize = text.iter().map(|t| t.len()).sum();
    let mean = bytes as f64 / text.len().max(1) as f64;
    let shared: usize = text
        .windows(2)
        .map(|w| w[0].iter().zip(w[1]).take_while(|(a, b)| a == b).count())
        .sum();
    let rising = text.len() > 1 && text.is_sorted() && text.first() < text.last();
    let encoding = if shared * 2 >= bytes && bytes > 0 {
        Some(Encoding::DELTA_BYTE_ARRAY)
    } else if mean <= 64.0 {
        Some(Encoding::DELTA_LENGTH_BYTE_ARRAY)
    } else {
        None
    };
    ColumnPlan {
        dictionary: pays(distinct, mean + 4.0),
        encoding,
        page_statistics: rising,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, StringArray};

    use super::*;

    fn random(n: u64) -> u64 {
        let mixed = (n ^ 0x5851_f42d).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20
    }

    fn ints(of: impl Fn(u64) -> i64) -> ColumnPlan {
        plan(&[Arc::new(
            (0..8192).map(|n| Some(of(n))).collect::<Int64Array>(),
        )])
    }

    fn floats(of: impl Fn(u64) -> f64) -> ColumnPlan {
        plan(&[Arc::new(
            (0..8192).map(|n| Some(of(n))).collect::<Float64Array>(),
        )])
    }

    fn texts(of: impl Fn(u64) -> String) -> ColumnPlan {
        plan(&[Arc::new(
            (0..8192).map(|n| Some(of(n))).collect::<StringArray>(),
        )])
    }

    #[test]
    fn the_encoding_follows_the_data() {
        let delta = Some(Encoding::DELTA_BINARY_PACKED);
        let got = |dictionary, encoding, page_statistics| ColumnPlan {
            dictionary,
            encoding,
            page_statistics,
        };
        assert_eq!(
            ints(|n| 1_700_000_000 + n as i64 / 3),
            got(false, delta, true),
            "rising"
        );
        assert_eq!(
            ints(|n| (random(n) % 100_000) as i64),
            got(false, delta, false),
            "narrow"
        );
        assert_eq!(
            ints(|n| (random(n) << 20) as i64),
            got(false, None, false),
            "wide"
        );
        let codes = ints(|n| (random(n) % 20) as i64 * 0x0123_4567_89ab_cdef);
        assert_eq!(codes, got(true, None, false), "few values far apart");
        assert!(
            floats(|n| (random(n) % 1000) as f64 / 7.0).dictionary,
            "few floats"
        );
        assert!(!floats(|n| random(n) as f64).dictionary, "many floats");
        assert!(
            texts(|n| format!("sku-{}", random(n) % 500)).dictionary,
            "few words"
        );
        let ids = texts(|n| format!("{:016x}", random(n)));
        assert_eq!(
            ids,
            got(false, Some(Encoding::DELTA_LENGTH_BYTE_ARRAY), false),
            "ids"
        );
        let paths = texts(|n| format!("/var/log/service/{n:08}"));
        assert_eq!(
            paths,
            got(false, Some(Encoding::DELTA_BYTE_ARRAY), true),
            "sorted paths"
        );
        assert_eq!(plan(&[]), ColumnPlan::DEFAULT, "nothing to go by");
    }
}
