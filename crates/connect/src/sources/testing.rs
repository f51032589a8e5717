//! What the engine does with a source, for tests: read to the end, keep the offsets, start again.

use arrow::{array::RecordBatch, compute::concat_batches, util::pretty::pretty_format_batches};
use bytes::Bytes;
use calve_engine::{Decoder, Payload, RawBatch, Result, Source, SourceEvent};
use calve_model::{OffsetRange, Offsets, SourcePartition};
use prost_reflect::DescriptorPool;

use crate::descriptors::DescriptorConfig;

/// The types of one `.proto` file.
pub(crate) fn pool_of(proto: &str) -> DescriptorPool {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("t.proto"), proto).expect("written");
    let config = DescriptorConfig {
        proto: vec!["t.proto".into()],
        ..DescriptorConfig::default()
    };
    config.load(folder.path()).expect("a right .proto file")
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

/// A batch of text that begins at an offset.
pub(crate) fn raw(text: &str, from: u64) -> RawBatch {
    RawBatch {
        partition: SourcePartition::new("f"),
        range: OffsetRange {
            from,
            to: from + text.len() as u64,
        },
        payload: Payload::Bytes(Bytes::copy_from_slice(text.as_bytes())),
        last: false,
        tag: None,
        arrival: None,
    }
}

/// Accounts for a batch, as the shard does; a gap or an overlap panics.
pub(crate) fn account(offsets: &mut Offsets, raw: &RawBatch) {
    offsets
        .advance(&raw.partition, raw.range)
        .expect("ranges touch");
    let position = offsets
        .0
        .get_mut(raw.partition.as_str())
        .expect("just advanced");
    position.done = raw.last;
    if raw.tag.is_some() {
        position.tag.clone_from(&raw.tag);
    }
    let length = match &raw.payload {
        Payload::Bytes(text) => text.len(),
        Payload::Rows(rows) => rows.num_rows(),
        Payload::Messages(messages) => {
            let (ends, offsets) = (&messages.ends, &messages.offsets);
            assert!(ends.is_sorted() && offsets.is_sorted());
            assert_eq!(offsets.len(), ends.len());
            assert_eq!(messages.ordinals.len(), ends.len());
            let bytes = ends.last().map_or(0, |end| *end as usize);
            assert_eq!(bytes, messages.bytes.len());
            let within = |offset: &u64| (raw.range.from..=raw.range.to).contains(offset);
            assert!(offsets.iter().all(within), "offsets are within the range");
            return;
        }
    };
    assert_eq!(
        raw.range.to - raw.range.from,
        length as u64,
        "the range covers the payload"
    );
}

/// Opens a source and reads until it ends or is idle.
pub(crate) fn read(source: &mut dyn Source, from: &Offsets) -> Result<Vec<RawBatch>> {
    block_on(async {
        source.open(from).await?;
        read_on(source).await
    })
}

/// Reads until the source ends or is idle.
pub(crate) async fn read_on(source: &mut dyn Source) -> Result<Vec<RawBatch>> {
    let mut all = Vec::new();
    loop {
        match source.next().await? {
            SourceEvent::Batch(raw) => all.push(raw),
            SourceEvent::Discovered(_) | SourceEvent::Progress(_) => {}
            SourceEvent::Idle | SourceEvent::End => return Ok(all),
        }
    }
}

pub(crate) fn offsets_after(batches: &[RawBatch]) -> Offsets {
    let mut offsets = Offsets::default();
    for raw in batches {
        account(&mut offsets, raw);
    }
    offsets
}

pub(crate) fn text(batches: &[RawBatch]) -> String {
    let piece = |raw: &RawBatch| match &raw.payload {
        Payload::Bytes(text) => String::from_utf8_lossy(text).into_owned(),
        Payload::Rows(_) | Payload::Messages(_) => panic!("no text"),
    };
    batches.iter().map(piece).collect()
}

/// The decoded rows as a table; every event must decode.
pub(crate) fn table(decoder: &mut dyn Decoder, batches: &[RawBatch]) -> String {
    let decode = |raw: &RawBatch| {
        let decoded = decoder.decode(raw).expect("decode");
        assert_eq!(decoded.rejects, []);
        decoded.rows
    };
    let rows: Vec<RecordBatch> = batches.iter().map(decode).collect();
    let rows = concat_batches(&rows[0].schema(), &rows).expect("one schema");
    pretty_format_batches(&[rows])
        .expect("printable")
        .to_string()
}
