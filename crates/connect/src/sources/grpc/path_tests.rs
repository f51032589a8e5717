//! Numbers of messages, and of what is no message.

use prost_reflect::{DynamicMessage, Value, prost::Message};

use super::*;
use crate::sources::testing::pool_of;

const PROTO: &str = r#"
        syntax = "proto3";
        package p;
        import "google/protobuf/timestamp.proto";
        message Event {
            string noise = 15;
            Meta meta = 1;
            repeated uint32 many = 3;
            uint64 top = 4;
            optional uint32 maybe = 5;
        }
        message Meta {
            uint32 ledger = 1;
            google.protobuf.Timestamp closed_at = 2;
            sint64 zigzag = 3;
            sfixed32 fixed = 4;
            int64 signed = 5;
            fixed64 wide = 6;
            string text = 20;
        }
    "#;

fn event() -> MessageDescriptor {
    let pool = pool_of(PROTO);
    pool.get_message_by_name("p.Event").expect("the message")
}

fn json(text: &str) -> Vec<u8> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let message = DynamicMessage::deserialize(event(), &mut deserializer).expect("a message");
    message.encode_to_vec()
}

fn read(path: &str, bytes: &[u8]) -> Result<u64, Unreadable> {
    FieldPath::compile(&event(), path).expect(path).read(bytes)
}

#[test]
fn numbers_of_every_type_are_read() {
    let bytes = json(
        r#"{"noise":"x","many":[1,2],"top":"18446744073709551615","meta":{"text":"t","ledger":7,
            "closedAt":"2024-09-02T10:50:19.5Z","zigzag":"9","fixed":8,"signed":"6","wide":"5"}}"#,
    );
    for (path, expected) in [
        ("meta.ledger", 7),
        ("meta.closed_at", 1_725_274_219_500_000_000),
        ("meta.zigzag", 9),
        ("meta.fixed", 8),
        ("meta.signed", 6),
        ("meta.wide", 5),
        ("top", u64::MAX),
    ] {
        assert_eq!(read(path, &bytes), Ok(expected), "{path}");
    }
}

#[test]
fn what_is_left_out_is_zero_or_missing() {
    assert_eq!(read("meta.ledger", &json(r#"{"meta":{}}"#)), Ok(0));
    assert_eq!(read("top", b""), Ok(0));
    let missing = Err(Unreadable::Missing);
    assert_eq!(read("meta.ledger", &json(r#"{"top":"1"}"#)), missing);
    assert_eq!(read("meta.closed_at", &json(r#"{"meta":{}}"#)), missing);
    assert_eq!(read("maybe", b""), missing);
    assert_eq!(read("maybe", &json(r#"{"maybe":0}"#)), Ok(0));
    let negative = json(r#"{"meta":{"signed":"-1","zigzag":"-1","fixed":-1}}"#);
    for path in ["meta.signed", "meta.zigzag", "meta.fixed"] {
        assert_eq!(read(path, &negative), Err(Unreadable::Range), "{path}");
    }
}

#[test]
fn the_last_counts_and_messages_are_merged() {
    let (first, second) = (
        json(r#"{"meta":{"ledger":7}}"#),
        json(r#"{"meta":{"text":"t"}}"#),
    );
    let both = [first.clone(), second].concat();
    assert_eq!(read("meta.ledger", &both), Ok(7));
    let twice = [first, json(r#"{"meta":{"ledger":8}}"#)].concat();
    assert_eq!(read("meta.ledger", &twice), Ok(8));
}

#[test]
fn no_bytes_make_it_fail_otherwise_than_by_an_error() {
    let whole = json(r#"{"noise":"x","meta":{"ledger":300,"text":"some text"}}"#);
    assert_eq!(read("meta.ledger", &whole), Ok(300));
    for length in 0..whole.len() {
        let _ = read("meta.ledger", &whole[..length]);
    }
    for at in 0..whole.len() {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] = byte;
            let ours = read("meta.ledger", &changed);
            // What protobuf reads, we read alike. (It also checks what lies beside the path.)
            if let Ok(message) = DynamicMessage::decode(event(), &*changed) {
                let meta = message
                    .get_field_by_name("meta")
                    .expect("a field")
                    .into_owned();
                let there = message.has_field_by_name("meta");
                let ledger = match &meta {
                    Value::Message(meta) if there => {
                        let ledger = meta.get_field_by_name("ledger").expect("a field");
                        ledger.as_u32().map(u64::from)
                    }
                    _ => None,
                };
                assert_eq!(
                    ours.ok().map(|n| u64::from(n as u32)),
                    ledger,
                    "at={at} byte={byte}"
                );
            }
        }
    }
    let group = [0x13, 0x08, 0x01, 0x14, 0x20, 0x05];
    assert_eq!(read("top", &group), Ok(5), "a group is skipped");
    assert_eq!(read("top", &[0x13, 0x08]), Err(Unreadable::Malformed));
    assert_eq!(read("top", &[0x00]), Err(Unreadable::Malformed));
    assert_eq!(read("top", &[0x80; 11]), Err(Unreadable::Malformed));
}

#[test]
fn wrong_paths_are_refused_by_name() {
    for (path, why) in [
        ("meta.ledgr", "unknown field"),
        ("many", "repeated"),
        ("noise", "not a whole number"),
        ("meta", "not a whole number"),
        ("top.more", "nothing is in it"),
        ("", "unknown field"),
    ] {
        let error = FieldPath::compile(&event(), path).expect_err(path);
        assert!(error.message().contains(why), "{path}: {error}");
    }
}
