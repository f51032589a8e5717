//! Requests: their fields by name, and where they go on.

use prost_reflect::DescriptorPool;

use super::*;
use crate::sources::testing::pool_of;

const PROTO: &str = r#"
    syntax = "proto3";
    package p;
    import "google/protobuf/timestamp.proto";
    message Ask {
        uint32 start = 1;
        uint32 end = 2;
        Range range = 3;
        repeated string kinds = 4;
    }
    message Range { google.protobuf.Timestamp since = 1; int64 number = 2; uint32 until_nr = 3; }
    message Event { uint32 ledger = 1; google.protobuf.Timestamp at = 2; }
    service Events {
        rpc Get (Ask) returns (stream Event);
        rpc One (Ask) returns (Event);
        rpc Both (stream Ask) returns (stream Event);
    }
"#;

fn pool() -> DescriptorPool {
    pool_of(PROTO)
}

fn config(more: &str) -> GrpcConfig {
    let yaml = format!("{{ endpoint: 'http://h:1', method: p.Events/Get, {more} }}");
    serde_yaml_ng::from_str(&yaml).expect("a config")
}

fn asking(more: &str) -> Result<Asking> {
    let config = config(more);
    Asking::new(&config, &method(&config, &pool())?)
}

fn sent(asking: &Asking, front: &Mark) -> String {
    let bytes = asking.behind(front).expect("a request");
    let ask = pool().get_message_by_name("p.Ask").expect("known");
    let message = DynamicMessage::decode(ask, bytes).expect("a message");
    serde_json::to_string(&message).expect("JSON")
}

fn mark(value: u64, whole: bool) -> Mark {
    Mark {
        value,
        count: 2,
        whole,
        ..Mark::default()
    }
}

#[test]
fn the_request_goes_on_where_the_stream_was_left() {
    let asking_from = |inclusive: bool| {
        asking(&format!(
            "request: {{ start: 5, end: 9, kinds: [a] }}, resume: {{ request_field: start, from_column: ledger, \
             inclusive: {inclusive}, until_field: end }}"
        ))
        .expect("fits")
    };
    let first = r#"{"start":5,"end":9,"kinds":["a"]}"#;
    for (inclusive, whole, from) in [
        (true, true, 7),
        (true, false, 7),
        (false, true, 7),
        (false, false, 6),
    ] {
        let asking = asking_from(inclusive);
        assert_eq!(asking.until(), Some(9));
        assert_eq!(sent(&asking, &Mark::default()), first);
        let expected = first.replace(":5", &format!(":{from}"));
        assert_eq!(
            sent(&asking, &mark(7, whole)),
            expected,
            "{inclusive} {whole}"
        );
    }
    assert_eq!(sent(&asking_from(false), &mark(0, false)), first);
    let error = asking_from(true)
        .behind(&mark(1 << 32, true))
        .expect_err("too large");
    assert!(
        error.message().contains("field=start position=4294967296"),
        "{error}"
    );
}

#[test]
fn a_timestamp_within_the_request_can_be_where_it_goes_on() {
    let stamped = asking(
        "request: { range: { number: '3' } }, resume: { request_field: range.since, from_column: at }",
    )
    .expect("fits");
    assert_eq!(stamped.until(), None);
    for until in ["range.number", "range.until_nr", "range.untilNr"] {
        let more = format!(
            "request: {{ range: {{ number: '3', untilNr: 3 }} }}, \
             resume: {{ request_field: start, from_column: ledger, until_field: {until} }}"
        );
        let bound = asking(&more).expect("fits");
        assert_eq!(bound.until(), Some(3), "{until}");
    }
    assert_eq!(
        sent(&stamped, &mark(1_725_274_219_000_000_001, true)),
        r#"{"range":{"since":"2024-09-02T10:50:19.000000001Z","number":"3"}}"#
    );
}

#[test]
fn what_does_not_fit_is_named() {
    let resume = "resume: { request_field: start, from_column: ledger }";
    for (more, why) in [
        (
            format!("request: {{ strat: 5 }}, {resume}"),
            "request.strat",
        ),
        (
            format!("request: {{ start: x }}, {resume}"),
            "request.start",
        ),
        (
            format!("request: {{ start: -1 }}, {resume}"),
            "request.start",
        ),
        (
            format!("request: {{ range: {{ nothing: 1 }} }}, {resume}"),
            "request.range",
        ),
        (
            "resume: { request_field: begin, from_column: ledger }".into(),
            "resume.request_field",
        ),
        (
            "resume: { request_field: start, from_column: ledgr }".into(),
            "resume.from_column",
        ),
        (
            "resume: { request_field: start, from_column: at }".into(),
            "not of one kind",
        ),
        (
            "resume: { request_field: kinds, from_column: ledger }".into(),
            "repeated",
        ),
    ] {
        let Err(error) = asking(&more) else {
            panic!("{more}");
        };
        assert_eq!(error.kind(), calve_engine::ErrorKind::Config);
        assert!(error.to_string().contains(why), "{more}: {error}");
    }
    let mut config = config(resume);
    for (name, why) in [
        ("p.Events/Gte", "unknown method"),
        ("p.Evnts/Get", "unknown service"),
        ("p.Events/One", "does not stream"),
        ("p.Events/Both", "does not stream"),
        ("p.Events", "not the name of a method"),
        ("p.Events/Get/x", "not the name of a method"),
    ] {
        config.method = name.to_owned();
        let error = method(&config, &pool()).expect_err(name);
        assert!(error.message().contains(why), "{name}: {error}");
        assert!(error.hint_text().is_some(), "{name}");
    }
}
