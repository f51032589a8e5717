//! What older writers and older states of a table leave behind: delete files about several data files,
//! and manifests from before format version 3.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use iceberg::{
    metadata_columns::{RESERVED_FIELD_ID_DELETE_FILE_PATH, RESERVED_FIELD_ID_DELETE_FILE_POS},
    spec::{
        DataContentType, DataFileBuilder, DataFileFormat, Datum, FormatVersion, Operation,
        TableMetadataBuilder,
    },
};
use parquet::arrow::{ArrowWriter, PARQUET_FIELD_ID_META_KEY};

use super::{
    Lake, commit, committed,
    edits::{in_order, live},
    prepare, rows,
    upkeep::{FEW, findings, pool},
};
use crate::iceberg::{
    compact,
    deletes::deleted_rows,
    edit::{AddedFile, Edit},
    live::{LiveFile, LiveFiles},
    publish::write_all,
};

const IDS: [i32; 2] = [
    RESERVED_FIELD_ID_DELETE_FILE_PATH,
    RESERVED_FIELD_ID_DELETE_FILE_POS,
];

/// A delete file about some rows of several data files.
fn about_several(named: &[(&LiveFile, i64)]) -> Vec<u8> {
    let field = |name: &str, of: DataType, id: i32| {
        let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
        Field::new(name, of, false).with_metadata(id)
    };
    let schema = Arc::new(Schema::new(vec![
        field("file_path", DataType::Utf8, IDS[0]),
        field("pos", DataType::Int64, IDS[1]),
    ]));
    let paths: StringArray = named.iter().map(|(file, _)| Some(&*file.path)).collect();
    let rows: Int64Array = named.iter().map(|(_, row)| Some(*row)).collect();
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(paths), Arc::new(rows)]);
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, None).expect("a writer");
    writer.write(&batch.expect("a batch")).expect("written");
    writer.close().expect("closed");
    bytes
}

#[tokio::test]
async fn deletes_about_several_files_apply_by_table_partition_and_age() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    for epoch in 1..=2 {
        let first = epoch as i64 * 30;
        committed(
            &output,
            &commit("main", epoch, prepare(&placement, rows(first..first + 30))),
        )
        .await;
    }
    let handle = lake.handle().await;
    let (known, before) = live(&handle).await;
    let files = in_order(&before);
    let partition = |n: usize| files[n].partition.clone();
    let other = (3..6)
        .find(|n| partition(*n) == partition(0))
        .expect("the same region");
    let mut named = [(&*files[0], 1), (&*files[0], 4), (&*files[other], 9)];
    named.sort_by(|a, b| a.0.path.cmp(&b.0.path));
    let (one, two) = (named[0].0.path.clone(), named[2].0.path.clone());
    let bytes = about_several(&named);
    let folder = format!("{}/data", known.metadata.location());
    let location = format!("{folder}/several-deletes.parquet");
    let length = bytes.len() as u64;
    write_all(vec![(location.clone(), bytes)], &folder)
        .await
        .expect("written");
    let file = DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(location)
        .file_format(DataFileFormat::Parquet)
        .partition(files[0].partition.as_ref().clone())
        .partition_spec_id(files[0].spec)
        .record_count(3)
        .file_size_in_bytes(length)
        .lower_bounds(HashMap::from([(IDS[0], Datum::string(one.as_ref()))]))
        .upper_bounds(HashMap::from([(IDS[0], Datum::string(two.as_ref()))]))
        .build()
        .expect("described");
    let mut edit = Edit::new(Operation::Delete);
    edit.added.push(AddedFile {
        file,
        spec: files[0].spec,
        schema: files[0].schema,
        sequence: None,
    });
    let built = handle.build(&known, edit).await.expect("built");
    handle.apply(&known, built).await.expect("applied");
    // A file that comes later is not touched by it.
    committed(
        &output,
        &commit("main", 3, prepare(&placement, rows(90..120))),
    )
    .await;

    let (_, now) = live(&handle).await;
    assert_eq!(now.deletes().count(), 1);
    for file in in_order(&now) {
        let deletes = now.deletes_of(&file);
        let rows = deleted_rows(handle.access.io(), &file, &deletes)
            .await
            .expect("rows");
        let expected: Vec<u64> = match &file.path {
            path if *path == files[0].path => vec![1, 4],
            path if *path == files[other].path => vec![9],
            _ => Vec::new(),
        };
        assert_eq!(rows.iter().collect::<Vec<_>>(), expected);
        let may = file.partition == files[0].partition && file.sequence <= 2;
        assert_eq!(deletes.len(), usize::from(may));
    }
    assert_eq!(findings(&lake).await, []);
    let left = lake.read_by_others();
    assert_eq!((left.0.len(), &left.0), (87, &left.1));
    let done = compact(&lake.config.catalog, "shop.orders", &FEW, pool()).await;
    let done = done.expect("compacted");
    assert_eq!((done.rows_deleted, done.deletes_removed), (3, 1));
    assert_eq!(lake.read_by_others(), left);
    assert_eq!(findings(&lake).await, []);
}

