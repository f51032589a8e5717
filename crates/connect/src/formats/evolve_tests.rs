use arrow::{
    array::{Int32Array, Int64Array, RecordBatch, StringArray},
    datatypes::TimeUnit,
};
use calve_engine::{Decoder, Payload};
use calve_model::{OffsetRange, SourcePartition};

use super::*;
use crate::formats::{schema_from_json, schema_to_json};

fn schema(columns: &[(&str, &str)]) -> SchemaRef {
    schema_from_json(&serde_json::json!(columns)).expect("types")
}

fn shown(schema: &SchemaRef) -> String {
    schema_to_json(schema).expect("types").to_string()
}

fn text(lines: &str) -> RawBatch {
    RawBatch {
        partition: SourcePartition::new("a.json"),
        range: OffsetRange {
            from: 0,
            to: lines.len() as u64,
        },
        payload: Payload::Bytes(lines.to_owned().into()),
        last: false,
        tag: None,
        arrival: None,
    }
}

fn decoder(format: &str, of: &SchemaRef, evolve: Evolve) -> Box<dyn Decoder> {
    let format: FormatConfig = serde_yaml_ng::from_str(format).expect("a format");
    format
        .decoder_with(Arc::clone(of), Some(evolve), None)
        .expect("a decoder")
}

/// Rows, rejects, and the schema that the batch needs.
fn read(decoder: &mut dyn Decoder, raw: &RawBatch) -> (usize, Vec<String>, Option<String>) {
    let decoded = decoder.decode(raw).expect("decoded");
    let evolved = decoder.evolved(raw).expect("a schema");
    let rejects = decoded.rejects.into_iter().map(|r| r.error).collect();
    (
        decoded.rows.num_rows(),
        rejects,
        evolved.as_ref().map(shown),
    )
}

#[test]
fn unknown_fields_of_json_become_columns_at_any_depth() {
    let of = schema(&[
        ("id", "bigint"),
        ("at", "struct<zip: bigint>"),
        ("all", "list<struct<n: bigint>>"),
    ]);
    let mut decoder = decoder("json: {}", &of, Evolve::default());
    let known = r#"{"id": 1, "at": {"zip": 2}, "all": [{"n": 1}]}"#;
    // What has no value yet has no type yet.
    let waiting = format!("{known}\n{{\"id\": 2, \"new\": null, \"more\": [], \"none\": {{}}}}\n");
    assert_eq!(read(&mut *decoder, &text(&waiting)), (2, vec![], None));
    let new = format!(
        "{known}\n{}\n",
        r#"{"id": 3, "at": {"town": "x"}, "all": [{"n": 1, "m": true}], "new": 1.5, "other": [null, "a"], "big": 18446744073709551615}"#
    );
    let (rows, rejects, evolved) = read(&mut *decoder, &text(&new));
    assert_eq!((rows, rejects), (2, vec![]));
    let evolved = evolved.expect("it has more");
    let wanted = schema(&[
        ("id", "bigint"),
        ("at", "struct<zip: bigint, town: varchar>"),
        ("all", "list<struct<n: bigint, m: boolean>>"),
        ("new", "double"),
        ("other", "list<varchar>"),
        ("big", "decimal(20, 0)"),
    ]);
    assert_eq!(evolved, shown(&wanted));
    // The keys' order was learned; the next batch says it again all the same.
    assert!(read(&mut *decoder, &text(&new)).2.is_some());
    assert_eq!(
        read(&mut *decoder, &text(&format!("{known}\n"))),
        (1, vec![], None)
    );
}

