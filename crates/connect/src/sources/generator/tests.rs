//! The generator: the same events from any offset, and events that decode.

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type};

use super::*;
use crate::{
    formats::{FormatConfig, JsonConfig},
    sources::{
        SourceConfig,
        testing::{account, block_on, offsets_after, read, text},
    },
    units::{ByteSize, Span},
};

fn config() -> GeneratorConfig {
    GeneratorConfig {
        count: Some(10_000),
        batch_bytes: ByteSize(100_000),
        ..GeneratorConfig::default()
    }
}

fn events(config: &GeneratorConfig, from: &Offsets) -> Vec<RawBatch> {
    let mut source = GeneratorSource::new(config).expect("generator");
    read(&mut source, from).expect("read")
}

fn untidy() -> GeneratorConfig {
    GeneratorConfig {
        out_of_order: Some(Span(Duration::from_secs(30))),
        late: Some(Late {
            fraction: 0.1,
            by: Span(Duration::from_hours(1)),
        }),
        duplicates: 0.05,
        malformed: 0.05,
        partitions: 3,
        seed: 7,
        ..config()
    }
}

#[test]
fn any_offset_gives_the_same_events_again() {
    let template = serde_json::from_str(
        r#"{"kind":"template","count":9000,"fields":{"id":{"sequence":1},"who":{"choice":["a","b\"c"]},
            "x":{"uniform":[-1,1]},"n":{"integer":[-5,5]},"at":{"timestamp":"iso"},"ok":"bool","u":"uuid",
            "k":{"constant":{"a":[1]}}}}"#,
    );
    let sizes = GeneratorConfig {
        kind: GeneratorKind::Sizes,
        ..config()
    };
    let disordered = changes("partitions: 2, duplicates: 0.1, changes: {keys: 700, disorder: 100}");
    for config in [
        config(),
        untidy(),
        sizes,
        template.expect("template"),
        disordered,
    ] {
        let all = events(&config, &Offsets::default());
        let count = config.count.expect("bounded") as usize;
        assert_eq!(text(&all).lines().count(), count);
        for i in 0..=all.len() {
            // Other batch sizes after the restart make no difference.
            let other = GeneratorConfig {
                batch_bytes: ByteSize(33_333),
                ..config.clone()
            };
            let from = offsets_after(&all[..i]);
            let rest = events(&other, &from);
            let mut offsets = from;
            for raw in &rest {
                account(&mut offsets, raw);
            }
            let parts: Vec<_> = offsets.0.keys().cloned().collect();
            for part in parts {
                let of = |batches: &[RawBatch]| {
                    text(
                        &batches
                            .iter()
                            .filter(|b| b.partition == part)
                            .cloned()
                            .collect::<Vec<_>>(),
                    )
                };
                assert!(of(&all[..i]) + &of(&rest) == of(&all), "{part} at {i}");
            }
        }
    }
}

#[test]
fn sales_are_what_they_should_be() {
    let source = SourceConfig::Generator(config());
    let schema = source.known_schema().expect("schema").expect("known");
    let mut decoder = FormatConfig::Json(JsonConfig::default())
        .decoder(schema)
        .expect("decoder");
    let mut rows = 0;
    for raw in events(&config(), &Offsets::default()) {
        let decoded = decoder.decode(&raw).expect("decode");
        assert_eq!(decoded.rejects, []);
        rows += decoded.rows.num_rows();
        let users = decoded
            .rows
            .column_by_name("user_id")
            .expect("column")
            .as_primitive::<Int64Type>();
        assert!(
            users
                .values()
                .iter()
                .all(|user| (1..=100_000).contains(user))
        );
        let amounts = decoded
            .rows
            .column_by_name("amount")
            .expect("column")
            .as_primitive::<Float64Type>();
        assert!(
            amounts
                .values()
                .iter()
                .all(|amount| (0.0..100.0).contains(amount))
        );
        let regions = decoded
            .rows
            .column_by_name("region")
            .expect("column")
            .as_string::<i32>();
        let us = regions
            .iter()
            .filter(|region| *region == Some("us"))
            .count();
        assert!(
            (us as f64 / regions.iter().count() as f64 - 0.4).abs() < 0.08,
            "{us}"
        );
    }
    assert_eq!(rows, 10_000);
}