#[tokio::test]
async fn a_table_that_becomes_version_three_gives_row_ids_once() {
    let mut lake = Lake::new(&["region"]);
    let few = ("commit.manifest.min-count-to-merge", "3");
    let properties = &mut lake.config.properties;
    properties.insert(few.0.to_owned(), few.1.to_owned());
    let (placement, output) = lake.open().await;
    let add = async |epoch: u64| {
        let first = epoch as i64 * 10;
        let rows = prepare(&placement, rows(first..first + 10));
        committed(&output, &commit("main", epoch, rows)).await;
    };
    add(1).await;
    add(2).await;
    let handle = lake.handle().await;
    let mut kept = LiveFiles::default();
    let known = handle.load_existing().await.expect("a table");
    handle.live(&known, &mut kept).await.expect("live files");
    assert!(kept.files().all(|file| file.first_row_id.is_none()));

    let upgraded = known
        .metadata
        .as_ref()
        .clone()
        .into_builder(Some(known.location.clone()))
        .upgrade_format_version(FormatVersion::V3)
        .and_then(TableMetadataBuilder::build)
        .expect("upgraded");
    let next = known.location.replace("/000", "/100");
    let json = serde_json::to_vec(&upgraded.metadata).expect("JSON");
    std::fs::write(next.trim_start_matches("file://"), json).expect("written");
    let catalog = lake.catalog().await;
    let swapped = catalog
        .sql()
        .swap(&lake.table(), &known.location, &next)
        .await;
    assert!(swapped.expect("swapped"));

    add(3).await;
    let known = handle.load_existing().await.expect("a table");
    handle.live(&known, &mut kept).await.expect("live files");
    let first: HashMap<_, _> = kept
        .files()
        .map(|file| (file.path.clone(), file.first_row_id.expect("an id")))
        .collect();
    assert_eq!(known.metadata.next_row_id(), 30);
    // Merges and later commits change none.
    for epoch in 4..=7 {
        add(epoch).await;
    }
    let (known, now) = live(&handle).await;
    assert!(
        first
            .iter()
            .all(|(path, id)| { now.get(path).and_then(|file| file.first_row_id) == Some(*id) })
    );
    assert_eq!(known.metadata.next_row_id(), 70);
    let manifests = handle.manifests(&known).await.expect("manifests");
    assert!(manifests.len() < 7, "some were merged: {}", manifests.len());
    assert_eq!(findings(&lake).await, []);
    let before = lake.read_by_others();
    assert_eq!((before.0.len(), &before.0), (70, &before.1));
    let done = compact(&lake.config.catalog, "shop.orders", &FEW, pool()).await;
    assert_eq!(done.expect("compacted").files_after, 3);
    assert_eq!(lake.read_by_others(), before);
}