#[test]
fn strict_rejects_what_the_schema_lacks() {
    let of = schema(&[("id", "bigint"), ("at", "struct<zip: bigint>")]);
    let mut strict = decoder("json: {}", &of, Evolve::STRICT);
    let lines = "{\"id\": 1}\n{\"id\": 2, \"a \\\" b\" : 1}\n{\"id\": 3, \"at\": {\"x\": \"y\"}}\n{\"id\": 4, \"n\": null}\n";
    let (rows, rejects, evolved) = read(&mut *strict, &text(lines));
    assert_eq!((rows, evolved), (2, None));
    assert!(
        rejects[0].contains(r#"a \" b"#) && rejects[1].contains("at.x"),
        "{rejects:?}"
    );
    // Who declares columns has said what is read.
    let mut declared = decoder(
        "json: { columns: { id: bigint } }",
        &schema(&[("id", "bigint")]),
        Evolve::STRICT,
    );
    assert_eq!(read(&mut *declared, &text(lines)), (4, vec![], None));
}

#[test]
fn changes_bring_columns_by_value_or_by_schema() {
    let of = schema(&[
        ("id", "bigint"),
        ("_op", "dictionary(varchar)"),
        ("ts_ms", "bigint"),
    ]);
    let config = "debezium: { metadata: [ts_ms] }";
    let mut decoder = decoder(config, &of, Evolve::default());
    let line = r#"{"before": null, "after": {"id": 1, "n": 2}, "op": "c", "ts_ms": 5}"#;
    let (rows, rejects, evolved) = read(&mut *decoder, &text(&format!("{line}\n")));
    assert_eq!((rows, rejects), (1, vec![]));
    let wanted = schema(&[
        ("id", "bigint"),
        ("n", "bigint"),
        ("_op", "dictionary(varchar)"),
        ("ts_ms", "bigint"),
    ]);
    assert_eq!(
        evolved,
        Some(shown(&wanted)),
        "operation and metadata stay behind"
    );
}

#[test]
fn files_of_rows_bring_columns_and_wider_types() {
    let of = schema(&[("n", "int"), ("s", "varchar")]);
    let rows = RecordBatch::try_from_iter([
        ("n", Arc::new(Int64Array::from(vec![1 << 40])) as _),
        ("more", Arc::new(StringArray::from(vec!["a"])) as _),
    ])
    .expect("rows");
    let raw = RawBatch {
        payload: Payload::Rows(rows),
        range: OffsetRange { from: 0, to: 1 },
        ..text("")
    };
    let mut watching = decoder("parquet: {}", &of, Evolve::default());
    let wanted = schema(&[("n", "bigint"), ("s", "varchar"), ("more", "varchar")]);
    assert_eq!(read(&mut *watching, &raw).2, Some(shown(&wanted)));
    let only_add = Evolve {
        add: true,
        widen: false,
    };
    let mut adding = decoder("parquet: {}", &of, only_add);
    let (rows, rejects, evolved) = read(&mut *adding, &raw);
    let wanted = schema(&[("n", "int"), ("s", "varchar"), ("more", "varchar")]);
    assert_eq!((rows, rejects.len(), evolved), (0, 1, Some(shown(&wanted))));
    let mut strict = decoder("parquet: {}", &of, Evolve::STRICT);
    strict.decode(&raw).expect("decoded");
    let error = strict.evolved(&raw).expect_err("strict").to_string();
    assert!(error.contains("columns=more"), "{error}");

    let narrow = RecordBatch::try_from_iter([("n", Arc::new(Int32Array::from(vec![1])) as _)]);
    let raw = RawBatch {
        payload: Payload::Rows(narrow.expect("rows")),
        ..raw
    };
    assert_eq!(read(&mut *watching, &raw), (1, vec![], None));
}

#[test]
fn later_headers_of_csv_bring_columns() {
    let of = schema(&[("id", "bigint")]);
    let mut decoder = decoder("csv: {}", &of, Evolve::default());
    let raw = text("name,id\na,1\nb,2\n");
    let wanted = schema(&[("id", "bigint"), ("name", "varchar")]);
    assert_eq!(read(&mut *decoder, &raw), (2, vec![], Some(shown(&wanted))));
}

#[test]
fn what_may_follow_a_schema() {
    let all = Evolve::default();
    let former = schema(&[("a", "int"), ("b", "struct<x: float>")]);
    let ok = |now: &[(&str, &str)], evolve| follows(&former, &schema(now), evolve);
    assert!(ok(
        &[("a", "bigint"), ("b", "struct<x: double, y: int>")],
        all
    ));
    assert!(
        ok(&[("c", "date"), ("a", "int")], all),
        "b is gone, c is new"
    );
    assert!(!ok(&[("a", "varchar")], all));
    assert!(!ok(&[("a", "double"), ("b", "struct<x: float>")], all));
    assert!(!ok(&[("a", "int")], Evolve::STRICT));
    let widen = Evolve {
        add: false,
        widen: true,
    };
    assert!(ok(&[("a", "bigint"), ("b", "struct<x: float>")], widen));
    assert!(!ok(
        &[("a", "int"), ("b", "struct<x: float>"), ("c", "int")],
        widen
    ));
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    assert_eq!(merged_type(&DataType::Date32, &time, all), None);
}

#[test]
fn ways_are_written_as_words() {
    let parse = |text: &str| serde_yaml_ng::from_str::<Evolve>(text);
    assert_eq!(parse("strict").expect("a word"), Evolve::STRICT);
    assert_eq!(parse("[add, widen]").expect("words"), Evolve::default());
    let error = parse("[strict, add]").expect_err("it contradicts itself");
    assert!(error.to_string().contains("stands alone"), "{error}");
    parse("sometimes").expect_err("no such word");
    for text in ["strict", "add", "widen", "[add, widen]"] {
        let read = parse(text).expect("words");
        let written = serde_yaml_ng::to_string(&read).expect("YAML");
        assert_eq!(parse(&written).expect("the same again"), read);
    }
}
