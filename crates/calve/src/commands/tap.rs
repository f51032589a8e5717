//! `calve tap`: prints decoded and transformed rows as NDJSON, and writes nothing.
//!
//! It reads from the beginning, whatever was committed. Windows and aggregates are left out. Rows come in the order of the source; an
//! event that would be rejected is noted on standard error with its source partition and offset.

use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow_json::{WriterBuilder, writer::LineDelimited};
use calve_engine::{
    Decoded, Decoder, Error, ErrorKind, RawBatch, Reject, Result, SourceEvent, Transform,
};
use calve_model::Offsets;

use crate::{config, human, out, pipeline::Front};

/// Rejects that are noted one by one; the rest are counted.
const MAX_NOTED: u64 = 20;

/// Arguments of `calve tap`.
#[derive(clap::Args)]
pub(crate) struct TapArgs {
    /// The pipeline file
    file: PathBuf,
    /// Stop after this many rows
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// Prints the rows of the pipeline until its source ends or the limit is reached.
///
/// # Errors
/// What loading, reading and decoding say.
pub(crate) async fn run(args: TapArgs) -> Result<()> {
    let file = config::load(&args.file)?;
    if file.source.acknowledges() {
        return Err(Error::config(format!(
            "tap cannot look at events that are acknowledged: they would not be written: source={}",
            file.source.name()
        ))
        .hint("send them to a file, and tap that: `source: { file: { path: … } }`"));
    }
    let front = Front::open(&file).await?;
    // Decoding and SQL are work, not waiting; and a source may block for as long as one read takes.
    let done = tokio::task::spawn_blocking(move || tap(front, args.limit.unwrap_or(u64::MAX)));
    done.await
        .map_err(|error| Error::internal("tap ended early").because(error))?
}

fn tap(front: Front, limit: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start a runtime", error))?;
    let mut source = front.source;
    let mut batcher = Batcher {
        decoder: front.factory.decoder()?,
        transform: front.factory.transform()?,
    };
    let mut left = limit;
    let mut rejects = Rejects::default();
    runtime.block_on(source.open(&Offsets::default()))?;
    while left > 0 {
        let raw = match runtime.block_on(source.next())? {
            SourceEvent::Batch(raw) => raw,
            SourceEvent::Discovered(_) | SourceEvent::Idle | SourceEvent::Progress(_) => continue,
            SourceEvent::End => break,
        };
        for rows in batcher.rows(&raw, &mut rejects)? {
            let rows = rows.slice(0, rows.num_rows().min(left as usize));
            left -= rows.num_rows() as u64;
            if rows.num_rows() > 0 {
                out::line(ndjson(&rows)?.trim_end_matches('\n'));
            }
        }
    }
    rejects.end();
    Ok(())
}

struct Batcher {
    decoder: Box<dyn Decoder>,
    transform: Box<dyn Transform>,
}

impl Batcher {
    /// The rows of a raw batch, in order, in one batch or several.
    fn rows(&mut self, raw: &RawBatch, rejects: &mut Rejects) -> Result<Vec<RecordBatch>> {
        let decoded = self.decoder.decode(raw)?;
        for reject in &decoded.rejects {
            rejects.note(raw, reject);
        }
        let mut done = Vec::with_capacity(1);
        let rows = (0, decoded.rows.num_rows());
        self.transformed(raw, &decoded, rows, &mut done, rejects)?;
        Ok(done)
    }

