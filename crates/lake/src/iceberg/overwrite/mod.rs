//! Overwrite by filter: rows that a filter means go, in one snapshot. Data files of which every row is
//! meant are removed, those of which some are are written again without them; nothing else is touched.
//!
//! The filter is applied to the state that is committed upon: when somebody else commits in between,
//! the files that he added are looked at too before the next try, so no row that is there when the
//! commit happens, and is meant, stays.

mod filter;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use arrow::array::Array as _;
use calve_engine::error::{Error, Result};
use futures::TryStreamExt;
use iceberg::spec::{Operation, Schema, TableMetadata};
use roaring::RoaringTreemap;
use serde::Serialize;

use self::filter::Filter;
use super::{
    access::local,
    catalog::Catalog,
    compact::{CompactOptions, Reader, without_rows},
    config::CatalogConfig,
    deletes::deleted_rows,
    edit::{Edit, RemovedFile},
    handle::{Known, TableHandle, Tries},
    live::{LiveFile, LiveFiles},
};

/// What was deleted, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// Rows.
    pub rows: u64,
    /// Data files of which no row is left.
    pub files_removed: u64,
    /// Data files that were written again.
    pub files_rewritten: u64,
    /// The snapshot; none: no row was meant, or nothing was to be done.
    pub snapshot: Option<String>,
}

/// Deletes the rows of a table that a filter means, such as `region = 'eu' AND amount > 5`. Columns are
/// those of the table's current schema, not within others. `options` tell how files are written again,
/// and whether at all; `pool` encodes.
///
/// # Errors
/// `Config` for no such table, a filter that cannot be read or does not fit the columns, files without
/// field ids; `Conflict` when others commit all the time. Nothing is changed then.
pub async fn delete_where(
    config: &CatalogConfig,
    table: &str,
    filter: &str,
    options: &CompactOptions,
    pool: Arc<rayon::ThreadPool>,
) -> Result<Deleted> {
    let filter = Filter::parse(filter)?;
    let handle = TableHandle::open(Catalog::open(config).await?, table).await?;
    let mut live = LiveFiles::default();
    let mut meant = Meant::default();
    let mut tries = Tries::new(&handle);
    loop {
        let known = tries.load().await?;
        handle.live(&known, &mut live).await?;
        let plan = meant.plan(&handle, &known, &live, &filter).await?;
        if plan.done.rows == 0 || options.dry_run {
            return Ok(plan.done);
        }
        let (edit, done) = plan
            .edit(&handle, &known, &live, options, pool.clone())
            .await?;
        let written: Vec<String> = edit
            .added
            .iter()
            .map(|added| added.file.file_path().to_owned())
            .collect();
        if let Some(snapshot) = tries.commit(&known, edit).await? {
            return Ok(Deleted {
                snapshot: Some(snapshot),
                ..done
            });
        }
        // Another commit was faster, and nothing refers to them; a request to a catalog elsewhere may come
        // late all the same, so there they are left to `table clean`.
        let here: Vec<String> = written
            .into_iter()
            .filter(|location| local(location).is_some())
            .collect();
        handle.access.discard(&here).await;
    }
}

/// The rows that are meant, of each data file that was looked at: files never change.
#[derive(Default)]
struct Meant {
    schema: Option<i32>,
    rows: HashMap<Arc<str>, RoaringTreemap>,
}

/// What is to be done in one state of the table.
struct Plan {
    whole: Vec<Arc<LiveFile>>,
    /// Files that keep some rows, and the rows that they do not keep.
    part: Vec<(Arc<LiveFile>, RoaringTreemap)>,
    done: Deleted,
}

