//! Commits of prepared files into an Iceberg table on a local disk: manifest, list, metadata and
//! the swap in the catalog, all durable. Prints the median and the slowest of
//! each hundred.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::datatypes::{DataType, Field, Schema};
use calve_engine::{
    opaque::Opaque,
    seams::{Commit, Outcome, Prepared},
};
use calve_lake::{
    iceberg::{CatalogConfig, IcebergConfig, open},
    write::WriteOptions,
};
use calve_model::{Epoch, Offsets};
use serde_json::json;

const COMMITS: u64 = 1000;
const FILES: usize = 10;

/// The form of a checkpoint's content, with files that exist and hold nothing.
fn prepared(location: &std::path::Path, epoch: u64) -> Prepared {
    let files: Vec<_> = (0..FILES)
        .map(|n| {
            let path = format!("data/{epoch}-{n}.parquet");
            std::fs::write(location.join(&path), b"").expect("a file");
            let column =
                |id: i32| json!([id, 4000, 1000, 0, "0102030405060708", "0202030405060708"]);
            let text = json!([2, 4000, 1000, 0, "6575", "7573"]);
            json!({
                "path": path, "rows": 1000, "bytes": 20_000, "partition": [format!("r{n}")],
                "described": { "splits": [4], "columns": [column(1), text, column(3)] }
            })
        })
        .collect();
    let content = json!({ "location": format!("file://{}", location.display()), "spec": 0, "schema": 0, "files": files });
    Prepared {
        rows: 1000 * FILES as u64,
        bytes: 20_000 * FILES as u64,
        files: FILES as u64,
        content: Opaque::of(&content).expect("plain data"),
        runs: Vec::new(),
    }
}

fn median(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

#[allow(clippy::print_stdout, reason = "a benchmark reports")]
fn main() {
    let dir = tempfile::tempdir_in(std::env::var("BENCH_DIR").unwrap_or_else(|_| ".".into()))
        .expect("a folder");
    let dir = dir.path().canonicalize().expect("a folder");
    let warehouse = dir.join("lake");
    let config = IcebergConfig {
        catalog: CatalogConfig::local(
            warehouse.join("catalog.db"),
            warehouse.to_str().expect("UTF-8"),
        ),
        table: "shop.orders".to_owned(),
        partition_by: vec!["region".to_owned()],
        sort_by: Vec::new(),
        properties: BTreeMap::new(),
        format_version: 2,
        changes: None,
        evolution: calve_lake::iceberg::Evolution::default(),
    };
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("region", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
    ]));
    let pool = Arc::new(
        rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .expect("a pool"),
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let times = runtime.block_on(async {
        let options = WriteOptions::default();
        let (_writer, output) = open(&config, &options, schema, ("bench", "main"), pool, None)
            .await
            .expect("a table");
        let location = warehouse.join("shop/orders");
        std::fs::create_dir_all(location.join("data")).expect("a folder");
        let mut times = Vec::new();
        for epoch in 1..=COMMITS {
            let commit = Commit {
                pipeline: "bench".into(),
                shard: "main".into(),
                epoch: Epoch(epoch),
                digest: "d".repeat(64),
                record: format!("bench/main/{epoch}"),
                previous: Epoch(epoch - 1),
                offsets_from: format!("o{}", epoch - 1),
                offsets_to: format!("o{epoch}"),
                offsets: Offsets::default(),
                watermark: None,
                complete: None,
                prepared: prepared(&location, epoch),
            };
            let start = Instant::now();
            let outcome = output.commit(&commit).await.expect("an outcome");
            times.push(start.elapsed());
            assert!(matches!(outcome, Outcome::Committed { .. }));
        }
        times
    });
    println!("commit of {FILES} prepared files, median and slowest of 100, ms:");
    for (n, some) in times.chunks(100).enumerate() {
        let slowest = some.iter().max().map_or(0.0, Duration::as_secs_f64) * 1e3;
        println!(
            "  commits {} to {}: {:.2} {slowest:.2}",
            n * 100 + 1,
            (n + 1) * 100,
            median(some)
        );
    }
}