#[test]
fn untidy_events_have_the_faults_that_were_asked_for() {
    let config = GeneratorConfig {
        partitions: 1,
        ..untidy()
    };
    let all = text(&events(&config, &Offsets::default()));
    let lines: Vec<_> = all.lines().collect();
    let bad = lines
        .iter()
        .filter(|line| serde_json::from_str::<serde_json::Value>(line).is_err())
        .count();
    assert!((350..650).contains(&bad), "{bad}");
    let twice = lines.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!((300..700).contains(&twice), "{twice}");
    let seeds = GeneratorConfig { seed: 8, ..config };
    assert_ne!(text(&events(&seeds, &Offsets::default())), all);
}

#[test]
fn a_rate_is_kept_and_a_dropped_call_loses_nothing() {
    let config = GeneratorConfig {
        rate: Some(20_000.0),
        count: Some(4_000),
        ..GeneratorConfig::default()
    };
    let mut source = GeneratorSource::new(&config).expect("generator");
    let mut all = Vec::new();
    let elapsed = block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        let began = Instant::now();
        loop {
            // Every call is dropped a few times before it is left to finish.
            let Ok(event) = tokio::time::timeout(Duration::from_millis(7), source.next()).await
            else {
                continue;
            };
            match event.expect("next") {
                SourceEvent::Batch(raw) => all.push(raw),
                SourceEvent::End => return began.elapsed(),
                SourceEvent::Discovered(_) | SourceEvent::Idle | SourceEvent::Progress(_) => {}
            }
        }
    });
    // Slower is the machine's business; faster would not be the rate.
    assert!(elapsed >= Duration::from_millis(195), "{elapsed:?}");
    let flat_out = GeneratorConfig {
        rate: None,
        ..config
    };
    assert_eq!(text(&all), text(&events(&flat_out, &Offsets::default())));
    offsets_after(&all);
}

#[test]
fn other_settings_under_an_old_offset_are_refused() {
    let all = events(&config(), &Offsets::default());
    let from = offsets_after(&all[..1]);
    let other = GeneratorConfig {
        kind: GeneratorKind::Sizes,
        ..config()
    };
    assert_ne!(other.fingerprint(), config().fingerprint());
    let mut source = GeneratorSource::new(&other).expect("generator");
    assert!(read(&mut source, &from).is_err());
}

fn changes(yaml: &str) -> GeneratorConfig {
    serde_yaml_ng::from_str(&format!("{{kind: changes, count: 40000, {yaml}}}")).expect(yaml)
}

/// Operation, id, seq and region of each line, in their order.
fn parsed(config: &GeneratorConfig) -> Vec<(String, u64, u64, Option<String>)> {
    let text = text(&events(config, &Offsets::default()));
    let parse = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let number = |name: &str| value[name].as_u64().expect("a number");
        (
            text("op").expect("op"),
            number("id"),
            number("seq"),
            text("region"),
        )
    };
    text.lines().map(parse).collect()
}

