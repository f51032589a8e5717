use arrow::array::{Array, AsArray};
use calve_engine::Decoder;
use calve_model::{OffsetRange, SourcePartition};

use super::*;
use crate::formats::{Evolve, FormatConfig, schema_from_json, schema_to_json};

fn decoder(format: &str, columns: &[(&str, &str)], evolve: Evolve) -> Box<dyn Decoder> {
    let format: FormatConfig = serde_yaml_ng::from_str(format).expect("a format");
    let mut columns = columns.to_vec();
    columns.push(("_rescued", "varchar"));
    let schema = schema_from_json(&serde_json::json!(columns)).expect("types");
    format
        .decoder_with(schema, Some(evolve), Some("_rescued"))
        .expect("a decoder")
}

fn raw(lines: &str) -> RawBatch {
    RawBatch {
        partition: SourcePartition::new("a.json"),
        range: OffsetRange {
            from: 100,
            to: 100 + lines.len() as u64,
        },
        payload: Payload::Bytes(lines.to_owned().into()),
        last: false,
        tag: None,
        arrival: None,
    }
}

/// What stands in `_rescued`, row by row, and the rejects.
fn read(decoder: &mut dyn Decoder, lines: &str) -> (Vec<Option<String>>, Vec<(u64, String)>) {
    let decoded = decoder.decode(&raw(lines)).expect("decoded");
    let column = decoded.rows.column_by_name("_rescued").expect("the column");
    let column = column.as_string::<i32>();
    (
        column.iter().map(|one| one.map(str::to_owned)).collect(),
        decoded
            .rejects
            .into_iter()
            .map(|r| (r.offset, r.error))
            .collect(),
    )
}

#[test]
fn what_does_not_fit_is_kept_as_it_was_written() {
    let columns = [
        ("id", "bigint not null"),
        ("n", "int"),
        ("at", "struct<zip: int>"),
        ("all", "list<struct<x: int>>"),
    ];
    let mut decoder = decoder("json: {}", &columns, Evolve::STRICT);
    let lines = [
        r#"{"id": 1, "n": 2}"#,
        r#"{"id": 2, "n": "two", "more": 1.50, "at": {"zip": 3, "town": "\u00e4"}}"#,
        "",
        r#"{"id": "x", "n": 3}"#,
        "no object",
        r#"{"id": 3, "n": 99999999999, "all": [{"x": 1}, {"y": 2}], "nothing": null}"#,
        r#"{"id": 4, "at": {"zip": "12345678901234567890123"}}"#,
    ];
    let text = lines.join("\n");
    let (rescued, rejects) = read(&mut *decoder, &text);
    let expected = [
        None,
        Some(r#"{"n":"two","more":1.50,"at":{"town":"\u00e4"}}"#),
        Some(r#"{"n":99999999999,"all":[{"x": 1}, {"y": 2}]}"#),
        Some(r#"{"at":{"zip": "12345678901234567890123"}}"#),
    ];
    assert_eq!(rescued, expected.map(|one| one.map(str::to_owned)));
    let at = |n: usize| 100 + lines[..n].iter().map(|line| line.len() + 1).sum::<usize>() as u64;
    let offsets: Vec<u64> = rejects.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [at(3), at(4)], "{rejects:?}");
    assert!(rejects[0].1.contains("field=id"), "{rejects:?}");

    let decoded = decoder.decode(&raw(&text)).expect("decoded");
    assert!(decoder.evolved(&raw(&text)).expect("fine").is_none());
    let n = decoded.rows.column_by_name("n").expect("a column");
    assert!(n.is_null(1) && n.is_valid(0) && n.is_null(2));
    let all = decoded.rows.column_by_name("all").expect("a column");
    assert_eq!(
        all.as_list::<i32>().value_length(2),
        2,
        "the known part is there, too"
    );
    let found = decoder.locate(&raw(&text), &decoded, 2);
    assert_eq!((found.offset, &*found.raw), (at(5), lines[5].as_bytes()));

    // Nothing of the kind: no row says anything.
    assert_eq!(read(&mut *decoder, lines[0]), (vec![None], vec![]));
}

#[test]
fn new_fields_become_columns_first_where_they_may() {
    let mut adding = decoder("json: {}", &[("id", "bigint")], Evolve::default());
    let lines = "{\"id\": 1, \"new\": true}\n";
    read(&mut *adding, lines);
    let evolved = adding
        .evolved(&raw(lines))
        .expect("fine")
        .expect("a column more");
    assert_eq!(
        schema_to_json(&evolved).expect("types"),
        serde_json::json!([
            ["id", "bigint"],
            ["_rescued", "varchar"],
            ["new", "boolean"]
        ])
    );
    let mut declared = decoder(
        "json: { columns: { id: bigint } }",
        &[("id", "bigint")],
        Evolve::default(),
    );
    let (rescued, _) = read(&mut *declared, lines);
    assert_eq!(rescued, [Some(r#"{"new":true}"#.to_owned())]);
}
