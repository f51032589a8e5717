//! Each format, and files that are wrong.

use std::io::Write;

use arrow::{
    array::{Int64Array, StringArray},
    datatypes::{DataType, Field},
    ipc::writer::FileWriter,
};
use calve_engine::ErrorKind;
use datafusion::parquet::arrow::ArrowWriter;
use tempfile::TempDir;

use super::*;

fn config(dir: &TempDir, name: &str, content: &[u8]) -> LookupConfig {
    let path = dir.path().join(name);
    File::create(&path).unwrap().write_all(content).unwrap();
    let file = path.to_str().unwrap().to_owned();
    LookupConfig { file, format: None }
}

fn batch() -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![
        Field::new("code", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
    ]));
    let code = Arc::new(StringArray::from(vec![Some("eu"), None]));
    let n = Arc::new(Int64Array::from(vec![1, 2]));
    RecordBatch::try_new(schema, vec![code, n]).unwrap()
}

#[test]
fn every_format_gives_the_same_table() {
    let dir = TempDir::new().unwrap();
    let mut parquet = ArrowWriter::try_new(Vec::new(), batch().schema(), None).unwrap();
    parquet.write(&batch()).unwrap();
    let mut arrow = FileWriter::try_new(Vec::new(), &batch().schema()).unwrap();
    arrow.write(&batch()).unwrap();
    let files = [
        config(&dir, "a.csv", b"code,n\neu,1\n,2\n"),
        config(&dir, "a.ndjson", b"{\"code\":\"eu\",\"n\":1}\n{\"n\":2}\n"),
        config(&dir, "a.parquet", &parquet.into_inner().unwrap()),
        config(&dir, "a.arrow", &arrow.into_inner().unwrap()),
    ];
    for file in files {
        let lookup = Lookup::read("t", &file, MAX_BYTES).unwrap();
        assert_eq!(lookup.schema(), batch().schema(), "{}", file.file);
        assert_eq!(lookup.rows(), 2);
        let input = Arc::new(Schema::new(vec![Field::new("c", DataType::Utf8, true)]));
        let sql = "SELECT n FROM events JOIN t ON c = code";
        let planned = crate::SqlTransform::plan(sql, Arc::clone(&input), &[lookup]).unwrap();
        let events = Arc::new(StringArray::from(vec!["us", "eu"]));
        let rows = RecordBatch::try_new(input, vec![events]).unwrap();
        let made = planned.instance().unwrap().apply(rows).unwrap();
        assert_eq!(made.column(0).as_ref(), &Int64Array::from(vec![1]));
    }
}

#[test]
fn wrong_files_are_config_errors_that_name_the_table() {
    let dir = TempDir::new().unwrap();
    let missing = LookupConfig {
        file: dir.path().join("none.csv").to_str().unwrap().to_owned(),
        format: None,
    };
    let mut folder = config(&dir, "x.csv", b"");
    folder.file = dir.path().to_str().unwrap().to_owned();
    let huge = config(&dir, "huge.csv", b"a\n1\n");
    File::options()
        .write(true)
        .open(&huge.file)
        .unwrap()
        .set_len(MAX_BYTES + 1)
        .unwrap();
    let wrong = [
        (missing, "cannot be read"),
        (folder, "not known"),
        (config(&dir, "a.xyz", b"a\n1\n"), "not known"),
        (config(&dir, "b.csv", b"a,b\n1,2,3\n"), "cannot be read"),
        (config(&dir, "b.json", b"{\"a\":"), "cannot be read"),
        (config(&dir, "b.parquet", b"PAR1"), "cannot be read"),
        (config(&dir, "b.arrow", b"ARROW1"), "cannot be read"),
        (huge, "too big"),
    ];
    for (file, why) in wrong {
        let error = Lookup::read("t", &file, MAX_BYTES).expect_err(&file.file);
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.message().contains(why), "{error}");
        assert!(error.message().contains("table=t"), "{error}");
    }
}

#[test]
fn a_name_may_be_given_once_and_not_be_that_of_the_events() {
    let lookup = |name| Lookup::from_batches(name, batch().schema(), vec![batch()]).unwrap();
    for lookups in [vec![lookup("events")], vec![lookup("a"), lookup("a")]] {
        let error = crate::SqlTransform::plan("SELECT n FROM events", batch().schema(), &lookups);
        assert!(error.unwrap_err().message().contains("taken"));
    }
}
