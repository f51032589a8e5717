//! Manifests of which nothing is live.

use calve_engine::error::Result;
use iceberg::spec::{ManifestContentType, ManifestFile, Operation};

use super::super::{
    edit::Edit,
    handle::{TableHandle, Tries},
};

/// Where no row is deleted any more, a snapshot without the manifests that only say which deletes are gone:
/// where DuckDB finds a manifest of deletes, it counts by reading rows. Answers the snapshot; none: there was
/// nothing to do.
///
/// # Errors
/// `Conflict` when others commit all the time, and whatever reading and committing fail with.
pub(crate) async fn without_dead_manifests(handle: &TableHandle) -> Result<Option<String>> {
    let mut tries = Tries::new(handle);
    loop {
        let known = tries.load().await?;
        let manifests = handle.manifests(&known).await?;
        if !only_dead_deletes(&manifests) {
            return Ok(None);
        }
        let mut edit = Edit::new(Operation::Replace);
        edit.always_snapshot = true;
        edit.summary
            .insert("calve.upkeep".to_owned(), "manifests".to_owned());
        if let Some(snapshot) = tries.commit(&known, edit).await? {
            return Ok(Some(snapshot));
        }
    }
}

/// Whether there are manifests of deletes, and nothing in them is live.
fn only_dead_deletes(manifests: &[ManifestFile]) -> bool {
    let deletes = |of: &&ManifestFile| of.content == ManifestContentType::Deletes;
    let live = |of: &ManifestFile| of.has_added_files() || of.has_existing_files();
    let mut of_deletes = manifests.iter().filter(deletes).peekable();
    of_deletes.peek().is_some() && !of_deletes.any(live)
}
