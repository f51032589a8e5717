//! Rows that a source read as Arrow already (Parquet, Arrow IPC), fitted to the declared schema:
//! columns by name, cast where the type differs. A value that cannot be cast rejects its row; so
//! does a missing value in a column that is `not null`. Nothing becomes null in silence.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, RecordBatch,
        RecordBatchOptions, new_null_array,
    },
    compute::{CastOptions, can_cast_types, cast_with_options, filter_record_batch},
    datatypes::{DataType, Field, Float64Type, Schema, SchemaRef},
};
use bytes::Bytes;
use calve_engine::{Decoded, Decoder, Error, Payload, RawBatch, Reject, Result, conform};

use super::evolve::Watch;

/// Fits rows to a schema.
pub struct RowsDecoder {
    schema: SchemaRef,
    watch: Option<Watch>,
    /// The schema of rows that was looked at last, and found to be no more than ours.
    looked_at: Option<SchemaRef>,
}

/// Which rows are bad, and why: the first reason that was found.
type Reasons = Vec<Option<String>>;

impl RowsDecoder {
    /// A decoder to this schema.
    pub fn new(schema: SchemaRef) -> Self {
        Self {
            schema,
            watch: None,
            looked_at: None,
        }
    }

    /// Looks at columns that the schema lacks, and at wider ones.
    pub(super) fn watched(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    fn column(rows: &RecordBatch, field: &Field, bad: &mut Option<Reasons>) -> Result<ArrayRef> {
        let Some(column) = rows.column_by_name(field.name()) else {
            if !field.is_nullable() && rows.num_rows() > 0 {
                mark(
                    bad,
                    rows.num_rows(),
                    |_| true,
                    || format!("a value is missing: column={}", field.name()),
                );
                // The rows are filtered away below; any value of the type stands in for them.
            }
            return Ok(new_null_array(field.data_type(), rows.num_rows()));
        };
        let column = if column.data_type() == field.data_type() {
            Arc::clone(column)
        } else if field.data_type().is_nested() && column.data_type().is_nested() {
            conform::column(column, field.data_type()).map_err(|e| {
                Error::schema(format!(
                    "column {} cannot be read as the pipeline has it: found={}",
                    field.name(),
                    column.data_type()
                ))
                .because(e)
            })?
        } else {
            if !can_cast_types(column.data_type(), field.data_type()) {
                return Err(Error::schema(format!(
                    "column {} cannot be read as declared: found={} declared={}",
                    field.name(),
                    column.data_type(),
                    field.data_type()
                )));
            }
            cast(column, field, bad)?
        };
        if !field.is_nullable() && column.null_count() > 0 {
            mark(
                bad,
                rows.num_rows(),
                |row| column.is_null(row),
                || format!("a value is missing: column={}", field.name()),
            );
        }
        Ok(column)
    }
}

fn cast(column: &ArrayRef, field: &Field, bad: &mut Option<Reasons>) -> Result<ArrayRef> {
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let reason = || {
        let name = super::types::name(field.data_type());
        let name = name.unwrap_or_else(|| field.data_type().to_string());
        format!("a value does not fit: column={} type={name}", field.name())
    };
    if column.data_type().is_floating() && field.data_type().is_integer() {
        // The cast cuts fractions off, and they do not fit.
        let failed = |e| Error::schema(reason()).because(e);
        let lenient = CastOptions::default();
        let cast = cast_with_options(column, field.data_type(), &lenient).map_err(failed)?;
        let floats = cast_with_options(column, &DataType::Float64, &lenient).map_err(failed)?;
        let floats = floats.as_primitive::<Float64Type>();
        let misfits =
            |row| floats.is_valid(row) && (cast.is_null(row) || floats.value(row).fract() != 0.0);
        mark(bad, column.len(), misfits, reason);
        return Ok(cast);
    }
    if let Ok(cast) = cast_with_options(column, field.data_type(), &strict) {
        return Ok(cast);
    }
    let failed = if field.data_type().is_nested() {
        // A failure inside would become an inner null: only a strict cast of each row tells.
        let fails =
            |row| cast_with_options(&column.slice(row, 1), field.data_type(), &strict).is_err();
        (0..column.len()).map(fails).collect::<Vec<_>>()
    } else {
        Vec::new()
    };
    let cast = cast_with_options(column, field.data_type(), &CastOptions::default());
    let cast = cast.map_err(|e| Error::schema(reason()).because(e))?;
    if failed.is_empty() {
        mark(
            bad,
            column.len(),
            |row| cast.is_null(row) && column.is_valid(row),
            reason,
        );
    } else {
        mark(bad, column.len(), |row| failed[row], reason);
    }
    Ok(cast)
}

fn mark(
    bad: &mut Option<Reasons>,
    rows: usize,
    is_bad: impl Fn(usize) -> bool,
    reason: impl Fn() -> String,
) {
    let reasons = bad.get_or_insert_with(|| vec![None; rows]);
    for (row, slot) in reasons.iter_mut().enumerate() {
        if slot.is_none() && is_bad(row) {
            *slot = Some(reason());
        }
    }
}

/// A row as a line of JSON; empty when JSON cannot hold it.
fn as_json(rows: &RecordBatch, row: usize) -> Bytes {
    let mut text = Vec::new();
    let mut writer = arrow_json::LineDelimitedWriter::new(&mut text);
    if writer
        .write(&rows.slice(row, 1))
        .and_then(|()| writer.finish())
        .is_err()
    {
        return Bytes::new();
    }
    while text.last() == Some(&b'\n') {
        text.pop();
    }
    text.into()
}

/// Offsets of the rows that were kept, in order.
fn offsets_of_rows(raw: &RawBatch, rejects: &[Reject]) -> impl Iterator<Item = u64> {
    let count = match &raw.payload {
        Payload::Rows(rows) => rows.num_rows() as u64,
        Payload::Bytes(_) | Payload::Messages(_) => 0,
    };
    let mut rejected = rejects.iter().map(|reject| reject.offset).peekable();
    let all = raw.range.from..raw.range.from + count;
    all.filter(move |offset| rejected.next_if_eq(offset).is_none())
}

impl Decoder for RowsDecoder {
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
        let rows = match &raw.payload {
            Payload::Rows(rows) => rows,
            // A file that ended without ever being read.
            Payload::Bytes(text) if text.is_empty() => {
                return Ok(Decoded {
                    rows: RecordBatch::new_empty(Arc::clone(&self.schema)),
                    rejects: Vec::new(),
                });
            }
            Payload::Bytes(_) | Payload::Messages(_) => {
                return Err(Error::internal("decoder of rows was given no rows"));
            }
        };
        if rows.schema().fields() == self.schema.fields() {
            return Ok(Decoded {
                rows: rows.clone(),
                rejects: Vec::new(),
            });
        }
        let mut bad = None;
        let fields = self.schema.fields().iter();
        let columns: Vec<ArrayRef> = fields
            .map(|f| Self::column(rows, f, &mut bad))
            .collect::<Result<_>>()?;
        // Nullable until the bad rows are gone.
        let open: Vec<Field> = self
            .schema
            .fields()
            .iter()
            .map(|f| f.as_ref().clone().with_nullable(true))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let internal = |e| Error::internal("rows do not fit the schema").because(e);
        let mut fitted =
            RecordBatch::try_new_with_options(Arc::new(Schema::new(open)), columns, &options)
                .map_err(internal)?;
        let mut rejects = Vec::new();
        if let Some(bad) = bad {
            let mut keep = BooleanBufferBuilder::new(bad.len());
            for (row, reason) in bad.into_iter().enumerate() {
                keep.append(reason.is_none());
                if let Some(error) = reason {
                    let offset = raw.range.from + row as u64;
                    rejects.push(Reject {
                        offset,
                        raw: as_json(rows, row),
                        error,
                    });
                }
            }
            let keep = BooleanArray::new(keep.finish(), None);
            fitted = filter_record_batch(&fitted, &keep).map_err(internal)?;
        }
        let options = RecordBatchOptions::new().with_row_count(Some(fitted.num_rows()));
        let rows = RecordBatch::try_new_with_options(
            Arc::clone(&self.schema),
            fitted.columns().to_vec(),
            &options,
        )
        .map_err(internal)?;
        Ok(Decoded { rows, rejects })
    }

