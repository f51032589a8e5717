//! Bytes that are wrong, or right in ways that nobody writes.

use super::*;

const TYPES: &str = r#"
    syntax = "proto3";
    package t;
    message Part { string s = 1; repeated int32 n = 2; Part again = 3; }
    message M {
        int32 a = 1;
        string s = 2;
        Part part = 3;
        repeated int32 n = 4;
        repeated Part parts = 5;
        map<string, int32> m = 6;
        oneof o { Part left = 7; string right = 8; int64 wide = 9; }
        repeated double d = 10;
    }
"#;

fn all() -> ProtobufConfig {
    config(&pool(TYPES), "{}")
}

/// The error of a message between two right ones.
fn error(config: &ProtobufConfig, bytes: &[u8]) -> String {
    let decoded = decode(config, &[&[0x08, 1], bytes, &[0x08, 2]]);
    let rows = to_json(&decoded.rows);
    assert_eq!(rows.len() + decoded.rejects.len(), 3);
    let ours: Vec<&Value> = rows.iter().map(|row| &row["a"]).collect();
    assert_eq!((ours[0], ours[ours.len() - 1]), (&json!(1), &json!(2)));
    for reject in &decoded.rejects {
        assert_eq!(reject.raw, bytes);
    }
    let error = decoded
        .rejects
        .into_iter()
        .next()
        .map(|reject| reject.error);
    error.unwrap_or_default()
}

