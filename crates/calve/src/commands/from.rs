//! `calve run --from`: where a pipeline starts that has read nothing yet. The start is written down as
//! a first checkpoint record, so that everything after it is as in any other run.

use calve_engine::{
    Error, Result, Source, SourceEvent,
    checkpoint::{Checkpoints, RecordOutput},
};
use calve_lake::checkpoints::open_store;
use calve_model::{Epoch, Offsets, Position, SourcePartition, Watermarks};

use super::checkpoint::{outputs::Now, starting_point};
use crate::{
    config::PipelineFile,
    out,
    pipeline::{SHARD, context, stores},
};

/// Where to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// At the beginning of every source partition.
    Earliest,
    /// Behind what is there now.
    Latest,
    /// At these offsets; source partitions that are not named, at their beginning.
    Offsets(Offsets),
}

impl Start {
    /// Takes the values of `--from`.
    pub(super) fn parse(values: &[String]) -> Result<Self> {
        match values {
            [one] if one == "earliest" => return Ok(Self::Earliest),
            [one] if one == "latest" => return Ok(Self::Latest),
            _ => {}
        }
        let mut offsets = Offsets::default();
        for value in values {
            let bad = || {
                Error::config(format!("not a place to start from: from={value}")).hint(
                    "write `--from earliest`, `--from latest`, or `--from 'PARTITION=OFFSET'` once for each \
                     source partition; `calve checkpoint show FILE` names those of a pipeline that ran",
                )
            };
            let (partition, offset) = value.rsplit_once('=').ok_or_else(bad)?;
            let offset = offset.trim().parse().map_err(|_| bad())?;
            let partition = SourcePartition::new(partition.trim());
            let position = Position {
                offset,
                ..Position::default()
            };
            if partition.as_str().is_empty() {
                return Err(bad());
            }
            if offsets.0.insert(partition, position).is_some() {
                return Err(Error::config(format!(
                    "a source partition is named twice: from={value}"
                )));
            }
        }
        Ok(Self::Offsets(offsets))
    }
}

/// Writes down where the pipeline starts.
///
/// # Errors
/// `Config` when it has read something already, or the source has no such place.
pub(super) async fn set(file: &PipelineFile, from: &Start) -> Result<()> {
    let store = open_store(&file.checkpoint_location(), &stores(file)).await?;
    let checkpoints = Checkpoints::new(store, &file.name, SHARD);
    let loaded = checkpoints.load().await?;
    let now = Now::of(file).await?;
    let read = loaded
        .newest()
        .filter(|record| !record.offsets.0.is_empty());
    if let Some(record) = read {
        return Err(Error::config(format!(
            "the pipeline has checkpoints and goes on from them: pipeline={} epoch={}",
            file.name, record.epoch
        ))
        .hint(
            "leave `--from` out to go on; to start over elsewhere, `calve checkpoint reset FILE --yes` first",
        ));
    }
    if now.highest() > Epoch::NONE {
        return Err(Error::config(format!(
            "the outputs hold epochs of this pipeline, so it has been started before: pipeline={} epoch={}",
            file.name,
            now.highest()
        ))
        .hint(
            "put its checkpoints back, or `calve checkpoint rebuild FILE`; to start over elsewhere, \
             `calve checkpoint reset FILE --yes` first",
        ));
    }
    let context = context(file);
    let mut format = file.format.clone();
    file.source.describe(&mut format, &context).await?;
    let mut source = file.source.build(&format, &context)?;
    let offsets = match from {
        Start::Earliest => Offsets::default(),
        Start::Latest => source.latest().await.map_err(|e| e.context("--from"))?,
        Start::Offsets(offsets) => {
            probe(source, offsets)
                .await
                .map_err(|e| e.context("--from"))?;
            offsets.clone()
        }
    };
    if offsets.0.is_empty() {
        return Ok(());
    }
    let newest = loaded.newest().map_or(Epoch::NONE, |record| record.epoch);
    let epoch = newest.max(loaded.floor).next();
    let max_delay = file.event_time.as_ref();
    let max_delay = max_delay.map_or(0, |e| e.max_delay.0.as_micros() as i64);
    // Each says that the output must hold nothing: were it not so, the start refuses.
    let outputs = now.facts().into_keys();
    let outputs = outputs.map(|name| (name, RecordOutput::default()));
    let record = starting_point(
        &file.name,
        epoch,
        offsets,
        Watermarks::new(max_delay),
        outputs.collect(),
    );
    checkpoints.create(&record).await?;
    checkpoints.retire(record.epoch).await?;
    out::note(format!(
        "starts from given offsets: source_partitions={}",
        record.offsets.0.len()
    ));
    Ok(())
}

/// Reads a little from the offsets: what does not fit the source must stop the start before it is
/// written down.
async fn probe(mut source: Box<dyn Source>, offsets: &Offsets) -> Result<()> {
    source.open(offsets).await?;
    while let SourceEvent::Discovered(_) = source.next().await? {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Result<Start> {
        let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        Start::parse(&values)
    }

    #[test]
    fn a_start_is_a_word_or_offsets() {
        assert_eq!(parse(&["latest"]).expect("a word"), Start::Latest);
        assert_eq!(parse(&["earliest"]).expect("a word"), Start::Earliest);
        let Start::Offsets(offsets) = parse(&["a=b.ndjson=17", "c= 3"]).expect("offsets") else {
            panic!("offsets");
        };
        let found: Vec<_> = offsets
            .0
            .iter()
            .map(|(p, at)| (p.as_str(), at.offset))
            .collect();
        assert_eq!(found, [("a=b.ndjson", 17), ("c", 3)], "the last = counts");
        for wrong in [
            &["newest"][..],
            &["a=-1"],
            &["a="],
            &["=3"],
            &["latest", "a=1"],
            &["a=1", "a=2"],
        ] {
            let error = parse(wrong).expect_err("no start");
            assert_eq!(error.kind(), calve_engine::ErrorKind::Config, "{wrong:?}");
        }
    }
}
