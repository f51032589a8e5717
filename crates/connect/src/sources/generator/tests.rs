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
    for config in [config(), untidy(), sizes, template.expect("template")] {
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