#[test]
fn malformed_messages_are_rejects_that_name_the_field() {
    let config = all();
    let cut = "the message ends in the middle of a field";
    let cases: [(&[u8], String); 20] = [
        (&[0x08], format!("field=a: {cut}")),
        (&[0x08, 0x80], format!("field=a: {cut}")),
        (&[0x88], cut.to_owned()),
        (
            &[0x12, 2, b'x'],
            "field=s: a length reaches beyond the message".to_owned(),
        ),
        (
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
            "field=s: a length reaches beyond the message".to_owned(),
        ),
        (
            &[0x12, 1, 0xff],
            "field=s: a string is not UTF-8".to_owned(),
        ),
        (
            &[0x12, 2, 0xc3, 0x28],
            "field=s: a string is not UTF-8".to_owned(),
        ),
        (
            &[0x12, 1, 0xc3, 0x12, 0],
            "field=s: a string is not UTF-8".to_owned(),
        ),
        (
            &[0x1a, 3, 0x0a, 1, 0xff],
            "field=part.s: a string is not UTF-8".to_owned(),
        ),
        (
            &[0x1a, 2, 0x0a, 1, b'x'],
            "field=part.s: a length reaches beyond the message".to_owned(),
        ),
        (
            &[
                0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,
            ],
            "field=a: a varint is longer than 64 bits".to_owned(),
        ),
        (&[0x00, 0x00], "a field has number 0".to_owned()),
        (&[0x0f], "a field has an unknown wire type".to_owned()),
        (&[0x0c], "a group ends that did not begin".to_owned()),
        (&[0x7b, 0x08], cut.to_owned()),
        (&[0x22, 2, 1, 0x80], format!("field=n: {cut}")),
        (
            &[0x52, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            format!("field=d: {cut}"),
        ),
        (&[0x2a, 2, 0x08, 0x80], cut.to_owned()),
        (
            &[0x32, 3, 0x0a, 1, 0xff],
            "field=m.key: a string is not UTF-8".to_owned(),
        ),
        (
            &[0x80, 0x80, 0x80, 0x80, 0x10, 0],
            "a field number is too large".to_owned(),
        ),
    ];
    for (bytes, expected) in cases {
        let found = error(&config, bytes);
        assert!(
            found.contains(expected.as_str()),
            "bytes={bytes:?} found={found}"
        );
    }
}

#[test]
fn halves_of_a_character_in_two_messages_make_none() {
    let config = all();
    // The text of both together would be UTF-8.
    let decoded = decode(
        &config,
        &[[0x12, 1, 0xc3], [0x12, 1, 0xa9], [0x12, 1, b'x']],
    );
    assert_eq!(decoded.rejects.len(), 2);
    assert_eq!(to_json(&decoded.rows)[0]["s"], json!("x"));
}

#[test]
fn what_is_cleared_or_replaced_must_be_right_too() {
    let config = all();
    // `left` with bad text, then `right`; a list of it; the same text twice.
    for bytes in [
        &[0x3a, 3, 0x0a, 1, 0xff, 0x42, 0][..],
        &[0x42, 1, 0xff, 0x48, 1],
        &[0x12, 1, 0xff, 0x12, 1, b'x'],
        &[0x12, 1, b'x', 0x12, 1, 0xff],
    ] {
        assert!(
            error(&config, bytes).contains("a string is not UTF-8"),
            "{bytes:?}"
        );
    }
}

#[test]
fn nothing_remains_of_a_reject() {
    let config = all();
    // Elements of lists and maps, and then an error.
    let bad: &[u8] = &[
        0x22, 3, 1, 2, 3, 0x2a, 4, 0x12, 2, 5, 6, 0x32, 4, 0x0a, 2, b'k', b'k', 0x3a, 3, 0x12, 1,
        9, 0x08,
    ];
    let good = json!({ "a": 1, "n": [7], "parts": [{ "n": [8, 9] }, {}], "m": { "x": 1 }, "left": { "n": [4] } });
    let good = bytes_of(&config, &good);
    let decoded = decode(&config, &[good.as_slice(), bad, &good, bad, &good]);
    assert_eq!(decoded.rejects.len(), 2);
    let rows = to_json(&decoded.rows);
    let alone = to_json(&decode(&config, &[good]).rows);
    assert_eq!(rows, [alone[0].clone(), alone[0].clone(), alone[0].clone()]);
}

#[test]
fn odd_encodings_are_read_as_everybody_reads_them() {
    let config = all();
    let row = |bytes: &[u8]| {
        let decoded = decode(&config, &[bytes]);
        assert_eq!(decoded.rejects, [], "{bytes:?}");
        to_json(&decoded.rows).remove(0)
    };
    assert_eq!(row(&[0x08, 1, 0x08, 2])["a"], 2, "the last counts");
    assert_eq!(row(&[0x88, 0x80, 0x00, 7])["a"], 7, "a key that is padded");
    assert_eq!(
        row(&[
            0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1
        ])["a"],
        -1
    );
    assert_eq!(
        row(&[0x08, 0x81, 0x80, 0x80, 0x80, 0x10])["a"],
        1,
        "bits above 32 are cut"
    );
    assert_eq!(row(&[0x0a, 1, 9])["a"], 0, "of another wire type: unknown");
    assert_eq!(
        row(&[0x0b, 0x08, 1, 0x0c, 0x08, 3])["a"],
        3,
        "a group of a number that is none"
    );
    assert_eq!(
        row(&[0x20, 1, 0x22, 2, 2, 3, 0x20, 4])["n"],
        json!([1, 2, 3, 4])
    );
    assert_eq!(row(&[0x22, 0])["n"], json!([]));
    assert_eq!(
        row(&[0x1a, 5, 0x0a, 1, b'x', 0x10, 1, 0x1a, 2, 0x10, 2])["part"],
        json!({ "s": "x", "n": [1, 2], "again": null }),
        "merged"
    );
    let switched = row(&[0x3a, 5, 0x0a, 1, b'x', 0x10, 1, 0x48, 5]);
    assert_eq!(
        (&switched["o"], &switched["left"], &switched["wide"]),
        (&json!("wide"), &json!(null), &json!(5))
    );
    let back = row(&[0x3a, 5, 0x0a, 1, b'x', 0x10, 1, 0x48, 5, 0x3a, 2, 0x10, 2]);
    assert_eq!(
        (&back["o"], &back["left"], &back["wide"]),
        (
            &json!("left"),
            &json!({ "s": "", "n": [2], "again": null }),
            &json!(null)
        )
    );
    assert_eq!(
        row(&[
            0x32, 5, 0x0a, 1, b'k', 0x10, 1, 0x32, 3, 0x0a, 1, b'j', 0x32, 5, 0x0a, 1, b'k', 0x10,
            2
        ])["m"],
        json!({ "j": 0, "k": 2 }),
        "the last entry of a key"
    );
    assert_eq!(row(&[0x32, 0])["m"], json!({ "": 0 }));
}

#[test]
fn messages_nest_to_a_limit() {
    // Each level of a group that nobody knows, and of messages that are kept as bytes.
    for (levels, fine) in [(99, true), (100, true), (101, false), (100_000, false)] {
        let mut bytes = vec![0x7b; levels];
        bytes.extend(vec![0x7c; levels]);
        let decoded = decode(&all(), &[bytes]);
        assert_eq!(decoded.rejects.is_empty(), fine, "levels={levels}");
    }
}

#[test]
fn pieces_of_messages_do_not_grow_without_bound() {
    let source = r#"
        syntax = "proto3";
        package t;
        message M { M left = 1; M right = 2; }
    "#;
    let config = config(&pool(source), "{}");
    let piece: &[u8] = &[0x0a, 2, 0x0a, 0, 0x12, 2, 0x0a, 0];
    let few = decode(&config, &[piece.repeat(20)]);
    assert_eq!(few.rejects, []);
    assert_eq!(to_json(&few.rows)[0]["right"], json!("0a00".repeat(20)));
    let one_sided = decode(&config, &[piece[..4].repeat(10_000)]);
    assert_eq!(one_sided.rejects, []);
    let many = decode(&config, &[piece.repeat(10_000), piece.repeat(2)]);
    assert_eq!(many.rejects.len(), 1);
    assert!(
        many.rejects[0].error.contains("too many pieces"),
        "{}",
        many.rejects[0].error
    );
    assert_eq!(to_json(&many.rows)[0]["left"], json!("0a000a00"));
}
