//! Columns that say which fields they are filled from.

use serde_json::json;

use super::*;

const EVENTS: &str = r#"
    syntax = "proto3";
    package t;
    message Asset { oneof kind { bool native = 1; Issued issued = 2; } }
    message Issued { string code = 1; }
    message Move { string from = 1; string to = 2; Asset asset = 3; string amount = 4; }
    message Burn { string from = 1; Asset asset = 2; string amount = 3; int64 count = 4; }
    message Meta { string hash = 1; uint64 id = 2; bytes key = 3; int64 ms = 4; }
    message M {
        Meta meta = 1;
        oneof event { Move move = 2; Burn burn = 3; string note = 4; }
        repeated Move more = 5;
    }
"#;

fn of(columns: &str) -> ProtobufConfig {
    config(&pool(EVENTS), &format!("columns: {{ {columns} }}"))
}

/// The message and the hint of what is wrong with columns.
fn wrong(columns: &str) -> String {
    let config = of(columns);
    let error = config.validate().and_then(|()| config.schema().map(drop));
    let error = error.expect_err(columns);
    format!("{error} | {}", error.hint_text().unwrap_or_default())
}

#[test]
fn the_first_field_that_is_there_fills_the_column() {
    let config = of("from: [move.from, burn.from], to: move.to, same: [burn.from, move.from]");
    let row = |message| row(&config, &message);
    assert_eq!(
        row(json!({ "move": { "from": "a", "to": "b" } })),
        json!({ "from": "a", "to": "b", "same": "a" })
    );
    assert_eq!(
        row(json!({ "burn": { "from": "c" } })),
        json!({ "from": "c", "to": null, "same": "c" })
    );
    assert_eq!(
        row(json!({ "burn": {} })),
        json!({ "from": "", "to": null, "same": "" }),
        "there, and at its default"
    );
    assert_eq!(
        row(json!({ "note": "x" })),
        json!({ "from": null, "to": null, "same": null })
    );
}

#[test]
fn fields_that_share_a_cell_are_undone_by_the_next_case() {
    // One list alone shares; the column `burnt` keeps the cells of the second apart.
    let shared = of("from: [move.from, burn.from]");
    let apart = of("from: [move.from, burn.from], burnt: burn.from");
    // A move with a sender, then a burn without one: the burn counts, at its default.
    let bytes: &[u8] = &[0x12, 3, 0x0a, 1, b'a', 0x1a, 0];
    for (config, more) in [(&shared, false), (&apart, true)] {
        let rows = to_json(&decode(config, &[bytes]).rows);
        assert_eq!(rows[0]["from"], json!(""), "apart={more}");
        let rows = to_json(&decode(config, &[[bytes, &[0x22, 0]].concat()]).rows);
        assert_eq!(rows[0]["from"], json!(null), "apart={more}");
        // The same case twice is merged.
        let merged = [bytes, &[0x1a, 3, 0x0a, 1, b'b'], &[0x1a, 0]].concat();
        let rows = to_json(&decode(config, &[merged]).rows);
        assert_eq!(rows[0]["from"], json!("b"), "apart={more}");
    }
}

#[test]
fn cases_have_names_of_their_own() {
    let config = of("event: { case: event }, \
         kind: { case: [move.asset.kind, burn.asset.kind], names: { native: own }, absent: none }, \
         plain: { case: event, type: varchar }, \
         code: { path: [move.asset.issued.code, burn.asset.issued.code], \
                 otherwise: { case: [move.asset.kind, burn.asset.kind], names: { native: XLM } } }");
    let row = |message| row(&config, &message);
    assert_eq!(
        row(json!({ "move": { "asset": { "native": true } } })),
        json!({ "event": "move", "kind": "own", "plain": "move", "code": "XLM" })
    );
    assert_eq!(
        row(json!({ "burn": { "asset": { "issued": { "code": "USD" } } } })),
        json!({ "event": "burn", "kind": "issued", "plain": "burn", "code": "USD" })
    );
    assert_eq!(
        row(json!({ "burn": {} })),
        json!({ "event": "burn", "kind": "none", "plain": "burn", "code": null })
    );
    assert_eq!(
        row(json!({})),
        json!({ "event": null, "kind": "none", "plain": null, "code": null })
    );
}

