//! Deletes by value: the keys of deleted rows, in one file for each table partition that loses rows. They
//! are about the rows that were there before the commit, so those that come with it stay.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{array::RecordBatch, datatypes::Schema};
use calve_engine::error::{Error, Result};
use uuid::Uuid;

use super::{
    deletes::{Marked, about},
    resolve::Keys,
    state::{Reading, State},
};
use crate::iceberg::{
    deletes::equality,
    live::{LiveFile, widest},
};

/// Keys of the same table partition, and one of the data files that have their rows.
struct Group<'a> {
    like: &'a Arc<LiveFile>,
    keys: Vec<&'a [u8]>,
}

/// The delete files for keys whose rows are in live files; `folder` is where they go.
///
/// # Errors
/// `Internal` when a file cannot be encoded.
pub(super) fn mark(state: &State, reading: &Reading, keys: &Keys, folder: &str) -> Result<Marked> {
    // In an order of their own: what is written does not depend on a hash.
    let mut groups: BTreeMap<String, Group<'_>> = BTreeMap::new();
    for (id, keys) in keys {
        let like = state.files.get(id);
        let like = like.ok_or_else(|| Error::internal("a row to delete is in no live file"))?;
        let name = format!("{} {:?}", like.spec, widest(&like.partition));
        let group = groups.entry(name).or_insert_with(|| Group {
            like,
            keys: Vec::new(),
        });
        group.keys.extend(keys.iter().map(AsRef::as_ref));
    }
    let mut marked = Marked::default();
    for Group { like, mut keys } in groups.into_values() {
        keys.sort_unstable();
        let columns = reading.codec.decode_keys(keys.into_iter())?;
        let schema = Schema::new(reading.codec.fields(&columns));
        let values = RecordBatch::try_new(schema.into(), columns)
            .map_err(|e| Error::internal("cannot write keys to delete").because(e))?;
        let location = format!("{folder}/{}-deletes.parquet", Uuid::now_v7().simple());
        let (bytes, described) = equality::write(&location, like, &values)?;
        marked.files.push((location, bytes));
        marked.added.push(about(like, described));
    }
    Ok(marked)
}
