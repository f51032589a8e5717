//! Deleted rows that stay: their last values are written anew with a flag, at the commit, since only the
//! table has them; the change says the key, and perhaps nothing else. Like positions they are found
//! again at each try; what another try wrote is of no use.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use calve_engine::error::{Error, Result};
use roaring::RoaringTreemap;

use super::{deletes, output::ChangesOutput, resolve::Flags, state::State};
use crate::iceberg::{compact::some_rows, deletes::deleted_rows, edit::AddedFile, handle::Known};

impl ChangesOutput {
    /// Writes rows anew, flagged, and tells the index where they are then. They are in live files, or in
    /// `added` ones.
    pub(super) async fn flag(
        &self,
        state: &mut State,
        known: &Known,
        added: &[AddedFile],
        flags: Flags,
    ) -> Result<Vec<AddedFile>> {
        let new = deletes::by_id(added);
        // In an order of their own: what is written does not depend on a hash.
        let mut files = BTreeMap::new();
        for (id, mut rows) in flags {
            let file = new.get(&id).or_else(|| state.files.get(&id)).cloned();
            let file = file.ok_or_else(|| Error::internal("a row to flag is in no live file"))?;
            if !new.contains_key(&id) {
                // What others have deleted does not come back.
                let deletes = state.live.deletes_of(&file);
                let gone = deleted_rows(self.handle.access.io(), &file, &deletes).await?;
                rows.retain(|row, _| !gone.contains(u64::from(*row)));
            }
            if !rows.is_empty() {
                files.insert(file.path.clone(), (file, rows));
            }
        }
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let (mut wanted, mut orders) = (Vec::new(), Vec::new());
        for (file, rows) in files.into_values() {
            let places = rows.keys().map(|row| u64::from(*row));
            wanted.push((file, places.collect::<RoaringTreemap>()));
            orders.extend(rows.into_values());
        }
        let (codec, mut orders) = (self.reading.codec.clone(), orders.into_iter());
        let flagged = move |rows: &RecordBatch| {
            let of_rows: Vec<_> = orders.by_ref().take(rows.num_rows()).collect();
            codec.flagged(rows, &of_rows)
        };
        let (metadata, pool) = (&known.metadata, self.pool.clone());
        let written = some_rows(&self.handle, metadata, wanted, flagged, &self.rewrite, pool);
        let written = written.await?;
        let paths: Vec<String> = written
            .iter()
            .map(|file| file.file.file_path().to_owned())
            .collect();
        state.brings(&paths);
        self.follow(state, paths).await?;
        Ok(written)
    }
}
