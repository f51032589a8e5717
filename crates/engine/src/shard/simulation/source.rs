//! The source, the decoder and the transform of the simulation.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};
use async_trait::async_trait;
use calve_model::{OffsetRange, Offsets, SourcePartition};
use rand::Rng;

use super::{
    plan::WIDTH,
    process::Process,
    world::{name, number},
};
use crate::{
    batch::{Decoded, Payload, RawBatch, Reject},
    error::{Error, Result},
    seams::{BatcherFactory, Decoder, Source, SourceEvent, Transform},
};

pub(super) struct SimSource {
    process: Arc<Process>,
    /// The next event of each source partition; none: it has ended.
    at: Vec<Option<u64>>,
    discovered: bool,
    acknowledged: Offsets,
}

impl SimSource {
    pub(super) fn new(process: &Arc<Process>) -> Self {
        Self {
            process: Arc::clone(process),
            at: Vec::new(),
            discovered: false,
            acknowledged: Offsets::default(),
        }
    }
}

#[async_trait]
impl Source for SimSource {
    async fn open(&mut self, from: &Offsets) -> Result<()> {
        self.process.before("source.open").await?;
        self.at = (0..self.process.world.plan.partitions.len())
            .map(|partition| match from.0.get(name(partition).as_str()) {
                Some(position) if position.done => None,
                Some(position) => Some(position.offset / WIDTH),
                None => Some(0),
            })
            .collect();
        self.acknowledged = from.clone();
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        if self.process.draw(self.process.world.plan.source_fails) {
            return Err(Error::unavailable("injected: the source failed"));
        }
        self.process.quick("source.next").await?;
        // No await below: a call that is dropped has lost nothing.
        let world = &self.process.world;
        let plan = &world.plan;
        if !self.discovered {
            self.discovered = true;
            let unread = (0..self.at.len()).filter(|p| self.at[*p] == Some(0));
            return Ok(SourceEvent::Discovered(
                unread.map(|p| SourcePartition::new(name(p))).collect(),
            ));
        }
        let open: Vec<usize> = (0..self.at.len())
            .filter(|p| self.at[*p].is_some())
            .collect();
        if open.is_empty() {
            return Ok(SourceEvent::End);
        }
        let mut state = world.state();
        if state.random.random_bool(0.05) {
            return Ok(SourceEvent::Idle);
        }
        let partition = open[state.random.random_range(0..open.len())];
        let from = self.at[partition].expect("it is open");
        let end = plan.partitions[partition];
        let to = (from + state.random.random_range(1..=plan.batch_events)).min(end);
        self.at[partition] = (to < end).then_some(to);
        let read = state.read.entry(partition).or_default();
        *read = to.max(*read);
        state.batches_read += 1;
        Ok(SourceEvent::Batch(RawBatch {
            partition: SourcePartition::new(name(partition)),
            range: OffsetRange {
                from: from * WIDTH,
                to: to * WIDTH,
            },
            payload: Payload::Bytes(plan.lines(partition, from, to)),
            last: to == end,
            tag: None,
            arrival: None,
        }))
    }

    async fn committed(&mut self, upto: &Offsets) -> Result<()> {
        self.process.before("source.committed").await?;
        self.process.world.acknowledged(upto);
        for (partition, position) in &self.acknowledged.0 {
            if upto.position(partition.as_str()) < position.offset {
                let what = format!("an acknowledgement went back: {partition}");
                self.process.world.breach(what);
            }
        }
        self.acknowledged = upto.clone();
        Ok(())
    }
}

pub(super) struct SimFactory;

impl BatcherFactory for SimFactory {
    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(SimDecoder))
    }

    fn transform(&self) -> Result<Box<dyn Transform>> {
        Ok(Box::new(SimTransform))
    }

    fn schema(&self) -> SchemaRef {
        schema()
    }
}

/// Source partition, event, event time in ms, whether it does not fit.
pub(super) fn schema() -> SchemaRef {
    let columns = ["partition", "event", "at", "misfit"];
    let fields = columns.map(|name| Field::new(name, DataType::Int64, false));
    Arc::new(Schema::new(fields.to_vec()))
}

pub(super) fn column(rows: &RecordBatch, column: usize) -> &[i64] {
    rows.column(column).as_primitive::<Int64Type>().values()
}

struct SimDecoder;

impl Decoder for SimDecoder {
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
        let Payload::Bytes(bytes) = &raw.payload else {
            return Err(Error::internal("the simulation reads bytes"));
        };
        let mut columns = [const { Vec::new() }; 4];
        let mut rejects = Vec::new();
        for (n, line) in bytes.chunks(WIDTH as usize).enumerate() {
            let text = std::str::from_utf8(line).expect("our own text").trim_end();
            let parts: Vec<&str> = text.split(' ').collect();
            if parts[2] == "?" {
                rejects.push(Reject {
                    offset: raw.range.from + n as u64 * WIDTH,
                    raw: bytes.slice_ref(text.as_bytes()),
                    error: "malformed".into(),
                });
                continue;
            }
            for (column, part) in [(0, parts[0]), (1, parts[1]), (2, parts[3])] {
                columns[column].push(part.parse::<i64>().expect("our own number"));
            }
            columns[3].push(i64::from(parts[2] == "m"));
        }
        let columns = columns.map(|values| Arc::new(Int64Array::from(values)) as ArrayRef);
        let rows = RecordBatch::try_new(schema(), columns.to_vec())
            .map_err(|e| Error::internal("the simulation's own batch").because(e))?;
        Ok(Decoded { rows, rejects })
    }

    fn locate(&self, raw: &RawBatch, decoded: &Decoded, row: usize) -> Reject {
        let event = column(&decoded.rows, 1)[row];
        debug_assert_eq!(
            column(&decoded.rows, 0)[row] as usize,
            number(raw.partition.as_str())
        );
        Reject {
            offset: event as u64 * WIDTH,
            raw: format!("{event}").into(),
            error: String::new(),
        }
    }
}

struct SimTransform;

impl Transform for SimTransform {
    fn apply(&mut self, rows: RecordBatch) -> Result<RecordBatch> {
        if column(&rows, 3).contains(&1) {
            return Err(Error::data("does not fit"));
        }
        Ok(rows)
    }
}
