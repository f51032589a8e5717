//! The ways to write a format and a source in a pipeline file.

use super::*;
use crate::sources::{GeneratorConfig, SourceConfig};

fn format(yaml: &str) -> Result<FormatConfig, String> {
    serde_yaml_ng::from_str(yaml).map_err(|e| e.to_string())
}

#[test]
fn a_format_is_a_name_or_a_map_with_one_key() {
    let json = FormatConfig::Json(JsonConfig::default());
    for yaml in ["json", "json: {}", "{json: {}}", "json:"] {
        assert_eq!(format(yaml).as_ref(), Ok(&json), "{yaml}");
    }
    let declared =
        format("json: {columns: {ts: bigint not null, a: 'list<varchar>'}}").expect("columns");
    let schema = declared
        .declared_schema()
        .expect("declared")
        .expect("schema");
    assert_eq!(
        (
            schema.field(0).name().as_str(),
            schema.field(0).is_nullable()
        ),
        ("ts", false)
    );
    assert!(format("csv: {delimiter: ';', header: false}").is_ok());
    for (yaml, message) in [
        ("jsn", "unknown variant `jsn`"),
        ("jsn: {}", "unknown field `jsn`"),
        ("json: {column: {}}", "unknown field `column`"),
        ("{json: {}, csv: {}}", "exactly one is needed"),
        ("{}", "exactly one is needed"),
        ("json: {columns: {a: int, a: int}}", "duplicate"),
        ("[json]", "one of json, csv"),
    ] {
        let error = format(yaml).expect_err(yaml);
        assert!(
            error.contains(message) || error.contains("twice"),
            "{yaml}: {error}"
        );
    }
    let value: serde_yaml_ng::Value =
        serde_yaml_ng::from_str("csv: {columns: {b: int, a: int}}").expect("yaml");
    let format: FormatConfig = serde_yaml_ng::from_value(value).expect("from a value");
    assert_eq!(
        format
            .declared_schema()
            .expect("declared")
            .expect("schema")
            .field(0)
            .name(),
        "b"
    );
    let round = serde_json::to_string(&format).expect("json");
    assert_eq!(
        serde_json::from_str::<FormatConfig>(&round).expect(&round),
        format
    );
}

#[test]
fn a_source_is_written_the_same_way() {
    let source =
        |yaml: &str| serde_yaml_ng::from_str::<SourceConfig>(yaml).map_err(|e| e.to_string());
    assert_eq!(
        source("generator"),
        Ok(SourceConfig::Generator(GeneratorConfig::default()))
    );
    assert!(source("stdin").is_ok() && source("stdin: {}").is_ok());
    let file =
        source("file: {path: [a, b], follow: true, poll_interval: 500ms, chunk_bytes: 4MiB}")
            .expect("file");
    assert!(!file.is_bounded() && file.can_replay());
    assert!(source("file: {}").expect_err("no path").contains("path"));
    assert!(
        source("file")
            .expect_err("no settings")
            .contains("needs settings")
    );
    assert!(
        source("file: {path: a, folow: true}")
            .expect_err("typo")
            .contains("folow")
    );
    let generator = source("generator: {kind: sizes, count: 5, late: {fraction: 0.1, by: 1h}}")
        .expect("generator");
    assert!(generator.is_bounded());
    let json = FormatConfig::Json(JsonConfig::default());
    assert!(generator.validate(&json).is_ok());
    assert!(
        generator
            .validate(&FormatConfig::Csv(CsvConfig::default()))
            .is_err()
    );
    let round = serde_json::to_string(&generator).expect("json");
    assert_eq!(
        serde_json::from_str::<SourceConfig>(&round).expect(&round),
        generator
    );
    let bad = source("generator: {kind: template}").expect("reads");
    assert!(bad.validate(&json).is_err());
}

#[test]
fn the_json_schema_has_the_names_and_the_descriptions() {
    let schema = serde_json::to_string(&schemars::schema_for!(FormatConfig)).expect("json");
    assert!(
        schema.contains(r#""enum":["json","csv","parquet","arrow","debezium","protobuf"]"#),
        "{schema}"
    );
    let schema = serde_json::to_string(&schemars::schema_for!(SourceConfig)).expect("json");
    assert!(
        schema.contains("poll_interval") && schema.contains("How often to look"),
        "{schema}"
    );
}
