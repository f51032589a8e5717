//! `calve checkpoint reset`: the outputs forget the pipeline first, then the records go, then a new
//! starting point is made above every epoch that was ever used, so that a process that slept through
//! all this cannot go on. Cut short, the next start refuses, and a second reset finishes.

use calve_engine::{Error, Result, checkpoint::RecordOutput};
use calve_model::{Epoch, Offsets, Watermarks};

use super::{
    Target,
    outputs::{Now, forget_all, set_rejects_aside},
    starting_point,
};
use crate::{config::SinkConfig, out};

pub(super) async fn run(target: &Target, yes: bool) -> Result<()> {
    let name = &target.file.name;
    let now = Now::of(&target.file).await?;
    let newest = target.newest().await?;
    out::note(format!(
        "reset pipeline={name}: newest_epoch={newest} store={}",
        target.store.location()
    ));
    out::note(
        "the next run reads the source again from its beginning. What the table holds stays, so these \
         events come a second time unless the table is emptied first",
    );
    if let SinkConfig::Parquet(sink) = &target.file.sink {
        out::note(format!(
            "files that were published stay in the folder: path={}",
            sink.path
        ));
    }
    if !yes {
        return Err(Error::config("nothing was changed yet")
            .hint("stop the pipeline, then add `--yes` to do it"));
    }

    for done in forget_all(&target.file).await? {
        out::note(done);
    }
    if let Some(to) = set_rejects_aside(&target.file, Epoch::NONE, "reset").await? {
        out::note(format!("moved earlier rejects aside: to={to}"));
    }
    let records = target.checkpoints.reset().await?;
    let left = target.checkpoints.load().await?;
    if !left.records.is_empty() {
        return Err(Error::fenced(format!(
            "a process is running this pipeline: pipeline={name}"
        ))
        .hint("stop it, then reset again"));
    }
    let used = left.floor.max(now.highest()).max(newest);
    if used > Epoch::NONE {
        // Each says that the output must hold nothing: were it not so, the next start refuses.
        let outputs = now.facts().into_keys();
        let outputs = outputs
            .map(|name| (name, RecordOutput::default()))
            .collect();
        let marks = Watermarks::new(target.max_delay());
        let record = starting_point(name, used.next(), Offsets::default(), marks, outputs);
        target.checkpoints.create(&record).await?;
    }
    out::line(format!(
        "reset pipeline={name} records_deleted={records} next_epoch={}",
        used.next().next()
    ));
    Ok(())
}