#[test]
fn values_are_converted_or_rejected() {
    let config = of(
        "hash: { path: meta.hash, as: hex, type: fixed_size_binary(2) }, \
         key: { path: meta.key, as: hex }, \
         id: { path: meta.id, type: bigint }, \
         wide: { path: meta.id, type: 'decimal(20, 0)' }, \
         at: { path: meta.ms, type: timestamptz(ms) }, \
         amount: { path: [move.amount, burn.amount], type: 'decimal(5, 2)' }, \
         burnt: { path: [burn.count, burn.amount], type: varchar }, \
         json: { path: move.asset, type: varchar }, \
         place: { offset: true }, nth: { ordinal: true }",
    );
    let right = json!({
        "meta": { "hash": "0aFF", "key": "AQI=", "id": "7", "ms": "1500" },
        "move": { "amount": "-12.5", "asset": { "native": true } }
    });
    assert_eq!(
        row(&config, &right),
        json!({
            "hash": "0aff", "key": "0102", "id": 7, "wide": 7, "at": "1970-01-01T00:00:01.500Z",
            "amount": -12.5, "burnt": null, "json": "{\"native\":true}", "place": 100, "nth": 0
        })
    );
    let with = |key: &str, field: &str, value: &str| {
        let mut message = right.clone();
        message[key][field] = json!(value);
        bytes_of(&config, &message)
    };
    let all = [
        bytes_of(&config, &right),
        with("meta", "hash", "0aF"),
        with("meta", "hash", "0aFF00"),
        with("meta", "hash", "0aFg"),
        with("meta", "id", "18446744073709551615"),
        with("move", "amount", "1000"),
        with("move", "amount", "1.005"),
        with("move", "amount", "secret"),
        bytes_of(&config, &right),
    ];
    let decoded = decode(&config, &all);
    assert_eq!(to_json(&decoded.rows).len(), 2);
    let errors: Vec<&str> = decoded.rejects.iter().map(|r| r.error.as_str()).collect();
    assert_eq!(
        errors,
        [
            "field=meta.hash: the value is no even number of hexadecimal digits",
            "field=meta.hash: the value has not 2 bytes",
            "field=meta.hash: the value is no even number of hexadecimal digits",
            "field=meta.id: the value does not fit bigint",
            "field=move.amount: the value does not fit decimal(5, 2)",
            "field=move.amount: the value does not fit decimal(5, 2)",
            "field=move.amount: the value does not fit decimal(5, 2)",
        ]
    );
    let offsets: Vec<u64> = decoded.rejects.iter().map(|r| r.offset).collect();
    assert_eq!(offsets, [100, 110, 110, 120, 120, 130, 130]);
    let burnt = row(&config, &json!({ "burn": { "count": "5", "amount": "1" } }));
    assert_eq!(
        burnt["burnt"],
        json!("5"),
        "the first field has no presence, so it is there"
    );
}

#[test]
fn what_is_required_and_missing_is_a_reject() {
    let config = of(
        "hash: { path: meta.hash, required: true }, id: { path: meta.id, type: uint64 not null }",
    );
    let fields = config.schema().expect("schema");
    assert!(fields.fields().iter().all(|field| !field.is_nullable()));
    let all = [bytes_of(&config, &json!({ "meta": {} })), Vec::new()];
    let decoded = decode(&config, &all);
    assert_eq!(to_json(&decoded.rows), [json!({ "hash": "", "id": 0 })]);
    assert_eq!(decoded.rejects.len(), 1);
    assert!(
        decoded.rejects[0].error.contains("field=hash"),
        "{:?}",
        decoded.rejects
    );
}

#[test]
fn lists_and_structs_stand_whole_and_beside_their_parts() {
    let config = of("more: more, move: move, from: move.from, meta: meta");
    let message = json!({ "move": { "from": "a" }, "more": [{ "to": "b" }] });
    let row = row(&config, &message);
    assert_eq!(row["from"], "a");
    assert_eq!(row["move"]["from"], "a");
    assert_eq!(row["move"]["asset"], Value::Null);
    assert_eq!(row["more"][0]["to"], "b");
    assert_eq!(row["meta"], Value::Null);
}

#[test]
fn mistakes_say_what_to_write_instead() {
    let said = [
        ("a: meta.hahs", "did you mean `hash`?"),
        ("a: event.move.from", "leave it out: `move.from`"),
        ("a: event", "`{ case: event }`"),
        ("a: { case: move }", "its oneofs: event"),
        ("a: more.from", "`more` holds many"),
        ("a: meta.hash.x", "`meta.hash` is no message"),
        ("a: { path: meta.hash, type: blob }", "as: hex"),
        (
            "a: { path: meta.hash, type: double }",
            "does not become double",
        ),
        ("a: [meta.hash, meta.id]", "type: varchar"),
        ("a: [more, meta.id]", "only one value"),
        ("a: { path: meta.hash, case: event }", "exactly one"),
        (
            "a: { path: meta.hash, absent: x }",
            "`absent` is given without `case`",
        ),
        ("a: { case: event, names: { mvoe: x } }", "names.mvoe"),
        ("a: { path: move, type: varchar }, b: move.from", "in parts"),
        ("a: { ordinal: true, type: varchar }", "a position"),
    ];
    for (columns, part) in said {
        let text = wrong(columns);
        assert!(text.contains(part), "{columns}: {text}");
    }
    let unknown = serde_yaml_ng::from_str::<ProtobufConfig>("columns: { a: { pth: x } }");
    let text = unknown.expect_err("unknown key").to_string();
    assert!(
        text.contains("unknown field `pth`, expected one of `path`"),
        "{text}"
    );
    let pool = pool(KINDS);
    let error = ProtobufConfig {
        message: Some("t.N".to_owned()),
        pool: Some(pool),
        ..ProtobufConfig::default()
    };
    assert!(error.schema().is_err());
}

#[test]
fn settings_survive_being_written_down() {
    let yaml = "{ message: t.M, proto: [t.proto], columns: { \
        a: meta.hash, b: [x, y], c: { case: event, names: { move: m }, absent: z }, \
        d: { path: q, as: hex, type: binary, required: true }, e: { offset: true } } }";
    let config: ProtobufConfig = serde_yaml_ng::from_str(yaml).expect("yaml");
    let text = serde_json::to_string(&config).expect("JSON");
    let again: ProtobufConfig = serde_json::from_str(&text).expect(&text);
    assert_eq!(again, config);
}
