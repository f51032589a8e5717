//! CSV: bad rows stand alone, and records are what csv-core takes them for.

use proptest::prelude::*;

use super::*;
use crate::sources::testing::raw;

fn decoder(config: &CsvConfig, columns: &[(&str, &str)]) -> CsvDecoder {
    let columns = columns
        .iter()
        .map(|(n, t)| ((*n).to_owned(), (*t).to_owned()))
        .collect();
    let schema = super::super::Columns(columns).schema().expect("schema");
    CsvDecoder::new(config, schema).expect("decoder")
}

#[test]
fn bad_rows_are_rejects_and_disturb_no_other() {
    let text = "id,name,at\n1,a,2026-01-01T00:00:00\nx,b,\n3,c\n\n4,\"d\nd\",\n,e,\n6,f,nonsense\r\n7,g,2026-01-02 00:00:00Z";
    let mut decoder = decoder(
        &CsvConfig::default(),
        &[
            ("at", "timestamp"),
            ("id", "int not null"),
            ("name", "dict"),
            ("none", "date"),
        ],
    );
    let raw = raw(text, 0);
    let decoded = decoder.decode(&raw).expect("decode");
    let rejects: Vec<_> = decoded
        .rejects
        .iter()
        .map(|r| {
            (
                std::str::from_utf8(&r.raw).expect("utf-8"),
                r.error.as_str(),
            )
        })
        .collect();
    assert_eq!(
        rejects,
        [
            ("x,b,", "a value does not fit: column=id type=int"),
            ("3,c", "wrong number of fields: expected=3"),
            (",e,", "a value is missing: column=id"),
            (
                "6,f,nonsense",
                "a value does not fit: column=at type=timestamp(us)"
            ),
        ]
    );
    for reject in &decoded.rejects {
        let at = reject.offset as usize;
        assert_eq!(&text.as_bytes()[at..at + reject.raw.len()], &reject.raw[..]);
    }
    assert_eq!(decoded.rows.num_rows(), 3);
    for (row, expected) in [
        "1,a,2026-01-01T00:00:00",
        "4,\"d\nd\",",
        "7,g,2026-01-02 00:00:00Z",
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(decoder.locate(&raw, &decoded, row).raw, expected.as_bytes());
    }
}

#[test]
fn without_a_header_fields_are_columns_in_order() {
    let config = CsvConfig {
        header: false,
        delimiter: ';',
        quote: '\'',
        ..CsvConfig::default()
    };
    let mut decoder = decoder(&config, &[("a", "int"), ("b", "large_string")]);
    let decoded = decoder.decode(&raw("1;'x;y'\n2;\n", 50)).expect("decode");
    assert_eq!((decoded.rows.num_rows(), decoded.rejects.len()), (2, 0));
    assert!(
        CsvDecoder::new(
            &config,
            super::super::Columns(vec![("l".into(), "int[]".into())])
                .schema()
                .expect("schema")
        )
        .is_err()
    );
}

#[test]
fn a_header_that_names_a_column_twice_is_refused() {
    let error = CsvConfig::default()
        .header_names(b"a,b,a")
        .expect_err("twice");
    assert!(error.message().contains("column=a"));
    assert_eq!(
        CsvConfig::default()
            .header_names(b"\xef\xbb\xbfa,\"b\"\"c\"")
            .expect("names"),
        ["a", "b\"c"]
    );
}

#[test]
fn a_byte_order_mark_is_skipped_where_the_file_begins() {
    let config = CsvConfig {
        header: false,
        ..CsvConfig::default()
    };
    let columns = [("a", "int"), ("b", "varchar")];
    let text = "\u{feff}1,x\n2,y\n";
    let mut without = decoder(&config, &columns);
    let decoded = without.decode(&raw(text, 0)).expect("decode");
    assert_eq!(
        (decoded.rows.num_rows(), decoded.rejects.clone()),
        (2, vec![])
    );
    let first = without.locate(&raw(text, 0), &decoded, 0);
    assert_eq!((first.offset, first.raw.as_ref()), (3, b"1,x".as_ref()));
    let mut with = decoder(&CsvConfig::default(), &columns);
    let raw = raw("\u{feff}b,a\nx,1\n", 0);
    let decoded = with.decode(&raw).expect("decode");
    assert_eq!(
        (decoded.rows.num_rows(), decoded.rejects.clone()),
        (1, vec![])
    );
    assert_eq!(decoded.rows.column(0).null_count(), 0);
    assert_eq!(with.locate(&raw, &decoded, 0).raw, "x,1");
}

proptest! {
    /// Whatever the text, each record is one row of csv-core, and cuts fall between records.
    #[test]
    fn records_are_those_of_the_csv_crate(text in "[ab,\"\n\r]{0,60}") {
        let config = CsvConfig { header: false, ..CsvConfig::default() };
        let records: Vec<_> = config.records(text.as_bytes()).map(|(at, r)| (at, r.len())).collect();
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8, true)]));
        // Only whether there are as many records: too many fields are an error of one row only.
        let count = |text: &[u8]| {
            let mut rows = 0;
            let mut core = csv_rows(&schema, text);
            while core.next().is_some() { rows += 1; }
            rows
        };
        prop_assert_eq!(records.len(), count(text.as_bytes()));
        for (at, length) in &records {
            prop_assert_eq!(count(&text.as_bytes()[*at..*at + *length]), 1);
        }
        let cut = config.last_record_end(text.as_bytes());
        prop_assert_eq!(count(&text.as_bytes()[..cut]) + count(&text.as_bytes()[cut..]), records.len());
    }
}

/// Rows of a text, of any number of fields, by arrow-csv with truncated rows of a hundred columns.
fn csv_rows<'a>(_: &SchemaRef, text: &'a [u8]) -> Box<dyn Iterator<Item = ()> + 'a> {
    let fields: Vec<Field> = (0..100)
        .map(|i| Field::new(format!("c{i}"), DataType::Utf8, true))
        .collect();
    let mut decoder = ReaderBuilder::new(Arc::new(Schema::new(fields)))
        .with_truncated_rows(true)
        .with_batch_size(1000)
        .build_decoder();
    let mut rest = text;
    while !rest.is_empty() {
        let read = decoder.decode(rest).expect("any text is csv");
        if read == 0 {
            break;
        }
        rest = &rest[read..];
    }
    decoder.decode(&[]).expect("end");
    let rows = decoder
        .flush()
        .expect("strings")
        .map_or(0, |rows| rows.num_rows());
    Box::new((0..rows).map(|_| ()))
}
