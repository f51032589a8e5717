//! The table as an output: what it holds of a shard, and one try to commit an epoch that adds data
//! files. How a commit is built, written and swapped in is `snapshot.rs` and `handle.rs`.

use async_trait::async_trait;
use calve_engine::{
    error::{Error, ErrorKind, Result},
    fault,
    seams::{Commit, Outcome, Output, OutputState},
};
use iceberg::spec::{Operation, Schema, TableMetadata};
use uuid::Uuid;

use super::{
    access::FileAccess,
    catalog::Catalog,
    config::TableName,
    edit::{AddedFile, Edit},
    epochs::{self, EpochMark, Step},
    files::Content,
    handle::TableHandle,
    held::Held,
    unite::{United, unite},
};

/// One table of a catalog, as the place where epochs become visible.
pub struct IcebergOutput {
    pub(super) handle: TableHandle,
}

impl IcebergOutput {
    pub(super) fn new(catalog: Catalog, table: TableName, uuid: Uuid) -> Self {
        Self {
            handle: TableHandle::new(catalog, table, uuid),
        }
    }
}

/// What a table holds of a shard; nothing, where it is another one than was opened.
pub(crate) async fn state_of(
    handle: &TableHandle,
    pipeline: &str,
    shard: &str,
) -> Result<OutputState> {
    let Some(known) = handle.load().await? else {
        return Ok(OutputState::default());
    };
    let held = if known.metadata.uuid() == handle.uuid {
        Held::of(&known.metadata, pipeline, shard)?
    } else {
        None
    };
    Ok(OutputState {
        identity: Some(known.metadata.uuid().to_string()),
        held: held.map(|held| (held.epoch, held.digest)),
    })
}

/// Prepared files can have been removed by somebody else's cleaning.
///
/// # Errors
/// `Corrupt` when one is gone.
pub(crate) async fn check_files(access: &FileAccess, content: &Content) -> Result<()> {
    match access.missing(content.locations().collect()).await? {
        None => Ok(()),
        Some(location) => Err(
            Error::corrupt(format!("a prepared file is gone: file={location}")).hint(
                "something removed files that a checkpoint refers to; restore the file, or \
                 start over with `calve checkpoint reset`",
            ),
        ),
    }
}

/// Prepared files as the table takes them now, and the schema that it gets with them, if any. Where
/// others have taken their field ids, the files are written again.
///
/// # Errors
/// `Schema` when others have changed the table so that the files do not fit.
pub(crate) async fn fit_schema(
    access: &FileAccess,
    metadata: &TableMetadata,
    mut content: Content,
) -> Result<(Content, Option<Schema>)> {
    loop {
        let Some(evolved) = &content.evolved else {
            return Ok((content, None));
        };
        if content.files.is_empty() {
            return Ok((content, None));
        }
        match unite(metadata, evolved)? {
            United::Has(schema) => {
                content.schema = schema;
                return Ok((content, None));
            }
            United::Becomes(schema) => {
                content.schema = schema.schema_id();
                return Ok((content, Some(*schema)));
            }
            United::Readdress(moved) => {
                tracing::info!(
                    files = content.files.len(),
                    "somebody changed the table's schema: files are written again to fit"
                );
                content = content.readdressed(access, &moved).await?;
            }
        }
    }
}

#[async_trait]
impl Output for IcebergOutput {
    async fn state(&self, pipeline: &str, shard: &str) -> Result<OutputState> {
        state_of(&self.handle, pipeline, shard).await
    }

    async fn commit(&self, commit: &Commit) -> Result<Outcome> {
        let handle = &self.handle;
        let known = handle.load_existing().await?;
        let held = match epochs::decide(&handle.table, handle.uuid, &known.metadata, commit)? {
            Step::Stop(outcome) => return Ok(outcome),
            Step::Go(held) => held,
        };
        let content = Content::from_json(&commit.prepared.content)?;
        check_files(&handle.access, &content).await?;
        let (content, becomes) = fit_schema(&handle.access, &known.metadata, content).await?;
        fault::point("iceberg.commit.before_manifest")?;

        let mut edit = Edit::new(Operation::Append);
        edit.schema = becomes;
        edit.epoch = Some(EpochMark::new(commit, held.as_ref()));
        edit.summary = epochs::describe(commit)?;
        if !content.files.is_empty() {
            let (spec, schema) = (content.spec, content.schema);
            let files = content.data_files(&known.metadata)?;
            edit.added.extend(files.into_iter().map(|file| AddedFile {
                file,
                spec,
                schema,
                sequence: None,
            }));
        }
        let built = match handle.build(&known, edit).await {
            Err(error) if error.kind() == ErrorKind::Conflict => return Ok(Outcome::Conflict),
            built => built?,
        };
        fault::point("iceberg.commit.before_metadata")?;
        handle.apply(&known, built).await
    }
}
