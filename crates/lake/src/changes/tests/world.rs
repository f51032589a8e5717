//! A pipeline of changes over one table, and the map that the table should equal.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};
use calve_engine::{
    checkpoint::Checkpoints,
    opaque::Opaque,
    seams::{Commit, Outcome, Output, Prepared, TableWriter},
    stores::Stores,
};
use calve_model::Epoch;
use futures::TryStreamExt;

use super::super::{ChangesConfig, Opening, Upkeep};
use crate::{
    checkpoints::open_store,
    iceberg::{
        self, CompactOptions, Compacted, IcebergConfig, compact, load_table,
        tests::{Lake, commit},
    },
    write::WriteOptions,
};

/// The change of one key.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) op: &'static str,
    pub(super) id: i64,
    pub(super) seq: i64,
    pub(super) region: &'static str,
    pub(super) n: i64,
}

pub(super) fn schema() -> SchemaRef {
    let field = |name: &str, of: DataType| Field::new(name, of, true);
    Arc::new(Schema::new(vec![
        field("op", DataType::Utf8),
        field("id", DataType::Int64),
        field("_seq", DataType::Int64),
        field("region", DataType::Utf8),
        field("n", DataType::Int64),
    ]))
}

pub(super) fn batch(changes: &[Change]) -> RecordBatch {
    let number = |of: fn(&Change) -> i64| -> ArrayRef {
        Arc::new(changes.iter().map(|c| Some(of(c))).collect::<Int64Array>())
    };
    let text = |of: fn(&Change) -> &'static str| -> ArrayRef {
        Arc::new(changes.iter().map(|c| Some(of(c))).collect::<StringArray>())
    };
    let columns = vec![
        text(|c| c.op),
        number(|c| c.id),
        number(|c| c.seq),
        text(|c| c.region),
        number(|c| c.n),
    ];
    RecordBatch::try_new(schema(), columns).expect("a batch")
}

/// What the table should hold: the row of each key, and the order of the last change of each.
#[derive(Default)]
pub(super) struct Golden {
    pub(super) rows: BTreeMap<i64, (&'static str, i64)>,
    pub(super) orders: BTreeMap<i64, i64>,
    pub(super) floor: i64,
    pub(super) ordered: bool,
}

impl Golden {
    pub(super) fn apply(&mut self, change: &Change) {
        let order = if self.ordered { change.seq } else { 0 };
        if change.op == "t" {
            let gone: Vec<i64> = self
                .rows
                .keys()
                .filter(|id| self.orders[id] <= order)
                .copied()
                .collect();
            for id in gone {
                self.rows.remove(&id);
                self.orders.remove(&id);
            }
            self.floor = self.floor.max(order);
            return;
        }
        if order < self.floor
            || self
                .orders
                .get(&change.id)
                .is_some_and(|held| *held > order)
        {
            return;
        }
        self.orders.insert(change.id, order);
        if change.op == "d" {
            self.rows.remove(&change.id);
        } else {
            self.rows.insert(change.id, (change.region, change.n));
        }
    }
}

/// A pipeline over one table.
pub(super) struct World {
    pub(super) lake: Lake,
    pub(super) config: IcebergConfig,
    pub(super) chunk_bytes: usize,
    /// When files are merged after a commit.
    pub(super) upkeep: Upkeep,
    pub(super) epoch: u64,
    pub(super) runs: Vec<String>,
    pub(super) open: Option<(Box<dyn TableWriter>, Arc<dyn Output>)>,
    /// Columns of the changes; none: all.
    pub(super) columns: Option<Vec<usize>>,
}

impl World {
    pub(super) fn new(changes: serde_json::Value, version: u8, chunk_bytes: usize) -> Self {
        let lake = Lake::new(&["region"]);
        let changes: ChangesConfig = serde_json::from_value(changes).expect("a configuration");
        let config = IcebergConfig {
            changes: Some(Box::new(changes)),
            format_version: version,
            ..lake.config.clone()
        };
        Self {
            lake,
            config,
            chunk_bytes,
            upkeep: Upkeep::default(),
            epoch: 0,
            runs: Vec::new(),
            open: None,
            columns: None,
        }
    }

    pub(super) fn picked(&self, rows: &RecordBatch) -> RecordBatch {
        let all: Vec<usize> = (0..rows.num_columns()).collect();
        rows.project(self.columns.as_ref().unwrap_or(&all))
            .expect("columns")
    }

    pub(super) async fn checkpoints(&self) -> Checkpoints {
        let folder = self.lake.dir.path().join("checkpoints");
        let stores = Stores::new(std::iter::empty(), Vec::new());
        let store = open_store(folder.to_str().expect("UTF-8"), &stores)
            .await
            .expect("a store");
        Checkpoints::new(store, "orders", "main")
    }

