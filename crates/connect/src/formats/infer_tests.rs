//! Inference: what kinds of values become which types.

use super::*;
use crate::{
    formats::{Columns, CsvConfig, JsonConfig, schema_from_json, schema_to_json, schema_to_yaml},
    sources::testing::raw,
};

fn json(text: &str) -> Result<SchemaRef> {
    infer(&FormatConfig::Json(JsonConfig::default()), &[raw(text, 0)])
}

fn columns(text: &str) -> Vec<(String, String)> {
    Columns::of(&json(text).expect("infer")).expect("names").0
}

fn one(values: &[&str]) -> String {
    let lines: Vec<_> = values.iter().map(|v| format!("{{\"a\":{v}}}\n")).collect();
    columns(&lines.concat()).remove(0).1
}

#[test]
fn kinds_of_values() {
    for (values, expected) in [
        (&["1", "null", "-2"] as &[&str], "bigint"),
        (&["1", "18446744073709551615"], "uint64"),
        (&["-1", "18446744073709551615"], "double"),
        (&["1", "2.0"], "double"),
        (&["1e3"], "double"),
        (&["true"], "boolean"),
        (&["null"], "varchar"),
        (&["\"x\"", "null"], "varchar"),
        (&["1", "\"x\""], "varchar"),
        (&["1", "true"], "varchar"),
        (&["[1]", "1"], "varchar"),
        (&["[]"], "list<varchar>"),
        (&["[]", "[1, 2.5, null]"], "list<double>"),
        (&["[[1], []]"], "list<list<bigint>>"),
        (&["{}"], "map<varchar, varchar>"),
        (
            &["{\"y\": 1}", "{\"x\": \"s\", \"y\": 2.5}"],
            "struct<y: double, x: varchar>",
        ),
        (
            &["[{\"x\": 1}, {\"odd name\": true}]"],
            "list<struct<x: bigint, \"odd name\": boolean>>",
        ),
    ] {
        assert_eq!(one(values), expected, "{values:?}");
    }
}

#[test]
fn columns_come_in_the_order_of_their_appearance_and_rubbish_is_passed_over() {
    let text = "\n  {\"z\":1,\"a\":null,\"z\":2.5}\r\nnot json\n[1]\n{\"a\":\"x\",\"m\":true} trailing\n{\"b\":1,\"a\":2}\n";
    let got = columns(text);
    assert_eq!(
        got,
        [("z", "double"), ("a", "bigint"), ("b", "bigint")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    for text in ["", "\n\n", "[1]\n2\n", "{}\n", "{\"a\":"] {
        assert!(json(text).expect_err(text).hint_text().is_some());
    }
    let deep = format!(
        "{{\"a\":{}1{}}}\n{{\"b\":1}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert_eq!(columns(&deep), [("b".to_owned(), "bigint".to_owned())]);
}

#[test]
fn only_the_first_bytes_are_a_byte_order_mark() {
    let marked = columns("\u{feff}{\"a\":1}\n\u{feff}{\"b\":1}\n");
    assert_eq!(marked, [("a".to_owned(), "bigint".to_owned())]);
    let csv = FormatConfig::Csv(CsvConfig::default());
    let schema = infer(&csv, &[raw("\u{feff}a\n1\n", 0)]).expect("infer");
    assert_eq!(Columns::of(&schema).expect("names").0, marked);
}

#[test]
fn csv_by_header_and_values() {
    let config = CsvConfig::default();
    let text = "id,price,ok,at,day,name,none\n1,2.5,true,2026-01-01T00:00:00,2026-01-01,x,\n2,3,false,,,y,\n";
    let schema = infer(&FormatConfig::Csv(config.clone()), &[raw(text, 0)]).expect("infer");
    let kinds: Vec<_> = Columns::of(&schema)
        .expect("names")
        .0
        .into_iter()
        .map(|(_, kind)| kind)
        .collect();
    assert_eq!(
        kinds,
        [
            "bigint",
            "double",
            "boolean",
            "timestamp(s)",
            "date",
            "varchar",
            "varchar"
        ]
    );
    let no_header = CsvConfig {
        header: false,
        ..config
    };
    let schema = infer(&FormatConfig::Csv(no_header), &[raw("1,x\n", 0)]).expect("infer");
    assert_eq!(schema.field(0).name(), "column_1");
}

#[test]
fn an_inferred_schema_survives_storing_and_printing() {
    let schema =
        json("{\"a b\":{\"x\":[1]},\"ts\":1,\"m\":{},\"null\":1,\"q\\\"\":\"\"}").expect("infer");
    let stored = schema_to_json(&schema).expect("store").to_string();
    let read = schema_from_json(&serde_json::from_str(&stored).expect("json")).expect("read");
    assert_eq!(read, schema);
    let yaml = schema_to_yaml(&schema, 2);
    let parsed: std::collections::BTreeMap<String, Columns> =
        serde_yaml_ng::from_str(&yaml).expect(&yaml);
    assert_eq!(
        parsed["columns"].schema().expect("schema"),
        schema,
        "{yaml}"
    );
    assert!(schema_from_json(&serde_json::json!([["a", "nonsense"]])).is_err());
}
