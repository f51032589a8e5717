use std::path::PathBuf;

use super::*;

const WHOLE: &str = "
name: orders
source: { file: { path: data/*.ndjson } }
format: { json: { columns: { ts: bigint, amount: double } } }
event_time: { column: ts, unit: s }
sink: { parquet: { path: out } }
";

fn with(more: &str) -> Result<PipelineFile> {
    parse(&format!("{WHOLE}{more}"), &|_| None)
}

fn fails(text: &str) -> Error {
    parse(text, &|_| None).expect_err(text)
}

fn hint(error: &Error) -> &str {
    error.hint_text().unwrap_or_default()
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let file = with("").expect("a small file");
    assert_eq!(file.commit.longest().to_string(), "30s");
    assert_eq!(file.commit.min_interval.to_string(), "1s");
    assert_eq!(file.commit.target_file_size.to_string(), "128MiB");
    assert_eq!(file.commit.compression.to_string(), "zstd(1)");
    assert_eq!(file.limits.memory, AutoOr::Auto);
    let time = file.event_time.as_ref().expect("event time");
    assert_eq!(
        (time.max_delay.to_string(), time.idle_timeout.to_string()),
        ("0ms".into(), "1m".into())
    );
    assert!(file.serve.is_none() && file.rejects_path().is_none());
    assert_eq!(file.checkpoint_location(), ".calve-checkpoints");
    let served = with("serve: {}")
        .expect("a server with defaults")
        .serve
        .expect("a server");
    assert_eq!(served.listen.to_string(), "127.0.0.1:8088");
    let SinkConfig::Parquet(sink) = file.sink else {
        panic!("not parquet")
    };
    assert_eq!(
        sink.time_column.as_deref(),
        Some("ts"),
        "taken from event_time"
    );
}

#[test]
fn checkpoints_lie_outside_of_tables() {
    let at = |sink: &str| {
        let text = format!("name: a\nsource: generator\nsink: {sink}");
        parse(&text, &|_| None).map(|file| file.checkpoint_location())
    };
    let iceberg = "{ iceberg: { catalog: { sqlite: c.db, warehouse: lake/ }, table: a.b } }";
    assert_eq!(at(iceberg).expect("iceberg"), "lake/.calve-checkpoints");
    assert_eq!(
        at("{ parquet: { path: /d/out/ } }").expect("parquet"),
        "/d/.calve-checkpoints"
    );
    assert_eq!(
        at("{ parquet: { path: /d/out } }\ncheckpoint: { path: s3://b/c }").expect("url"),
        "s3://b/c"
    );
    for inside in ["/d/out", "/d/out/x", "/d/./x/../out/y", "file:///d/out/z"] {
        let error = at(&format!(
            "{{ parquet: {{ path: /d/out }} }}\ncheckpoint: {{ path: \"{inside}\" }}"
        ));
        assert!(
            error.expect_err(inside).message().contains("inside"),
            "{inside}"
        );
    }
    at("{ parquet: { path: . } }").expect_err("the working directory is the table");
    at("{ parquet: { path: out } }\nrejects: { path: out/rejects }")
        .expect_err("rejects in the table");
    at("{ parquet: { path: out } }\nrejects: { path: out-rejects }")
        .expect("only the name begins alike");
}

#[test]
fn tables_in_object_stores_have_a_place_beside_them() {
    let at = |sink: &str| {
        parse(
            &format!("name: a\nsource: generator\nsink: {sink}"),
            &|_| None,
        )
    };
    let file = at("{ parquet: { path: \"s3://data/lake/out/\" } }").expect("a URL");
    assert_eq!(
        file.checkpoint_location(),
        "s3://data/lake/.calve-checkpoints"
    );
    assert_eq!(file.rejects_location(), "s3://data/lake/.calve-rejects");
    for (sink, why) in [
        ("{ parquet: { path: \"s3://data\" } }", "whole bucket"),
        ("{ parquet: { path: \"s3://data/\" } }", "whole bucket"),
        (
            "{ parquet: { path: \"https://host/out\" } }",
            "cannot be written to",
        ),
        (
            "{ parquet: { path: \"ftp://host/out\" } }",
            "not a URL that is known",
        ),
        (
            "{ parquet: { path: \"s3://data/out\" } }\nrejects: { path: \"s3://data/out/rejects\" }",
            "inside the table",
        ),
    ] {
        let error = at(sink).expect_err(why);
        assert!(error.message().contains(why), "{error:?}");
    }
}

#[test]
fn options_of_stores_are_checked_and_never_shown() {
    let with = |stores: &str| {
        let text = format!(
            "name: a\nsource: generator\nsink: {{ parquet: {{ path: out }} }}\nstores: {stores}"
        );
        parse(&text, &|_| None)
    };
    let file = with(
        "{ \"s3://data\": { access_key_id: SEEN1, secret_access_key: SEEN2, allow_http: true, timeout: 30s } }",
    )
    .expect("stores");
    let shown = format!("{file:?} {}", serde_json::to_string(&file).expect("JSON"));
    assert!(!shown.contains("SEEN"), "{shown}");
    let named = file.stores.named();
    assert_eq!(named[0].0, "s3://data");
    assert!(
        named[0]
            .1
            .contains(&("allow_http".to_owned(), "true".to_owned()))
    );
    let error = with("{ \"s3://data\": { secret_acces_key: SEEN } }").expect_err("misspelt");
    assert!(
        hint(&error).starts_with("did you mean `secret_access_key`"),
        "{error:?}"
    );
    assert!(!format!("{error:?}").contains("SEEN"));
    let error = with("{ data: { region: x } }").expect_err("no URL");
    assert!(
        error.message().contains("not the beginning of a URL"),
        "{error:?}"
    );
    with("{ \"s3://data\": { region: [x] } }").expect_err("a list is no value");
}

#[test]
fn unknown_keys_name_the_path_and_the_nearest() {
    for (more, path, nearest) in [
        ("comit: { every: 5s }", "path=comit", "`commit`"),
        ("commit: { evry: 5s }", "path=commit.evry", "`every`"),
        ("limits: { memroy: 1GiB }", "path=limits.memroy", "`memory`"),
        (
            "transform: { sql: SELECT 1, tabels: {} }",
            "path=transform.tabels",
            "`tables`",
        ),
        (
            "transform: { sql: S, tables: { a: { fiel: x } } }",
            "path=transform.tables.a.fiel",
            "`file`",
        ),
    ] {
        let error = with(more).expect_err(more);
        assert_eq!(error.kind(), calve_engine::ErrorKind::Config);
        assert!(error.message().contains(path), "{error:?}");
        assert!(
            hint(&error).starts_with(&format!("did you mean {nearest}")),
            "{error:?}"
        );
    }
    let error = fails("name: a\nsource: { file: { paht: x } }\nsink: { parquet: { path: o } }");
    assert!(
        error.message().ends_with("path=source.file.paht"),
        "{error:?}"
    );
    assert!(
        hint(&error).contains("`path`") && hint(&error).contains("poll_interval"),
        "{error:?}"
    );
    let error = fails("name: a\nsource: { fil: { path: x } }\nsink: { parquet: { path: o } }");
    assert!(
        error.message().ends_with("path=source.fil") && hint(&error).contains("`file`"),
        "{error:?}"
    );
    let error = fails("name: a\nsource: generator\nsink: { parquett: { path: o } }");
    assert!(
        error.message().ends_with("path=sink.parquett") && hint(&error).contains("`parquet`"),
        "{error:?}"
    );
    let error = fails("name: a\nsource: generatr\nsink: { parquet: { path: o } }");
    assert!(
        error.message().contains("path=source") && hint(&error).contains("`generator`"),
        "{error:?}"
    );
    let error = with("zzzzzz: 1").expect_err("nothing is like it");
    assert!(
        hint(&error).starts_with("known here: name, source"),
        "{error:?}"
    );
}

#[test]
fn wrong_values_and_missing_keys_name_the_path() {
    for (more, says) in [
        ("commit: { every: 10 }", "path=commit.every"),
        ("commit: { every: 10 parsecs }", "path=commit.every"),
        ("commit: { compression: zip }", "path=commit.compression"),
        ("limits: { batchers: many }", "path=limits.batchers"),
        ("limits: { batchers: 0 }", "limits.batchers"),
        ("limits: { batch_rows: 0 }", "limits.batch_rows"),
        ("limits: { memory: 1KiB }", "limits.memory"),
        (
            "commit: { every: 1s, min_interval: 2s }",
            "commit.min_interval",
        ),
        ("monitor: [a]", "path=monitor"),
        ("monitor: { a: [] }", "path=monitor.a"),
        ("rejects: {}", "path=rejects.path"),
        ("serve: { listen: here }", "path=serve.listen"),
        ("serve: { listen: \"0.0.0.0:80\" }", "serve.listen"),
        ("transform: { sql: \" \" }", "transform.sql"),
        ("checkpoint: { path: \"\" }", "checkpoint.path"),
        (
            "checkpoint: { path: a, sql: \"sqlite:b\" }",
            "both path and sql",
        ),
        ("checkpoint: { sql: \"mysql://h/d\" }", "checkpoint.sql"),
        (
            "checkpoint: { sql: \"sqlite::memory:\" }",
            "not a URL of a SQL",
        ),
    ] {
        let error = with(more).expect_err(more);
        assert!(error.message().contains(says), "{more}: {error:?}");
        assert_eq!(error.kind().decide().1, 2, "{more}: {error:?}");
    }
    let error = fails("name: a\nsource: generator");
    assert!(error.message().contains("path=sink"), "{error:?}");
    let error = fails("name: a\nsource: generator\nsink: {}");
    assert!(error.message().contains("path=sink"), "{error:?}");
    let error = fails("name: a\nsource: { file: {} }\nsink: { parquet: { path: o } }");
    assert!(
        error.message().contains("path=source.file.path"),
        "{error:?}"
    );
    for text in ["", "- a", "just text"] {
        assert!(fails(text).message().contains("not a map"), "{text}");
    }
    let text = WHOLE.replace("column: ts", "column: tz");
    assert!(fails(&text).message().contains("event_time.column"));
    let text = WHOLE.replace(", unit: s", "");
    assert!(fails(&text).message().contains("event_time.unit"));
}

#[test]
fn a_catalog_is_in_one_place_and_its_secrets_are_hidden() {
    let with = |catalog: &str, more: &str| {
        let table = format!("{{ iceberg: {{ catalog: {catalog}, table: a.b }} }}");
        let text = format!("name: a\nsource: generator\nsink: {table}\n{more}");
        parse(&text, &|_| None)
    };
    let checkpoint = "checkpoint: { path: \"s3://b/c\" }";
    let rest = "{ rest: { uri: \"https://h\", credential: \"id:SEEN\", headers: { x: SEEN } } }";
    let file = with(rest, checkpoint).expect("a REST catalog");
    assert_eq!(file.rejects_location(), "s3://b/.calve-rejects");
    let shown = format!("{file:?}{}", serde_json::to_string(&file).expect("JSON"));
    assert!(!shown.contains("SEEN"), "{shown}");
    let sql = "{ sql: \"postgres://u:SEEN@h/d\", warehouse: \"s3://b/lake\" }";
    let file = with(sql, "").expect("a SQL catalog");
    assert_eq!(file.checkpoint_location(), "s3://b/lake/.calve-checkpoints");
    assert!(!format!("{file:?}").contains("SEEN"));
    for (catalog, says) in [
        (rest, "path=checkpoint"),
        ("{ warehouse: lake }", "exactly one"),
        ("{ sqlite: c.db }", "catalog.warehouse"),
        ("{ sqlite: c.db, sql: \"postgres://h\" }", "exactly one"),
        (
            "{ sqlite: c.db, warehouse: \"https://h/x\" }",
            "cannot be written",
        ),
        (
            "{ rest: { uri: \"https://h\", token: t, sigv4: {} } }",
            "exclude each other",
        ),
        (
            "{ rest: { uri: \"https://h\", sigv4: { access_key_id: k } } }",
            "go together",
        ),
    ] {
        let error = with(catalog, "").expect_err(catalog);
        assert!(error.message().contains(says), "{catalog}: {error:?}");
    }
}

#[test]
fn names_are_folders_and_no_more() {
    for bad in ["Orders", "\"\"", "a/b", "..", "a b", "-a", "é"] {
        let error = fails(&WHOLE.replace("name: orders", &format!("name: {bad}")));
        assert!(error.message().contains("path=name"), "{error:?}");
    }
    let error = fails(&WHOLE.replace("name: orders", "name: My Orders"));
    assert!(hint(&error).ends_with("`my-orders`"), "{error:?}");
}

#[test]
fn yaml_errors_have_line_and_column() {
    let error = fails("name: a\nsource: { file: [ }\n");
    assert!(error.message().contains("line=2 column="), "{error:?}");
    let error = fails("name: a\nname: b\nsource: generator\n");
    assert!(
        error
            .message()
            .starts_with("a key is there twice: key=\"name\""),
        "{error:?}"
    );
    let error = fails("name: a\nserve: { token: ${TOKEN} }\n");
    assert!(
        error.message().contains("line=2") && hint(&error).contains("quotes"),
        "{error:?}"
    );
}

#[test]
fn variables_are_put_in_as_documented() {
    let lookup = |name: &str| match name {
        "OUT" => Some("lake".to_owned()),
        "EMPTY" => Some(String::new()),
        "EVIL" => Some("x\ncommit: { every: 1s }".to_owned()),
        "RATE" => Some("2500".to_owned()),
        _ => None,
    };
    let path = |text: &str| {
        let text = WHOLE.replace("path: out", &format!("path: '{text}'"));
        parse(&text, &lookup).map(|file| match file.sink {
            SinkConfig::Parquet(sink) => (sink.path, file.commit.longest().to_string()),
            SinkConfig::Iceberg(_) => panic!("not parquet"),
        })
    };
    for (text, becomes) in [
        ("${OUT}", "lake"),
        ("a/${OUT}-${OUT}/b", "a/lake-lake/b"),
        ("${NONE:-else}", "else"),
        ("${EMPTY:-else}", "else"),
        ("${OUT:-else}", "lake"),
        ("${OUT:?why}", "lake"),
        ("$${OUT}", "${OUT}"),
        ("$OUT {OUT}", "$OUT {OUT}"),
        ("${EVIL}", "x\ncommit: { every: 1s }"),
    ] {
        let (path, every) = path(text).expect(text);
        assert_eq!((path.as_str(), every.as_str()), (becomes, "30s"));
    }
    let error = path("${NONE}").expect_err("not set");
    assert!(
        error
            .message()
            .ends_with("path=sink.parquet.path variable=NONE"),
        "{error:?}"
    );
    assert_eq!(
        hint(&path("${NONE:?say where}").expect_err("not set")),
        "say where"
    );
    assert_eq!(
        hint(&path("${EMPTY:?say where}").expect_err("empty")),
        "say where"
    );
    for bad in ["${OUT", "${}", "${A B}", "${1A}", "${OUT:+x}", "${OUT:}"] {
        assert_eq!(
            path(bad).expect_err(bad).kind(),
            calve_engine::ErrorKind::Config
        );
    }
    let generator = "name: a\nsource: { generator: { rate: \"${RATE}\", count: \"${RATE}\" } }\nsink: { parquet: { path: o } }";
    let file = parse(generator, &lookup).expect("numbers may come from variables");
    let calve_connect::sources::SourceConfig::Generator(config) = file.source else {
        panic!("not the generator")
    };
    assert_eq!((config.rate, config.count), (Some(2500.0), Some(2500)));
    let quoted =
        "name: a\nsource: { generator: { rate: \"2500\" } }\nsink: { parquet: { path: o } }";
    assert!(
        parse(quoted, &lookup).is_err(),
        "without a variable text stays text"
    );
}

#[test]
fn what_came_from_variables_and_secrets_is_not_shown() {
    let lookup = |_: &str| Some("hunter2 \"x\"".to_owned());
    for more in [
        "commit: { every: \"${S}\" }",
        "limits: { batchers: \"${S}\" }",
        "limits: { batch_rows: \"${S}\" }",
        "serve: { listen: \"${S}\" }",
        "rejects: { path: \"out/${S}\" }",
    ] {
        let error = parse(&format!("{WHOLE}{more}"), &lookup).expect_err(more);
        let shown = format!("{error:?} {error} {}", hint(&error));
        assert!(!shown.contains("hunter2"), "{more}: {shown}");
    }
    let number = |_: &str| Some("7".to_owned());
    let error =
        parse(&format!("{WHOLE}limits: {{ memory: \"${{S}}\" }}"), &number).expect_err("too small");
    assert!(error.message().contains("memory=***"), "{error:?}");
    assert!(
        error.message().contains("least=32MiB"),
        "a part of a word stays: {error:?}"
    );

    let more = "serve: { listen: \"0.0.0.0:80\", token: \"${S}\" }";
    let file = parse(&format!("{WHOLE}{more}"), &lookup).expect("a token");
    assert!(format!("{file:?}").contains("token: Some(***)"));
    let yaml = serde_yaml_ng::to_string(&file.serve).expect("yaml");
    assert!(!yaml.contains("hunter2"), "{yaml}");
    let token = file.serve.and_then(|serve| serve.token).expect("a token");
    assert_eq!(token.expose(), "hunter2 \"x\"");
}

#[test]
fn json_is_yaml_and_order_stays() {
    let json = r#"{"name": "a", "source": "stdin", "format": "csv",
        "monitor": {"z": "SELECT 1", "a": "SELECT 2", "m": "SELECT 3"},
        "sink": {"parquet": {"path": "o"}}}"#;
    let file = parse(json, &|_| None).expect("JSON");
    let names: Vec<&str> = file
        .monitor
        .0
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["z", "a", "m"]);
}

#[test]
fn the_examples_are_valid() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            let file = load(&path).expect("a valid example");
            // What calve writes out, it reads.
            let json = serde_json::to_string(&file).expect("JSON");
            let again = parse(&json, &|_| None).expect("the same again");
            assert_eq!(serde_json::to_string(&again).expect("JSON"), json);
            seen += 1;
        }
    }
    assert!(seen >= 3, "examples found: {seen}");
}

#[test]
fn the_pipeline_file_of_the_readme_is_valid() {
    let readme = include_str!("../../../../README.md");
    let blocks = readme.split("```yaml\n").skip(1);
    let blocks = blocks.map(|rest| rest.split("```").next().expect("a first part"));
    let files: Vec<&str> = blocks.filter(|block| block.contains("name:")).collect();
    assert!(!files.is_empty(), "the README has lost its pipeline file");
    for text in files {
        parse(text, &|_| None).expect(text);
    }
}

#[test]
fn changes_are_ordered_by_what_has_an_order() {
    let ordered = |order: &str, more: &str| {
        let text = format!(
            "name: a\nsource: {{ file: {{ path: a }} }}\nformat: {{ debezium: {{}} }}\n{more}\n\
             sink: {{ iceberg: {{ catalog: {{ sqlite: a.db, warehouse: a }}, table: a.b, \
             changes: {{ key: [id], order_by: {order} }} }} }}\n"
        );
        parse(&text, &|_| None)
    };
    for order in [
        "[]",
        "[source.lsn]",
        "[source.scn]",
        "[source.file, source.pos]",
        "[updated_at]",
    ] {
        ordered(order, "").expect(order);
    }
    let error = ordered("[source.sequence]", "").expect_err("text");
    assert!(
        error
            .to_string()
            .contains("changes.order_by=source.sequence"),
        "{error}"
    );
    assert!(hint(&error).contains("source.lsn"), "{error:?}");
    // SQL may make something else of it: the rows say it, when they are known.
    let sql = "transform: { sql: \"SELECT id, _op, 1 AS \\\"source.sequence\\\" FROM events\" }";
    let file = ordered("[source.sequence]", sql).expect("it depends");
    let rows = |of| {
        let field = arrow::datatypes::Field::new("source.sequence", of, true);
        arrow::datatypes::Schema::new(vec![field])
    };
    file.check_rows(&rows(arrow::datatypes::DataType::Int64))
        .expect("a number");
    file.check_rows(&rows(arrow::datatypes::DataType::Utf8))
        .expect_err("text");
}