    pub(super) async fn open(&mut self) -> &mut (Box<dyn TableWriter>, Arc<dyn Output>) {
        if self.open.is_none() {
            let checkpoints = self.checkpoints().await;
            let rows = self.picked(&RecordBatch::new_empty(schema())).schema();
            let opening = Opening {
                config: self.config.changes.as_deref().expect("changes"),
                hidden: &[],
                null_keys: false,
                checkpoints: &checkpoints,
                memory_bytes: self.chunk_bytes,
                index_bytes: 64 << 20,
                target_file_size: 1 << 20,
                upkeep: self.upkeep,
            };
            let pool = Arc::new(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(2)
                    .build()
                    .expect("a pool"),
            );
            let options = WriteOptions::default();
            let names = ("orders", "main");
            let mut opened =
                iceberg::open(&self.config, &options, rows, names, pool, Some(&opening))
                    .await
                    .expect("it opens");
            opened.0.resume(&self.runs);
            self.open = Some(opened);
        }
        self.open.as_mut().expect("opened")
    }

    /// An epoch that is prepared, and not committed yet.
    pub(super) async fn prepare(&mut self, batches: &[Vec<Change>]) -> Commit {
        self.epoch += 1;
        let epoch = self.epoch;
        let batches: Vec<RecordBatch> =
            batches.iter().map(|one| self.picked(&batch(one))).collect();
        let (writer, _) = self.open().await;
        let mut splitter = writer.splitter();
        for changes in batches {
            let split = splitter.split(changes).expect("it splits");
            writer.append(split).await.expect("it takes them");
        }
        writer.before_seal().await.expect("it ends the chunk");
        let mut prepared: Prepared = writer
            .seal(Epoch(epoch))
            .finish()
            .await
            .expect("it prepares");
        self.runs = std::mem::take(&mut prepared.runs);
        if prepared.content.is_null() {
            prepared.content = Opaque::of(&serde_json::json!({"chunks": []})).expect("plain data");
        }
        commit("main", epoch, prepared)
    }

    pub(super) async fn commit(&mut self, commit: &Commit) {
        let (_, output) = self.open().await;
        let outcome = output.commit(commit).await.expect("an outcome");
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }

    /// A step of the upkeep; answers whether it made a snapshot.
    pub(super) async fn tend(&mut self) -> bool {
        let before = self.snapshot().await;
        let (_, output) = self.open().await;
        output.tend().await.expect("it is looked after");
        before != self.snapshot().await
    }

    /// Files are written again without their deleted rows; answers in how many steps.
    pub(super) async fn settle(&mut self) -> usize {
        let (_, output) = self.open().await;
        let mut steps = 0;
        while output.settle().await.expect("it is settled") {
            steps += 1;
            assert!(steps < 100, "it does not end");
        }
        steps
    }

    /// Somebody else compacts the table, whole.
    pub(super) async fn compacted(&self) -> Compacted {
        let options = CompactOptions {
            target_file_size: 1 << 20,
            min_files: 1,
            all_deletes: true,
            sort: false,
            memory_bytes: 1 << 20,
            dry_run: false,
        };
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().build().expect("a pool"));
        let (catalog, table) = (&self.config.catalog, &self.config.table);
        let done = compact(catalog, table, &options, pool).await;
        done.expect("it compacts")
    }

    pub(super) async fn snapshot(&self) -> Option<i64> {
        let handle = self.lake.handle().await;
        let known = handle.load_existing().await.expect("the table");
        known.metadata.current_snapshot_id()
    }

    /// Data files, and files of deletes, of the table.
    pub(super) async fn files(&self) -> (usize, usize) {
        let handle = self.lake.handle().await;
        let (_, live) = iceberg::tests::edits::live(&handle).await;
        (live.files().len(), live.deletes().count())
    }

    /// What another reader sees.
    pub(super) async fn scan(&self) -> Vec<RecordBatch> {
        let table = load_table(&self.config.catalog, &self.config.table)
            .await
            .expect("the table");
        // Of two tasks that need one file of deletes, the crate may never wake the second.
        let scan = table.scan().with_data_file_concurrency_limit(1);
        let scan = scan.build().expect("a scan");
        let batches = scan.to_arrow().await.expect("a stream");
        batches.try_collect().await.expect("rows")
    }

    /// Rows as another reader sees them; panics when a key is there twice.
    pub(super) async fn rows(&self) -> BTreeMap<i64, (String, i64)> {
        let mut rows = BTreeMap::new();
        for batch in self.scan().await {
            let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
            let (id, n, region) = (column("id"), column("n"), column("region"));
            for row in 0..batch.num_rows() {
                let number = |c: &ArrayRef| c.as_primitive::<Int64Type>().value(row);
                let region = arrow::compute::cast(&region, &DataType::Utf8).expect("text");
                let value = (region.as_string::<i32>().value(row).to_owned(), number(&n));
                let twice = rows.insert(number(&id), value);
                assert_eq!(twice, None, "key {} is there twice", number(&id));
            }
        }
        rows
    }

    pub(super) async fn check(&self, golden: &Golden, at: &str) {
        let rows = self.rows().await;
        let wanted: BTreeMap<i64, (String, i64)> = golden
            .rows
            .iter()
            .map(|(id, (region, n))| (*id, ((*region).to_owned(), *n)))
            .collect();
        assert_eq!(rows, wanted, "{at}");
    }

    pub(super) fn index(&self) -> std::path::PathBuf {
        self.lake.dir.path().join("lake/.calve-index")
    }
}
