//! What `verify` finds, and that it finds nothing in tables that are whole.

use calve_model::{Epoch, Offsets, Position, SourcePartition};
use iceberg::spec::Operation;

use super::{
    Lake, commit, committed,
    edits::{delete_positions, live},
    prepare, rows,
    upkeep::{delete_rows, findings},
};
use crate::iceberg::{
    RecordPart, content_files,
    edit::{AddedFile, Edit, RemovedFile},
    epochs::{self, EpochMark},
    files::Content,
    live::LiveFiles,
    verify,
};

#[tokio::test]
async fn verification_finds_what_is_wrong() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    for epoch in 1..=3 {
        let first = epoch as i64 * 30;
        committed(
            &output,
            &commit("main", epoch, prepare(&placement, rows(first..first + 30))),
        )
        .await;
    }
    let handle = lake.handle().await;
    delete_rows(&handle, 0, &[0, 1]).await;
    assert_eq!(findings(&lake).await, []);
    let (known, files) = live(&handle).await;
    let file = files
        .deletes()
        .next()
        .expect("one")
        .referenced
        .clone()
        .expect("a file");
    let file = files.get(&file).expect("live").clone();

    // A second delete file that repeats a row, and names one that is not there.
    let nothing_before = LiveFiles::default();
    let edit = delete_positions(&handle, &known, &nothing_before, &file, &[1, 99]).await;
    let built = handle.build(&known, edit).await.expect("built");
    handle.apply(&known, built).await.expect("applied");
    let mut kinds: Vec<String> = findings(&lake).await.into_iter().map(|f| f.what).collect();
    kinds.sort();
    assert_eq!(kinds.len(), 2, "{kinds:?}");
    assert!(kinds[0].starts_with("a row is deleted that is not there"));
    assert!(kinds[1].starts_with("a row is deleted twice"));

    // The data file goes, and with it what the deletes are about.
    let (known, now) = live(&handle).await;
    let mut edit = Edit::new(Operation::Delete);
    edit.removed
        .push(RemovedFile::data(now.get(&file.path).expect("live")));
    let built = handle.build(&known, edit).await.expect("built");
    handle.apply(&known, built).await.expect("applied");
    let found = findings(&lake).await;
    assert_eq!(found, Vec::new(), "deletes about nothing do no harm");

    let (_, now) = live(&handle).await;
    let mut paths: Vec<String> = now.files().map(|f| f.path.to_string()).collect();
    paths.sort();
    let local = |n: usize| paths[n].trim_start_matches("file://").to_owned();
    std::fs::remove_file(local(0)).expect("removed");
    std::fs::write(local(1), b"PAR1").expect("written");
    // Of the same length, and not the same.
    let mut bytes = std::fs::read(local(2)).expect("read");
    let at = bytes.len() - 10;
    bytes[at] ^= 0xff;
    std::fs::write(local(2), bytes).expect("written");
    std::fs::copy(local(4), local(3)).expect("copied");
    let found = findings(&lake).await;
    for (n, path) in paths.iter().enumerate().take(4) {
        let about = found.iter().filter(|f| f.what.contains(path)).count();
        assert!(about >= 1, "file {n}: {found:?}");
    }

    let prepared = prepare(&placement, rows(500..503));
    let part = |epoch: u64, digest: &str| RecordPart {
        pipeline: "orders".into(),
        shard: "main".into(),
        epoch,
        digest: digest.into(),
        content: prepared.content.clone(),
        missing_runs: Vec::new(),
    };
    let before = found.len();
    let catalog = &lake.config.catalog;
    let with = |parts: Vec<RecordPart>| async move {
        verify(catalog, "shop.orders", &parts)
            .await
            .expect("verified")
            .len()
    };
    assert_eq!(with(vec![part(3, "d3"), part(4, "d4")]).await, before);
    assert_eq!(with(vec![part(3, "other")]).await, before + 1);
    let gone = content_files(&prepared.content).expect("files");
    std::fs::remove_file(gone[0].trim_start_matches("file://")).expect("removed");
    assert_eq!(with(vec![part(4, "d4")]).await, before + 2);
}

#[tokio::test]
async fn a_history_that_does_not_go_on_is_told() {
    let offsets = |offset: u64| {
        let at = Position {
            offset,
            ..Position::default()
        };
        Offsets([(SourcePartition::new("p"), at)].into())
    };
    // Epoch, the one before, digests of the offsets before and at the end, offset; and what is said.
    type Follows<'a> = (u64, u64, &'a str, &'a str, u64, &'a [&'a str]);
    let cases: [Follows; 7] = [
        (3, 2, "b", "c", 30, &[]),
        (3, 2, "b", "c", 19, &["the offset goes back"]),
        (
            3,
            2,
            "x",
            "c",
            30,
            &["does not begin where the offsets had ended"],
        ),
        (4, 3, "c", "d", 40, &["not in the history"]),
        (3, 1, "a", "c", 30, &["follows another epoch"]),
        (2, 1, "a", "b", 20, &["comes twice"]),
        // After a reset it begins anew.
        (3, 0, "", "c", 5, &[]),
    ];
    for (epoch, previous, from, to, at, said) in cases {
        let lake = Lake::new(&["region"]);
        let (placement, _) = lake.open().await;
        let handle = lake.handle().await;
        let chain = [
            (1, 0, "", "a", 10),
            (2, 1, "a", "b", 20),
            (epoch, previous, from, to, at),
        ];
        for (epoch, previous, from, to, at) in chain {
            let mut commit = commit("main", epoch, prepare(&placement, rows(0..3)));
            commit.previous = Epoch(previous);
            (commit.offsets_from, commit.offsets_to) = (from.into(), to.into());
            commit.offsets = offsets(at);
            let (known, _) = live(&handle).await;
            let content = Content::from_json(&commit.prepared.content).expect("content");
            let mut edit = Edit::new(Operation::Append);
            edit.epoch = Some(EpochMark::new(&commit, None));
            edit.summary = epochs::describe(&commit).expect("a summary");
            let files = content.data_files(&known.metadata).expect("files");
            edit.added.extend(files.into_iter().map(|file| AddedFile {
                file,
                spec: content.spec,
                schema: content.schema,
                sequence: None,
            }));
            let built = handle.build(&known, edit).await.expect("built");
            handle.apply(&known, built).await.expect("applied");
        }
        let found = findings(&lake).await;
        let found: Vec<_> = found.iter().map(|finding| &finding.what).collect();
        assert_eq!(found.len(), said.len(), "{epoch} {previous}: {found:?}");
        for (found, said) in found.iter().zip(said) {
            assert!(found.contains(said), "{found}");
        }
    }
}
