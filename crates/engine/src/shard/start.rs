//! The start of a shard: read everything, decide, claim. The decision is [`calve_model::recovery`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use calve_model::{
    Epoch, Offsets, Watermarks,
    recovery::{self, Decision, Facts, OutputFacts, Refusal},
};

use crate::{
    checkpoint::{Checkpoints, Record, RecordBase},
    error::{Error, ErrorKind, Result},
    fault,
    seams::Output,
    windows::SavedWindows,
};

/// Tries to take a shard over from an owner that is just as fast.
const CLAIMS: u32 = 100;

/// Where a shard begins.
pub(super) struct Started {
    /// The record that took the shard over.
    pub(super) claim: Record,
    /// Prepared and not held: record, its digest, and the outputs that lack it; in epoch order.
    pub(super) commit: Vec<(Arc<Record>, String, Vec<String>)>,
}

/// Takes the shard over. An owner that still runs may create the epoch that we wanted to claim:
/// then everything is read and decided again, until the claim succeeds and fences it.
pub(super) async fn start(
    checkpoints: &Checkpoints,
    outputs: &BTreeMap<String, Arc<dyn Output>>,
    fingerprints: &BTreeMap<String, String>,
    harmless: &BTreeMap<String, String>,
    watermarks: &Watermarks,
) -> Result<Started> {
    let mut tries = 0;
    loop {
        match try_start(checkpoints, outputs, fingerprints, harmless, watermarks).await {
            Err(error) if error.kind() == ErrorKind::Fenced && tries < CLAIMS => tries += 1,
            result => return result,
        }
    }
}

async fn try_start(
    checkpoints: &Checkpoints,
    outputs: &BTreeMap<String, Arc<dyn Output>>,
    fingerprints: &BTreeMap<String, String>,
    harmless: &BTreeMap<String, String>,
    watermarks: &Watermarks,
) -> Result<Started> {
    let loaded = checkpoints.load().await?;
    let mut facts = Facts {
        records: loaded.facts(),
        floor: loaded.floor,
        outputs: BTreeMap::new(),
        fingerprints: fingerprints.clone(),
    };
    if let Some(newest) = loaded.newest() {
        for (name, former) in harmless {
            if newest.fingerprints.get(name) == Some(former) {
                facts.fingerprints.insert(name.clone(), former.clone());
            }
        }
    }
    // After a drain only what offsets mean must stay.
    if loaded.newest().is_some_and(|r| r.drained) {
        facts.fingerprints.retain(|name, _| name == "source");
    }
    // As long as nothing was read, everything may be changed: a typo is mended, and that is all.
    if loaded.newest().is_none_or(|r| r.offsets.0.is_empty()) {
        facts.fingerprints.clear();
        let outputs = facts
            .records
            .iter_mut()
            .flat_map(|r| r.outputs.values_mut());
        outputs.for_each(|output| output.identity = None);
    }
    for (name, output) in outputs {
        let state = output
            .state(checkpoints.pipeline(), checkpoints.shard())
            .await?;
        facts.outputs.insert(
            name.clone(),
            OutputFacts {
                identity: state.identity,
                held: state.held,
            },
        );
    }
    let missing = match recovery::decide(&facts) {
        Decision::Start => Vec::new(),
        Decision::Resume { commit, .. } => commit,
        Decision::Refuse(refusal) => {
            // What was read one after the other fits together only if nobody went on meanwhile.
            let again = checkpoints.load().await?;
            if again.floor != facts.floor || again.facts() != facts.records {
                return Err(Error::fenced(
                    "another process went on while this one looked",
                ));
            }
            return Err(refuse(&refusal));
        }
    };
    fault::point("start.before_claim")?;
    let base = RecordBase {
        fingerprints: fingerprints.clone(),
        identities: facts
            .outputs
            .iter()
            .map(|(name, o)| (name.clone(), o.identity.clone()))
            .collect(),
        offsets: Offsets::default(),
        watermarks: watermarks.clone(),
        previous: BTreeMap::new(),
        floor: loaded.floor,
    };
    let (claim, _) = checkpoints.claim(loaded.newest(), base).await?;
    fault::point("start.after_claim")?;
    tracing::info!(
        epoch = claim.epoch.0,
        resumed = loaded.newest().is_some(),
        "took the pipeline over"
    );

    remove_runs(checkpoints, &claim).await?;

    let mut commit = Vec::new();
    for (record, digest) in loaded.records {
        let lacking: Vec<String> = names(&missing, record.epoch);
        if !lacking.is_empty() {
            commit.push((Arc::new(record), digest, lacking));
        }
    }
    Ok(Started { claim, commit })
}

/// Removes the runs that no record refers to, which a crash left.
async fn remove_runs(checkpoints: &Checkpoints, claim: &Record) -> Result<()> {
    checkpoints.tidy_runs().await?;
    let kept = claim.outputs.values().flat_map(|output| &output.runs);
    let windows = claim.windows.iter().flat_map(SavedWindows::runs);
    let needed: BTreeSet<&str> = windows.chain(kept.map(String::as_str)).collect();
    for name in checkpoints.runs().await? {
        if !needed.contains(name.as_str()) {
            checkpoints.delete_run(&name).await?;
        }
    }
    Ok(())
}

fn names(missing: &[(Epoch, String)], epoch: Epoch) -> Vec<String> {
    missing
        .iter()
        .filter(|(e, _)| *e == epoch)
        .map(|(_, name)| name.clone())
        .collect()
}

fn refuse(refusal: &Refusal) -> Error {
    let error = match refusal {
        Refusal::Changed { .. } | Refusal::OutputNotConfigured { .. } => {
            Error::config(refusal.to_string())
        }
        _ => Error::corrupt(refusal.to_string()),
    };
    error.hint(refusal.way_out())
}