#[test]
fn changes_are_those_of_a_table() {
    use std::collections::HashMap;
    let config = changes(
        "partitions: 2, changes: {keys: 3000, hot_keys: 20, hot_share: 0.3, deletes: 0.2, moves: 0.3}",
    );
    let mut table: HashMap<u64, String> = HashMap::new();
    let (mut seen, mut hot) = (HashMap::<u64, u64>::new(), 0);
    let (mut inserts, mut deletes, mut updates, mut moves) = (0, 0, 0, 0_u64);
    for (op, id, seq, region) in parsed(&config) {
        assert!(id < 3000, "{id}");
        let last = seen.insert(id, seq);
        assert!(last.is_none_or(|last| last < seq), "seq rises for each key");
        hot += u64::from(id < 20);
        match op.as_str() {
            "insert" => {
                assert!(table.insert(id, region.expect("region")).is_none(), "{id}");
                inserts += 1;
            }
            "update" => {
                let before = table.insert(id, region.clone().expect("region"));
                moves += u64::from(before.expect("a row to update") != region.expect("region"));
                updates += 1;
            }
            "delete" => {
                assert!(table.remove(&id).is_some() && region.is_none());
                deletes += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((seen.len(), hot), (3000, 12_000));
    assert!(
        inserts > 3000 + 3000 && inserts < 12_000,
        "re-inserts: {inserts}"
    );
    assert!((5000..9000).contains(&deletes), "{deletes}");
    assert!(
        (0.15..0.4).contains(&(moves as f64 / f64::from(updates))),
        "{moves} of {updates}"
    );
}

#[test]
fn disorder_keeps_its_bounds() {
    let keys = "keys: 500, hot_keys: 5";
    let order = |yaml: &str| -> Vec<(u64, u64)> {
        let rows = parsed(&changes(&format!("changes: {{{keys}, {yaml}}}")));
        rows.into_iter().map(|(_, id, seq, _)| (id, seq)).collect()
    };
    let straight = order("disorder: 0");
    assert!(straight.windows(2).all(|two| two[0].1 < two[1].1));
    for (yaml, within_keys) in [
        ("disorder: 64", false),
        ("disorder: 64, disorder_within_keys: true", true),
    ] {
        let rows = order(yaml);
        let away = |(at, row): (usize, &(u64, u64))| row.1.abs_diff(at as u64 + 1);
        let far = rows.iter().enumerate().map(away).max();
        assert!(far.is_some_and(|far| (32..64).contains(&far)), "{far:?}");
        let mut sorted = rows.clone();
        sorted.sort_unstable_by_key(|row| row.1);
        assert_eq!(sorted, straight, "the same changes");
        let mut last = std::collections::HashMap::new();
        let turned = rows.iter().any(|(id, seq)| {
            let before = last.insert(id, seq);
            before.is_some_and(|before| before > seq)
        });
        assert_eq!(turned, within_keys);
    }
}

#[test]
fn envelopes_hold_the_same_changes() {
    let settings = |envelope: &str| {
        changes(&format!(
            "changes: {{keys: 300, deletes: 0.2, disorder: 9, envelope: {envelope}}}"
        ))
    };
    let plain = parsed(&settings("plain"));
    let format: FormatConfig =
        serde_yaml_ng::from_str("debezium: {metadata: [source.lsn]}").expect("format");
    let source = SourceConfig::Generator(settings("debezium"));
    source.validate(&format).expect("fits");
    assert!(source.known_schema().expect("schema").is_none());
    let batches = events(&settings("debezium"), &Offsets::default());
    let schema = crate::formats::infer::infer(&format, &batches).expect("infer");
    let mut decoder = format.decoder(schema).expect("decoder");
    let mut row = 0;
    for raw in batches {
        let decoded = decoder.decode(&raw).expect("decode");
        assert_eq!(decoded.rejects, []);
        let numbers = |name: &str| {
            let column = decoded.rows.column_by_name(name).expect(name);
            column.as_primitive::<Int64Type>().values().to_vec()
        };
        let ops = decoded.rows.column_by_name("_op").expect("op");
        let ops = arrow::compute::cast(ops, &arrow::datatypes::DataType::Utf8).expect("text");
        for ((id, lsn), op) in numbers("id")
            .into_iter()
            .zip(numbers("source.lsn"))
            .zip(ops.as_string::<i32>())
        {
            let word = match op {
                Some("c") => "insert",
                Some("u") => "update",
                _ => "delete",
            };
            let (same, key, seq, _) = &plain[row];
            assert_eq!(
                (same.as_str(), *key as i64, *seq as i64 * 296),
                (word, id, lsn)
            );
            row += 1;
        }
    }
    assert_eq!(row, plain.len());
    let json = FormatConfig::Json(JsonConfig::default());
    assert!(
        SourceConfig::Generator(settings("debezium"))
            .validate(&json)
            .is_ok()
    );
    assert!(
        SourceConfig::Generator(settings("plain"))
            .validate(&format)
            .is_err()
    );
    assert!(changes("changes: {deletes: 0.6}").validate().is_err());
    assert!(changes("changes: {disorder: 5000}").validate().is_err());
}