    fn locate(&self, raw: &RawBatch, decoded: &Decoded, row: usize) -> Reject {
        let found = offsets_of_rows(raw, &decoded.rejects).nth(row);
        let offset = found.unwrap_or(raw.range.to);
        let at = (offset - raw.range.from) as usize;
        let text = match &raw.payload {
            Payload::Rows(rows) if at < rows.num_rows() => as_json(rows, at),
            _ => Bytes::new(),
        };
        Reject {
            offset,
            raw: text,
            error: String::new(),
        }
    }

    fn offsets(&self, raw: &RawBatch, decoded: &Decoded) -> Vec<u64> {
        offsets_of_rows(raw, &decoded.rejects).collect()
    }

    fn evolved(&mut self, raw: &RawBatch) -> Result<Option<SchemaRef>> {
        let (Some(watch), Payload::Rows(rows)) = (&self.watch, &raw.payload) else {
            return Ok(None);
        };
        let seen = rows.schema_ref();
        if seen.fields() == self.schema.fields()
            || self
                .looked_at
                .as_ref()
                .is_some_and(|known| Arc::ptr_eq(known, seen))
        {
            return Ok(None);
        }
        watch.note();
        let evolved = watch.evolved(raw)?;
        if evolved.is_none() {
            self.looked_at = Some(Arc::clone(seen));
        }
        Ok(evolved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int64Array, StringArray};
    use arrow::datatypes::Int32Type;
    use calve_model::{OffsetRange, SourcePartition};

    fn raw(rows: RecordBatch) -> RawBatch {
        let range = OffsetRange {
            from: 100,
            to: 100 + rows.num_rows() as u64,
        };
        RawBatch {
            partition: SourcePartition::new("f"),
            range,
            payload: Payload::Rows(rows),
            last: false,
            tag: None,
            arrival: None,
        }
    }

    #[test]
    fn what_does_not_fit_is_rejected_and_the_rest_kept_in_order() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![
            Some(1),
            Some(1 << 40),
            None,
            Some(4),
            Some(5),
        ]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec![
            Some("1"),
            Some("2"),
            Some("3"),
            Some("x"),
            None,
        ]));
        let rows = RecordBatch::try_from_iter([("n", numbers), ("t", texts)]).expect("rows");
        let schema = Schema::new(vec![
            Field::new("t", DataType::Int32, true),
            Field::new("n", DataType::Int32, false),
            Field::new("missing", DataType::Utf8, true),
        ]);
        let mut decoder = RowsDecoder::new(Arc::new(schema));
        let raw = raw(rows);
        let decoded = decoder.decode(&raw).expect("decode");
        let n: Vec<i32> = decoded
            .rows
            .column(1)
            .as_primitive::<Int32Type>()
            .values()
            .to_vec();
        assert_eq!(n, [1, 5]);
        assert_eq!(decoded.rows.column(2).null_count(), 2);
        let rejects: Vec<_> = decoded
            .rejects
            .iter()
            .map(|r| (r.offset, r.error.as_str()))
            .collect();
        assert_eq!(
            rejects,
            [
                (101, "a value does not fit: column=n type=int"),
                (102, "a value is missing: column=n"),
                (103, "a value does not fit: column=t type=int"),
            ]
        );
        assert_eq!(decoded.rejects[0].raw, r#"{"n":1099511627776,"t":"2"}"#);
        let found = decoder.locate(&raw, &decoded, 1);
        assert_eq!(
            (found.offset, found.raw),
            (104, Bytes::from_static(br#"{"n":5}"#))
        );
    }

    #[test]
    fn a_fraction_does_not_fit_an_integer() {
        let floats = vec![
            Some(1.0),
            Some(1.5),
            None,
            Some(f64::NAN),
            Some(1e300),
            Some(-0.0),
        ];
        let floats: ArrayRef = Arc::new(Float64Array::from(floats));
        let rows = RecordBatch::try_from_iter([("n", floats)]).expect("rows");
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let decoded = RowsDecoder::new(schema).decode(&raw(rows)).expect("decode");
        let expected: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(0)]));
        assert_eq!(decoded.rows.column(0), &expected);
        let offsets: Vec<u64> = decoded.rejects.iter().map(|r| r.offset).collect();
        assert_eq!(offsets, [101, 103, 104]);
    }

    #[test]
    fn equal_rows_pass_and_impossible_types_stop() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let rows = RecordBatch::try_from_iter([("n", numbers)]).expect("rows");
        let mut same = RowsDecoder::new(rows.schema());
        assert_eq!(same.decode(&raw(rows.clone())).expect("decode").rows, rows);
        let other = super::super::types::parse("n", "struct<a: int>").expect("type");
        let mut decoder = RowsDecoder::new(Arc::new(Schema::new(vec![other])));
        assert!(decoder.decode(&raw(rows)).is_err());
    }

    #[test]
    fn a_required_column_that_the_file_lacks_rejects_every_row() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let rows = RecordBatch::try_from_iter([("n", numbers)]).expect("rows");
        let schema = Arc::new(Schema::new(vec![Field::new("m", DataType::Utf8, false)]));
        let decoded = RowsDecoder::new(schema).decode(&raw(rows)).expect("decode");
        assert_eq!((decoded.rows.num_rows(), decoded.rejects.len()), (0, 2));
    }
}
