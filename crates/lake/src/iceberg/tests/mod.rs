//! The whole output over a real SQLite file and a real folder; other writers are iceberg-rust's own
//! catalog and transactions.

pub(crate) mod commits;
pub(crate) mod edits;
mod older;
mod others;
mod placing;
mod postgres;
mod upkeep;
mod verifying;

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{
        ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
    },
    compute::take_record_batch,
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use calve_engine::seams::{Commit, Outcome, Output, Prepared};
use calve_model::{Epoch, Offsets};
use futures::TryStreamExt;
use parquet::arrow::ArrowWriter;

use super::{
    CatalogConfig, IcebergConfig, IcebergOutput, TableName, access::local, catalog::Catalog,
    create, load_table, place::IcebergPlacement,
};
use crate::write::{DescribedFile, FinishedFile, Placement, TablePartition};

pub(crate) struct Lake {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: IcebergConfig,
}

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("region", DataType::Utf8, true),
        Field::new("id", DataType::Int64, true),
    ]))
}

/// One row for each id, over two regions and some hours.
pub(crate) fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let ts: Vec<i64> = ids.clone().map(|id| id * 1_800_000_000).collect();
    let regions: Vec<Option<&str>> = ids
        .clone()
        .map(|id| [Some("eu/..\u{e9}"), None, Some("us")][(id % 3).unsigned_abs() as usize])
        .collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from(ts)),
        Arc::new(StringArray::from(regions)),
        Arc::new(Int64Array::from(ids.collect::<Vec<_>>())),
    ];
    RecordBatch::try_new(schema(), columns).expect("a batch")
}

impl Lake {
    pub(crate) fn new(partition_by: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let warehouse = dir.path().join("lake");
        let config = IcebergConfig {
            catalog: CatalogConfig::local(
                warehouse.join("catalog.db"),
                warehouse.to_str().expect("UTF-8"),
            ),
            table: "shop.orders".to_owned(),
            partition_by: partition_by.iter().map(|&s| s.to_owned()).collect(),
            sort_by: Vec::new(),
            properties: BTreeMap::new(),
            format_version: 2,
            changes: None,
            evolution: crate::iceberg::Evolution::default(),
        };
        Self { dir, config }
    }

    pub(crate) fn table(&self) -> TableName {
        TableName::parse(&self.config.table).expect("a name")
    }

    pub(crate) async fn catalog(&self) -> Catalog {
        Catalog::create(&self.config.catalog)
            .await
            .expect("a catalog")
    }

    /// Creates or checks the table.
    pub(in crate::iceberg) async fn open(&self) -> (IcebergPlacement, IcebergOutput) {
        let catalog = self.catalog().await;
        let table = self.table();
        let (metadata, _) = create::create_or_check(&catalog, &self.config, &table, &schema())
            .await
            .expect("a table that fits");
        let placement = IcebergPlacement::new(&metadata, &schema()).expect("a placement");
        (
            placement,
            IcebergOutput::new(catalog, table, metadata.uuid()),
        )
    }

    /// What a scan by the crate finds, by id.
    pub(crate) async fn ids(&self) -> Vec<i64> {
        let table = load_table(&self.config.catalog, &self.config.table)
            .await
            .expect("a table");
        // Of two tasks that need one file of deletes, the crate may never wake the second.
        let scan = table.scan().with_data_file_concurrency_limit(1);
        let scan = scan.select(["id"]).build().expect("a scan");
        let batches: Vec<RecordBatch> = scan
            .to_arrow()
            .await
            .expect("a stream")
            .try_collect()
            .await
            .expect("rows");
        let mut ids: Vec<i64> = batches
            .iter()
            .flat_map(|b| {
                let ids = b
                    .column(0)
                    .as_any()
                    .downcast_ref::<Int64Array>()
                    .expect("longs");
                ids.values().to_vec()
            })
            .collect();
        ids.sort_unstable();
        ids
    }
}

/// Writes rows as data files, one for each table partition, as the shared writer would.
pub(in crate::iceberg) fn prepare(placement: &IcebergPlacement, rows: RecordBatch) -> Prepared {
    let placed = placement.place(rows).expect("rows are placed");
    let mut groups: BTreeMap<TablePartition, Vec<u32>> = BTreeMap::new();
    for row in 0..placed.rows.num_rows() {
        let partition = TablePartition::of(&placed.keys, row).expect("a key");
        groups.entry(partition).or_default().push(row as u32);
    }
    let root = std::path::Path::new(local(placement.root()).expect("a local table"));
    let mut files = Vec::new();
    let mut prepared = Prepared {
        rows: placed.rows.num_rows() as u64,
        ..Prepared::default()
    };
    for (partition, at) in groups {
        let path = placement.path(&partition, &format!("main-{}", uuid::Uuid::new_v4()));
        let full = root.join(&path);
        std::fs::create_dir_all(full.parent().expect("a folder")).expect("folders");
        let batch = take_record_batch(&placed.rows, &UInt32Array::from(at)).expect("rows");
        let file = std::fs::File::create(&full).expect("a file");
        let mut writer =
            ArrowWriter::try_new(file, placement.file_schema(), None).expect("a writer");
        writer.write(&batch).expect("written");
        let metadata = Arc::new(writer.close().expect("closed"));
        let bytes = full.metadata().expect("a file").len();
        let schema = placement.file_schema();
        let finished = FinishedFile {
            path: &path,
            partition: &partition,
            rows: batch.num_rows() as u64,
            bytes,
            metadata: &metadata,
            schema: &schema,
        };
        let described = placement.describe(&finished).expect("described");
        prepared.files += 1;
        prepared.bytes += bytes;
        files.push(DescribedFile {
            path,
            partition: Arc::new(partition),
            sequence: 0,
            rows: batch.num_rows() as u64,
            bytes,
            described,
            upload: None,
        });
    }
    prepared.content = placement.content(Epoch(0), files).expect("content");
    prepared
}

/// The commit of an epoch whose predecessor with content is the one before.
pub(crate) fn commit(shard: &str, epoch: u64, prepared: Prepared) -> Commit {
    Commit {
        pipeline: "orders".into(),
        shard: shard.into(),
        epoch: Epoch(epoch),
        digest: format!("d{epoch}"),
        record: format!("orders/{shard}/{epoch}"),
        previous: Epoch(epoch - 1),
        offsets_from: format!("o{}", epoch - 1),
        offsets_to: format!("o{epoch}"),
        offsets: Offsets::default(),
        watermark: Some(-5),
        complete: None,
        prepared,
    }
}

pub(crate) async fn committed(output: &IcebergOutput, commit: &Commit) {
    let outcome = output.commit(commit).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
}