    /// Transforms the rows `[from, to)`; halves them until the row that is to blame is alone.
    fn transformed(
        &mut self,
        raw: &RawBatch,
        decoded: &Decoded,
        (from, to): (usize, usize),
        done: &mut Vec<RecordBatch>,
        rejects: &mut Rejects,
    ) -> Result<()> {
        if from == to {
            return Ok(());
        }
        match self.transform.apply(decoded.rows.slice(from, to - from)) {
            Ok(rows) => done.push(rows),
            Err(error) if error.kind() != ErrorKind::Data => return Err(error),
            Err(error) if to - from == 1 => {
                let reject = self.decoder.locate(raw, decoded, from);
                rejects.note(
                    raw,
                    &Reject {
                        error: error.to_string(),
                        ..reject
                    },
                );
            }
            Err(_) => {
                let middle = from + (to - from) / 2;
                self.transformed(raw, decoded, (from, middle), done, rejects)?;
                self.transformed(raw, decoded, (middle, to), done, rejects)?;
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Rejects(u64);

impl Rejects {
    fn note(&mut self, raw: &RawBatch, reject: &Reject) {
        self.0 += 1;
        if self.0 <= MAX_NOTED {
            out::note(format!(
                "rejected: {} (source_partition={} offset={})",
                reject.error, raw.partition, reject.offset
            ));
        }
    }

    fn end(&self) {
        if self.0 > MAX_NOTED {
            let more = human::exact(self.0 - MAX_NOTED);
            out::note(format!("rejected: {more} more"));
        }
    }
}

/// A line for each row, with every column; a null is written as such.
fn ndjson(rows: &RecordBatch) -> Result<String> {
    let fail = |error: arrow::error::ArrowError| {
        Error::schema("rows cannot be shown as JSON").because(error)
    };
    let mut writer = WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, LineDelimited>(Vec::new());
    writer.write(rows).map_err(fail)?;
    writer.finish().map_err(fail)?;
    String::from_utf8(writer.into_inner())
        .map_err(|error| Error::internal("rows became JSON that is not UTF-8").because(error))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Array, AsArray, Int64Array, StringArray},
        datatypes::{DataType, Field, Int64Type, Schema},
    };
    use calve_engine::Payload;
    use calve_model::{OffsetRange, SourcePartition};

    use super::*;

    fn table(values: &[Option<i64>]) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let column = Arc::new(Int64Array::from(values.to_vec()));
        RecordBatch::try_new(schema, vec![column]).expect("a batch")
    }

    /// Each byte is an event: a digit is a row, anything else a reject.
    struct Digits;

    fn text(raw: &RawBatch) -> &[u8] {
        match &raw.payload {
            Payload::Bytes(bytes) => bytes,
            Payload::Rows(_) | Payload::Messages(_) => unreachable!("text"),
        }
    }

    fn reject(raw: &RawBatch, at: usize) -> Reject {
        Reject {
            offset: raw.range.from + at as u64,
            raw: text(raw)[at..=at].to_vec().into(),
            error: "no digit".to_owned(),
        }
    }

    impl Decoder for Digits {
        fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
            let digits = |b: &u8| b.is_ascii_digit().then(|| Some(i64::from(b - b'0')));
            let values: Vec<_> = text(raw).iter().filter_map(digits).collect();
            let bytes = text(raw).iter().enumerate();
            let bad = bytes.filter(|(_, b)| !b.is_ascii_digit());
            Ok(Decoded {
                rows: table(&values),
                rejects: bad.map(|(at, _)| reject(raw, at)).collect(),
            })
        }

        fn locate(&self, raw: &RawBatch, _: &Decoded, row: usize) -> Reject {
            let mut bytes = text(raw).iter().enumerate();
            let found = bytes.by_ref().filter(|(_, b)| b.is_ascii_digit()).nth(row);
            reject(raw, found.expect("a row").0)
        }
    }

    /// Refuses 7 as data, and 9 as something that stops.
    struct Fussy;

    impl Transform for Fussy {
        fn apply(&mut self, rows: RecordBatch) -> Result<RecordBatch> {
            let values = rows.column(0).as_primitive::<Int64Type>().values();
            if values.contains(&9) {
                return Err(Error::schema("nine"));
            }
            if values.contains(&7) {
                return Err(Error::data("seven"));
            }
            Ok(rows)
        }
    }

    fn rows_of(input: &'static str) -> Result<(Vec<i64>, u64)> {
        let mut batcher = Batcher {
            decoder: Box::new(Digits),
            transform: Box::new(Fussy),
        };
        let raw = RawBatch {
            partition: SourcePartition::new("a"),
            range: OffsetRange {
                from: 0,
                to: input.len() as u64,
            },
            payload: Payload::Bytes(input.as_bytes().into()),
            last: true,
            tag: None,
            arrival: None,
        };
        let mut rejects = Rejects::default();
        let batches = batcher.rows(&raw, &mut rejects)?;
        let values = batches
            .iter()
            .flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec());
        Ok((values.collect(), rejects.0))
    }

    #[test]
    fn one_bad_row_takes_no_other_with_it() {
        assert_eq!(rows_of("").expect("fine"), (vec![], 0));
        assert_eq!(rows_of("7").expect("fine"), (vec![], 1));
        assert_eq!(
            rows_of("12x3745y67").expect("fine"),
            (vec![1, 2, 3, 4, 5, 6], 4)
        );
        let error = rows_of("1793").expect_err("what is no fault of a row stops");
        assert_eq!(error.kind(), ErrorKind::Schema);
    }

    #[test]
    fn rows_are_lines_with_every_column() {
        let names = StringArray::from(vec![Some("a\n\"b\""), None]);
        let batch = table(&[Some(1), None]);
        let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(
            "name",
            names.data_type().clone(),
            true,
        )));
        let columns = vec![batch.column(0).clone(), Arc::new(names)];
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch");
        assert_eq!(
            ndjson(&batch).expect("shown"),
            "{\"n\":1,\"name\":\"a\\n\\\"b\\\"\"}\n{\"n\":null,\"name\":null}\n"
        );
    }
}