impl Meant {
    async fn plan(
        &mut self,
        handle: &TableHandle,
        known: &Known,
        live: &LiveFiles,
        filter: &Filter,
    ) -> Result<Plan> {
        let metadata = &known.metadata;
        let schema = metadata.current_schema_id();
        if self.schema.replace(schema) != Some(schema) {
            // A column of this name may be another one.
            self.rows.clear();
        }
        let access = &handle.access;
        let reader = Reader::new(access.clone(), &named(metadata, filter)?, false)?;
        let mut plan = Plan {
            whole: Vec::new(),
            part: Vec::new(),
            done: Deleted::default(),
        };
        for file in live.files() {
            if !self.rows.contains_key(&file.path) {
                let rows = matching(&reader, file, filter).await?;
                self.rows.insert(file.path.clone(), rows);
            }
            let meant = &self.rows[&file.path];
            if meant.is_empty() {
                continue;
            }
            let before = deleted_rows(access.io(), file, &live.deletes_of(file)).await?;
            let new = (meant - &before).len();
            if new == 0 {
                continue;
            }
            plan.done.rows += new;
            let gone = meant | before;
            if gone.len() >= file.rows {
                plan.done.files_removed += 1;
                plan.whole.push(file.clone());
            } else {
                plan.done.files_rewritten += 1;
                plan.part.push((file.clone(), gone));
            }
        }
        Ok(plan)
    }
}

impl Plan {
    async fn edit(
        self,
        handle: &TableHandle,
        known: &Known,
        live: &LiveFiles,
        options: &CompactOptions,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<(Edit, Deleted)> {
        let mut edit = Edit::new(Operation::Overwrite);
        edit.summary
            .insert("calve.upkeep".to_owned(), "delete".to_owned());
        let files = self
            .whole
            .iter()
            .chain(self.part.iter().map(|(file, _)| file));
        for file in files {
            edit.removed.push(RemovedFile::data(file));
            let deletes = live.scoped_to(&file.path).iter();
            edit.removed
                .extend(deletes.map(|delete| RemovedFile::delete(delete)));
        }
        if self.part.is_empty() {
            edit.operation = Operation::Delete;
        } else {
            edit.added =
                without_rows(handle, &known.metadata, self.part, true, options, pool).await?;
        }
        Ok((edit, self.done))
    }
}

/// The columns that a filter names.
fn named(metadata: &TableMetadata, filter: &Filter) -> Result<Schema> {
    let mut names = Vec::new();
    filter.columns(&mut names);
    let schema = metadata.current_schema();
    let all = schema.as_struct().fields();
    if let Some(name) = names
        .iter()
        .find(|name| all.iter().all(|f| f.name != **name))
    {
        let known: Vec<&str> = all.iter().map(|field| field.name.as_str()).collect();
        return Err(Error::config(format!(
            "the filter names a column that the table has not: column={name}"
        ))
        .hint(format!("the table has: {}", known.join(", "))));
    }
    let fields = all
        .iter()
        .filter(|field| names.contains(&field.name.as_str()));
    if let Some(field) = fields.clone().find(|field| field.initial_default.is_some()) {
        return Err(Error::config(format!(
            "a column has a default for files that lack it, which calve does not fill in: column={}",
            field.name
        ))
        .hint("delete with another engine"));
    }
    Schema::builder()
        .with_schema_id(schema.schema_id())
        .with_fields(fields.cloned())
        .build()
        .map_err(|e| Error::schema("the filter's columns make no schema").because(e))
}

/// The rows of a file for which the filter is true, deleted or not.
async fn matching(
    reader: &Reader,
    file: &Arc<LiveFile>,
    filter: &Filter,
) -> Result<RoaringTreemap> {
    let mut rows = RoaringTreemap::new();
    let mut first = 0_u64;
    let mut batches = reader.rows_without(file, RoaringTreemap::new()).await?;
    while let Some(batch) = batches.try_next().await? {
        let holds = filter.holds(&batch)?;
        let here = (0..batch.num_rows()).filter(|row| holds.is_valid(*row) && holds.value(*row));
        rows.extend(here.map(|row| first + row as u64));
        first += batch.num_rows() as u64;
    }
    Ok(rows)
}
